"""Encodes in several processes at once, for files so large that one is the bottleneck.

They are forked, so that they need no time to start. Only a program without other threads may do so, as the worker is.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from training.encoding import Converted, Encoder
from training.formats import RowError
from training.token_spans import Encoded

_encoder: Encoder | None = None  # of a forked process


def usable_processes() -> int:
    """How many processes this program may encode in: as many as it has cores where forking is safe, else one.

    Safe it is on Linux and without other threads, one of which might hold a lock at that moment: in the worker, and not
    in the page.
    """
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" and threading.active_count() == 1 else 1


def encode_in_processes(
    encoder: Encoder, batches: Iterable[Sequence[Converted]], processes: int
) -> Iterator[list[Encoded | RowError]]:
    """What the encoder's `encode_all` gives, in the same order; raises MemoryError when the system ends a process."""
    executor = ProcessPoolExecutor(
        processes, mp_context=get_context("fork"), initializer=_begin, initargs=(encoder, os.getpid())
    )
    waiting: deque[Future[list[Encoded | RowError]]] = deque()
    try:
        for batch in batches:
            waiting.append(executor.submit(_encode, batch))
            if len(waiting) > 2 * processes:  # so that they have always work, and memory stays bounded
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise MemoryError("a process that prepared the data was ended by the system") from error
    finally:
        executor.shutdown(cancel_futures=True)


def _begin(encoder: Encoder, parent: int) -> None:
    """Make a forked process ready: as many as there are cores run, so that each keeps to one."""
    global _encoder
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker that is killed cannot tell its processes."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _encode(batch: Sequence[Converted]) -> list[Encoded | RowError]:
    assert _encoder is not None  # set when the process began
    return _encoder.encode(batch)
