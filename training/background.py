"""Work beside the training, such as writing to the disk: one thing at a time, in the order in which it was given."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)


class Background:
    """A thread that works for the one that made it, and hands its errors over to that one; a context manager.

    At the end of the context all that was begun is done.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="background")
        self._work: Future[object] | None = None
        self._held_up = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception:
            if error is None:
                raise
            log.exception("besides, work in the background failed")  # what had gone wrong before is raised on

    def begin(self, work: Callable[[], object]) -> None:
        """Do this as soon as what was begun before is done; raises what went wrong with that."""
        self.wait()
        self._held_up.clear()
        self._work = self._thread.submit(work)

    def is_busy(self) -> bool:
        """Whether there is work that is not done yet."""
        return self._work is not None and not self._work.done()

    def wait(self) -> None:
        """Wait until there is no work left; raises what went wrong with it."""
        work, self._work = self._work, None
        if work:
            work.result()

    def hold_up(self) -> None:
        """Called from within the work where it cannot go on for now: `keep_up` then waits for it."""
        self._held_up.set()

    def keep_up(self) -> None:
        """Raise what went wrong with the work, if it has ended, and wait for it where it is held up."""
        if self._work and (self._work.done() or self._held_up.is_set()):
            self.wait()
