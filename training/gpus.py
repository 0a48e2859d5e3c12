"""The GPUs of this computer, as the page tells them apart: it never opens one, which would take memory on it."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence

_PATIENCE = 10.0  # seconds
log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1)
def gpu_names() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES calls each GPU that trainings may use; nothing where there is none."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:  # empty: none
        return tuple(name.strip() for name in chosen.split(",") if name.strip())
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:  # a driver that hangs must not keep the page from opening
        log.warning("nvidia-smi gives no answer: trainings are told no GPU by name")
        return ()
    return tuple(answer.stdout.split()) if answer.returncode == 0 else ()


def place_for(wanted: str, busy: Sequence[Sequence[str]]) -> list[str] | None:
    """The GPUs for a run that wants "one" or "all", beside runs that use those in `busy`; None: it has to wait.

    A computer with one GPU or none has room for one run, which is told no GPU by name.
    """
    names = gpu_names()
    if len(names) < 2:
        return None if busy else []
    if wanted == "all":
        return None if busy else list(names)
    if any(not used for used in busy):  # a run that was told none may use any
        return None
    taken = {name for used in busy for name in used}
    return next(([name] for name in names if name not in taken), None)
