"""The run as each of its processes may use it: the first one writes, the others read."""

from __future__ import annotations

import os
from pathlib import Path

from training.events import Event
from training.run_state import State
from training.runs import Run
from training.settings import Settings


def is_first_process() -> bool:
    """Whether this is the process in charge of the run, told before torch is imported: torchrun numbers them."""
    return os.environ.get("RANK", "0") == "0"


def run_here(folder: Path) -> Run:
    """The run in a folder for a process that trains it."""
    return Run(folder, waits_for_room=True) if is_first_process() else _ReadOnlyRun(folder)


class _ReadOnlyRun(Run):
    """The run for a process that helps with the training: it says nothing of its own."""

    def write_settings(self, settings: Settings) -> None:
        pass

    def write_state(self, state: State) -> None:
        pass

    def append(self, event: Event) -> None:
        pass

    def save_answered(self) -> None:
        pass
