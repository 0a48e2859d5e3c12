"""Reads the small JSON files beside models and adapters, which may come from anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST = 64 << 20  # bytes; the index of a model of many thousand weights has a few million


def read_small_json(path: Path) -> Any:
    """What the file holds; raises ValueError where it is no JSON, is nested without end, or is far too large for one.

    Raises OSError where it is not there or cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError("it is too large")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
