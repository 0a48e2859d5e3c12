"""Who watches a run's worker: one thread of one program at a time."""

from __future__ import annotations

from filelock import FileLock, Timeout

from training.runs import Run


class Watch:
    """The right to watch a run's worker. Whoever has it loses it when it ends, however it does."""

    def __init__(self, run: Run) -> None:
        self._file = run.folder / ".watch.lock"
        # Taken by the thread that found the run and given back by the one that watched it.
        self._lock = FileLock(self._file, thread_local=False)

    def take(self) -> bool:
        """Take it if nobody has it."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        return True

    def is_held(self) -> bool:
        """Whether somebody has it. A folder that nobody ever watched is left as it is."""
        if not self._file.is_file():
            return False
        try:
            if self.take():
                self.give_back()
                return False
        except PermissionError:  # somebody else's file, who trains nothing of ours
            return False
        return True

    def give_back(self) -> None:
        self._lock.release()
