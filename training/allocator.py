"""How a process that trains gets its memory from the system."""

from __future__ import annotations

import os
import sys

# Bytes. Larger blocks go back to the system as soon as they are freed, and it clears them when they come again, which
# slows a training down: one of 27 million parameters to 0.65 in 32 bits and 0.56 in 16 at 1 MiB, to 0.93 and not at all
# at this. Smaller ones leave holes, the more the larger they are: at 8 MiB a DoRA took 1.3 times what it used.
_LARGE = 2**22
# These holes take a quarter of what the blocks hold: 24 to 32 % were measured in four LoRA trainings.
_HOLES = 4
_VARIABLES = {
    "MALLOC_MMAP_THRESHOLD_": str(_LARGE),
    # Bytes that may lie free at the end of the heap. glibc would give them back from 128 KiB on, and ask for them again
    # with the next operation: a tenth of the speed of a training in 32 bits.
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    # Torch aligns its blocks, which leaves bits of some ten bytes before and behind each. Where glibc keeps these bits
    # for small requests, a freed block never holds one of its own size again: heaps took up to twice what was used.
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
}
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
        for name, value in _VARIABLES.items():
            own.setdefault(name, value)
    return own


def taken_on_heap(size: int) -> int:
    """Bytes that a block of `size` bytes takes of a processor's memory, with its share of the holes between blocks."""
    return size + size // _HOLES if size < _LARGE else size
