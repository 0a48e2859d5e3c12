"""A full disk: how it is recognised, and how a training waits until there is room again."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_POLL = 1.0  # seconds


def is_disk_full(error: BaseException) -> bool:
    """Whether this error says that the disk, or the user's share of it, is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    # safetensors and torch have errors of their own, with the system's words in them.
    return any(os.strerror(number) in str(error) for number in _FULL)


def when_there_is_room(action: Callable[[], object], waiting: Callable[[], object] = lambda: None) -> None:
    """Do what writes to the disk, again and again while that is full; `waiting` is called between, each second."""
    while True:
        try:
            action()
        except Exception as error:
            if not is_disk_full(error):
                raise
        else:
            return
        waiting()
        time.sleep(_POLL)


def free_bytes(folder: Path) -> int:
    """What is free on the disk that `folder` lies on."""
    return shutil.disk_usage(folder).free
