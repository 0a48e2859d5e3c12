"""A run's history as its events come in. A look takes in a bounded part of them and a thread the rest, and what they
add up to is kept beside them, so that a page waits as long for a million events as for a hundred."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.checkpoint_files import SPARE_BYTES
from training.disk import free_bytes
from training.history import History
from training.paths import write_atomically
from training.runs import EventReader, Run

SUMMARY_FILE = ".history.json"
_LAYOUT = 1  # of the summary: raise it when the history is made of other parts
LOOK_BYTES = 256 << 10  # some thousand events
_SLICE_BYTES = 64 << 10  # what the thread takes in before others may go on
_SUMMARY_EVERY = 1 << 20  # bytes of events: to read so many anew takes no longer than a few looks
_SUMMARY_SELDOM = 32 << 20  # bytes, while the thread has more to take in
_LARGEST_SUMMARY = 8 << 20  # bytes; it has a quarter of a million
_TESTED = 4096  # bytes at either end of what was read, which tell whether a summary is of this file

_log = logging.getLogger(__name__)


class _Summary(BaseModel):
    """What the first `offset` bytes of a run's events add up to."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    layout: int
    offset: Annotated[int, Field(ge=0)]
    digest: str
    history: History


class Following:
    """The history of one run, for all that look at it. Whoever uses `history` holds `lock` meanwhile."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._file = run.folder / SUMMARY_FILE
        found = _load(self._file, run.events_file)
        self.lock = threading.Lock()
        self.history = found.history if found else History()
        self._reader = EventReader(run, found.offset if found else 0)
        self._summarized = self._reader.offset  # bytes
        self._behind: threading.Thread | None = None

    @property
    def offset(self) -> int:
        """Bytes of the events that are in the history."""
        return self._reader.offset

    def is_outdated(self) -> bool:
        """Whether the events are others by now."""
        return self._reader.is_outdated()

    def look(self, size: int) -> int:
        """Take in what was added to events of so many bytes, or begin to; returns how many are in the history."""
        if size > self.offset:
            with self.lock:
                self._take_in(LOOK_BYTES)
                if size - self.offset <= LOOK_BYTES:
                    self._keep(_SUMMARY_EVERY)
                elif not (self._behind and self._behind.is_alive()):
                    self._behind = threading.Thread(target=self._catch_up, daemon=True)
                    self._behind.start()
        return self.offset

    def _catch_up(self) -> None:
        while True:
            began = time.thread_time()
            with self.lock:
                goes_on = self._take_in(_SLICE_BYTES)
                self._keep(_SUMMARY_SELDOM if goes_on else _SUMMARY_EVERY)
            if not goes_on:
                return
            time.sleep(time.thread_time() - began)  # half of the time is for the pages

    def _take_in(self, most: int) -> bool:
        """Whether anything was there to be read."""
        before = self.offset
        for event in self._reader.read_new(most):
            self.history.add(event)
        return self.offset > before

    def _keep(self, every: int) -> None:
        """Write the summary, if so many bytes have come since it was last written."""
        if self.offset - self._summarized < every:
            return
        self._summarized = self.offset
        try:
            if free_bytes(self._run.folder) < SPARE_BYTES:  # the training needs the room more
                return
            digest = _digest(self._run.events_file, self.offset)
            summary = _Summary(layout=_LAYOUT, offset=self.offset, digest=digest, history=self.history)
            write_atomically(self._file, summary.model_dump_json())
        except OSError as error:  # a folder that was moved away or may not be written: it is only slower then
            _log.info("No summary of the events of %s: %s", self._run.name, error)


def _load(file: Path, events: Path) -> _Summary | None:
    """The summary, where there is one that can be read and is of these events as they are now."""
    try:
        if file.stat().st_size > _LARGEST_SUMMARY:
            return None
        summary = _Summary.model_validate_json(file.read_bytes())
        fits = summary.layout == _LAYOUT and summary.offset <= events.stat().st_size
        fits = fits and summary.digest == _digest(events, summary.offset)
    except (OSError, ValidationError):
        return None
    return summary if fits else None


def _digest(events: Path, offset: int) -> str:
    """Tells a file by what stands at either end of its first `offset` bytes: each event has the time of its making."""
    with events.open("rb") as file:
        first = file.read(min(_TESTED, offset))
        file.seek(max(0, offset - _TESTED))
        return hashlib.sha256(first + file.read(min(_TESTED, offset))).hexdigest()
