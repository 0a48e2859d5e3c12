"""Writing into a run while the disk may be full: it waits, says so in its state, and goes on when there is room."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from functools import partial

from training.checkpoint_files import SPARE_BYTES
from training.disk import free_bytes, when_there_is_room
from training.events import Note
from training.runs import Run

_WAITS_BETWEEN_WORDS = 30  # each of a second or so
log = logging.getLogger(__name__)


def write_when_it_fits(
    run: Run, needed: int, action: Callable[[], object], held_up: Callable[[], object] = lambda: None
) -> None:
    """Do what writes about `needed` bytes into the run folder, waiting for room before it and where it breaks off.

    The action must leave nothing behind where it fails, and may be called again. The run's status stays what it is.
    `held_up` is called before each second of waiting.
    """
    wait = _Wait(run, needed, held_up)
    when_there_is_room(partial(_write, run, needed, action), wait.again)
    wait.end()


def _write(run: Run, needed: int, action: Callable[[], object]) -> None:
    if free_bytes(run.folder) < needed + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    action()


class _Wait:
    """What the reader is told while a run waits."""

    def __init__(self, run: Run, needed: int, held_up: Callable[[], object]) -> None:
        self._run = run
        self._needed = needed
        self._held_up = held_up
        self._status = run.stored_state().status
        self._said = ""
        self._times = 0

    def again(self) -> None:
        """Say how much room there is, where that has changed; now and then the log shows that somebody is there."""
        self._held_up()  # first: on a disk that is quite full the words have to wait as well
        megabytes = [count / 2**20 for count in (self._needed + SPARE_BYTES, free_bytes(self._run.folder))]
        text = (
            f"The disk is full: saving needs {megabytes[0]:,.0f} MB and {megabytes[1]:,.0f} MB are free. "
            "The training waits and goes on as soon as there is room."
        )
        if self._times % _WAITS_BETWEEN_WORDS == 0:
            log.warning(text)
        self._times += 1
        if text != self._said:
            self._run.set_state(self._status, text)
            self._said = text

    def end(self) -> None:
        """Take the words back; a note stays."""
        if self._said:
            self._run.set_state(self._status)
            self._run.append(Note(level="warning", text="The disk was full: the training waited until there was room."))
