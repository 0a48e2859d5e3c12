"""How a process that trains gets its memory from the system."""

from __future__ import annotations

import os
import sys

# Bytes. Blocks that are given back at once have to be cleared by the system when they come again: with a threshold of
# 1 MiB a model of 27 million parameters trained at 0.65 of the speed in 32 bits, and at 0.56 in 16, for 9 to 15 % less
# memory. Larger blocks carry more work for each byte.
_THRESHOLD = ("MALLOC_MMAP_THRESHOLD_", str(2**23))
# Kernels for 16 bits that oneDNN compiles and keeps, some hundred kB each; it would keep 1,024. A training uses a few
# shapes again and again, and compiling one anew takes less than a millisecond.
_KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def training_environment() -> dict[str, str]:
    """The variables to start a process with that trains: this process' own, and what keeps its memory small.

    As glibc comes, it raises the size from which on a block goes back to the system as soon as such blocks are freed.
    A training frees large ones of ever other sizes, and took up to twice the memory that it used.
    """
    own = dict(os.environ)
    own.setdefault(*_KERNELS)
    if sys.platform == "linux":
        own.setdefault(*_THRESHOLD)
    return own
