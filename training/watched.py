"""Runs a program that handles what strangers made, and ends it when it takes more memory or time than it may."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import psutil

from training.paths import PROJECT

OUT_OF_MEMORY = 3  # the exit code of a program that met the bound by itself
_PATIENCE = 120.0  # seconds on a clock beyond those of computing: the computer may be busy with something else
_POLL = 0.01  # seconds


@dataclass(frozen=True)
class Bounds:
    """What a program may take: seconds of computing, and bytes of memory."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its exit code and what it printed, or which bound it went over."""

    code: int
    output: str
    over: Literal["", "memory", "time"]


def run_watched(module: str, arguments: Sequence[str], given: bytes, bounds: Bounds) -> Outcome:
    """Run `python -m module` with these arguments and this input until it ends or is ended."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as printed:
        source.write(given)
        source.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=PROJECT,
            stdin=source,
            stdout=printed,
            stderr=subprocess.DEVNULL,
        )
        try:
            over = _watch(process, bounds)
        finally:
            process.kill()
            code = process.wait()
        printed.seek(0)
        output = printed.read().decode("utf-8", "replace")
    return Outcome(code, output, "memory" if code == OUT_OF_MEMORY else over)


def _watch(process: subprocess.Popen[bytes], bounds: Bounds) -> Literal["", "memory", "time"]:
    watched, given_up = psutil.Process(process.pid), time.monotonic() + bounds.seconds + _PATIENCE
    while process.poll() is None:
        try:
            used, memory = watched.cpu_times(), watched.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # it ended just now
        if memory > bounds.memory:
            return "memory"
        if used.user + used.system > bounds.seconds or time.monotonic() > given_up:
            return "time"
        time.sleep(_POLL)
    return ""


def limit_memory(size: int) -> None:
    """Called by such a program of itself: what is taken in one go would be there before anybody watching sees it."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
