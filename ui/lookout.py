"""The runs as all pages see them: read once a second and drawn once a change, however many pages look."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from training.checkpoint_files import SPARE_BYTES
from training.disk import free_bytes
from training.gpus import place_for
from training.paths import Folders
from training.run_queue import RunQueue
from training.run_state import State, Status
from training.run_store import Trashed, trashed_runs
from training.runs import Run, list_runs
from training.training_thread import seconds_until_ended

T = TypeVar("T")
LATEST = ""  # the choice that follows whatever is trained
_FRESH = 0.9  # seconds that a look is good for; a tick comes each second
_NO_ROOM = 4096  # bytes: the least that file systems give to what is added
_TICKS_A_SECOND = 4  # of all pages together: Gradio takes some milliseconds of a core for each, which training wants
_PERIODS = (1, 2, 3, 5, 10)  # seconds between the ticks of a page
_COUNTED = 20.0  # seconds over which pages are counted
_MOST_KEPT = 128  # drawings in memory: a handful for each run that is looked at


@dataclass(frozen=True)
class Seen:
    """A run as it stood at the last look."""

    run: Run
    state: State
    stopping: bool = False
    saving: bool = False  # a checkpoint was asked for and is not there yet
    cancelling: bool = False
    ended_in: int | None = None  # seconds that a worker asked to stop may still give no sign of life
    place: int = 0  # in the queue, from 1
    waiting: int = 0  # how long the queue is
    little_room: bool = False  # too little for an active run to save a checkpoint
    disk_full: bool = False  # not even enough to write down that it waits
    events_size: int = 0  # bytes
    log_size: int = 0  # bytes

    @property
    def failed(self) -> bool:
        """Whether the run ended before its time for a reason that the reader did not ask for."""
        return self.state.status is Status.FAILED or (self.state.status is Status.STOPPED and bool(self.state.reason))

    @property
    def waits(self) -> bool:
        """Whether the run is active but cannot go on for now: it says so itself, or has no room even for that."""
        return self.state.status.active and (bool(self.state.cause) or self.disk_full)

    @property
    def key(self) -> str:
        """Changes when what can be done with the run may have changed."""
        asked = f"{self.stopping:d}{self.saving:d}{self.cancelling:d}{self.little_room:d}{self.disk_full:d}"
        return f"{self.state.status} {self.state.changed} {asked} {self.place}/{self.waiting}"


@dataclass(frozen=True)
class Overview:
    """All runs at one moment, newest first, the names of those that wait in their order, and what is in the trash."""

    runs: tuple[Seen, ...] = ()
    waiting: tuple[str, ...] = ()
    trash: tuple[Trashed, ...] = ()

    @cached_property
    def busy(self) -> bool:
        """Whether a run that is started now would have to wait."""
        states = [seen.state for seen in self.runs]
        return bool(self.waiting) or place_for("one", [s.gpus for s in states if s.status.active]) is None

    def find(self, choice: str) -> Seen | None:
        """The run chosen; for the latest the one that is training, else the first in the queue, else the newest."""
        if choice != LATEST:
            return next((seen for seen in self.runs if seen.run.name == choice), None)
        active = next((seen for seen in self.runs if seen.state.status.active), None)
        first = next((seen for seen in self.runs if seen.place == 1), None)
        return active or first or next(iter(self.runs), None)

    @cached_property
    def failed_before(self) -> str:
        """The run that ended last, where it failed and another is trained by now: nobody may have seen it fail."""
        ended = [seen for seen in self.runs if seen.state.status.ended]
        last = max(ended, key=lambda seen: seen.state.changed, default=None)
        active = any(seen.state.status.active for seen in self.runs)
        return last.run.name if active and last and last.state.status is Status.FAILED else ""

    @cached_property
    def choices(self) -> tuple[tuple[str, str], ...]:
        """What the box with the runs offers: labels and names."""
        return ("The latest", LATEST), *((_label(seen), seen.run.name) for seen in self.runs)


class Lookout:
    """Looks at the runs for all pages of this server."""

    def __init__(self, folders: Folders, queue: RunQueue) -> None:
        self._folders = folders
        self._queue = queue
        self._lock = threading.Lock()
        self._last: tuple[float, Overview] | None = None
        self._drawings: dict[tuple[str, str], tuple[Hashable, Any]] = {}
        self._drawing = threading.Lock()
        self._ticks: deque[tuple[float, int]] = deque()  # when, and the period of the page that it came from

    def overview(self) -> Overview:
        """The runs as they were at most a second ago."""
        with self._lock:
            now = time.monotonic()
            if self._last is None or now - self._last[0] > _FRESH:
                self._last = now, self._look()
            return self._last[1]

    def forget(self) -> None:
        """Look anew when asked next, because something was changed from a page."""
        with self._lock:
            self._last = None

    def pace(self, period: int) -> int:
        """Seconds that a page is to wait for its next tick, after one that came with this period.

        A few pages look each second; with many each looks less often, so that the training keeps its processor.
        """
        with self._lock:
            now = time.monotonic()
            self._ticks.append((now, period))
            while now - self._ticks[0][0] > _COUNTED:
                self._ticks.popleft()
            pages = sum(between for _, between in self._ticks) / _COUNTED
        return next((seconds for seconds in _PERIODS if pages <= seconds * _TICKS_A_SECOND), _PERIODS[-1])

    def drawn(self, what: str, name: str, key: Hashable, draw: Callable[[], T]) -> T:
        """What `draw` gives, called once for each key that this part of this run has."""
        with self._drawing:
            kept = self._drawings.pop((what, name), None)
            if kept is None or kept[0] != key:
                kept = key, draw()
            self._drawings[what, name] = kept
            if len(self._drawings) > _MOST_KEPT:
                del self._drawings[next(iter(self._drawings))]
            value: T = kept[1]
            return value

    def _look(self) -> Overview:
        runs = [(run, run.state()) for run in list_runs(self._folders)]
        queued = any(state.status is Status.QUEUED for _, state in runs)
        waiting = tuple(run.name for run in self._queue.runs()) if queued else ()
        room = free_bytes(self._folders.loras) if any(state.status.active for _, state in runs) else 0
        seen = tuple(_seen(run, state, waiting, room) for run, state in runs)
        return Overview(seen, waiting, tuple(trashed_runs(self._folders)))


def _seen(run: Run, state: State, waiting: tuple[str, ...], room: int) -> Seen:
    seen = Seen(run, state, events_size=_size(run.events_file), log_size=_size(run.log_file))
    if run.name in waiting:
        return replace(seen, place=waiting.index(run.name) + 1, waiting=len(waiting))
    if not state.status.active:
        return seen
    left = seconds_until_ended(run)
    return replace(
        seen,
        stopping=left is not None,
        saving=run.save_requested(),
        cancelling=run.cancel_requested(),
        ended_in=None if left is None else int(left),
        little_room=room < SPARE_BYTES,
        disk_full=room < _NO_ROOM,
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _label(seen: Seen) -> str:
    if seen.state.status.active:
        return f"{seen.run.name} (training)"
    if seen.state.status is Status.FAILED:
        return f"{seen.run.name} (failed)"
    return f"{seen.run.name} (waits, place {seen.place})" if seen.place else seen.run.name
