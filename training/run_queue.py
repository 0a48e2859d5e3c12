"""The runs that wait their turn: kept in a file beside the runs, so that they outlive the page and the computer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from training.errors import UserError
from training.paths import Folders, write_atomically
from training.run_state import Status
from training.runs import Run, list_runs


class _Stored(BaseModel):
    names: list[str] = []


class RunQueue:
    """The names of the waiting runs, first come first; whoever changes it, or starts a run, holds the lock."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._file = folders.loras / ".queue.json"
        self._lock = FileLock(folders.loras / ".queue.lock")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other thread and program from the queue, and from starting a run."""
        with self._lock:
            yield

    def runs(self) -> list[Run]:
        """The waiting runs in their order. Only the file puts a run in line, not what stands in its own folder."""
        waiting = {run.name: run for run in list_runs(self._folders) if run.stored_state().status is Status.QUEUED}
        try:
            names = _Stored.model_validate_json(self._file.read_text(encoding="utf-8")).names
        except (FileNotFoundError, ValidationError, UnicodeDecodeError):
            names = []
        return [waiting[name] for name in names if name in waiting]

    def left_out(self) -> list[Run]:
        """Runs that say they wait and are not in line: copied from elsewhere, or added when the computer went down."""
        known = {run.name for run in self.runs()}
        queued = [run for run in list_runs(self._folders) if run.stored_state().status is Status.QUEUED]
        return [run for run in queued if run.name not in known]

    def add(self, run: Run) -> None:
        """Put a run at the end."""
        with self.locked():
            self._store([*(other.name for other in self.runs() if other.name != run.name), run.name])

    def move(self, name: str, places: int) -> None:
        """Move a run forward (negative) or back by so many places, as far as the queue goes."""
        with self.locked():
            names = [run.name for run in self.runs()]
            if name not in names:
                raise UserError(f"'{name}' does not wait any more.")
            index = names.index(name)
            names.insert(max(0, index + places), names.pop(index))
            self._store(names)

    def remove(self, name: str) -> None:
        """Take a run out; it stays in the list of runs, from where it can be started again."""
        with self.locked():
            run = next((run for run in self.runs() if run.name == name), None)
            if run is None:
                raise UserError(f"'{name}' does not wait any more.")
            run.set_state(Status.STOPPED, "It was taken out of the queue.")
            self._store([other.name for other in self.runs()])

    def _store(self, names: list[str]) -> None:
        write_atomically(self._file, _Stored(names=names).model_dump_json())
