"""How a process that trains gets its memory from the system."""

from __future__ import annotations

import os
import sys

_THRESHOLD = ("MALLOC_MMAP_THRESHOLD_", str(2**20))  # bytes: giving smaller blocks back costs half as much time again


def training_environment() -> dict[str, str]:
    """The variables to start a process with that trains: this process' own and, on Linux, one for its allocator.

    As glibc comes, it raises the size from which on a block goes back to the system as soon as such blocks are freed.
    A training frees large ones of ever other sizes, and took up to twice the memory that it used.
    """
    own = dict(os.environ)
    if sys.platform == "linux":
        own.setdefault(*_THRESHOLD)
    return own
