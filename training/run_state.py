"""Where a run stands, as its state.json says it, and whether the process in charge of it is still there."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path

import psutil
from pydantic import BaseModel, Field


class Status(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    PREPARING = "preparing"
    TRAINING = "training"
    SAVING = "saving"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def active(self) -> bool:
        """Whether a process is, or should be, at work on the run."""
        return self in (Status.PREPARING, Status.TRAINING, Status.SAVING)

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to the run unless somebody asks for it."""
        return self in (Status.DONE, Status.STOPPED, Status.FAILED)


class Reason(StrEnum):
    """Why a run ended before its time; `state.cause` says the same to the user, in a sentence."""

    REFUSED = "refused"  # what was asked for cannot be done
    MEMORY = "out of memory"
    DIVERGED = "diverged"  # the loss became no number, or far too high
    DISK = "disk full"
    KILLED = "killed"  # by the system or another program
    CRASHED = "crashed"
    SILENT = "no sign of life"
    LOST = "lost"  # it ended while nobody watched it
    UNKNOWN = "unknown"  # an error that nobody has met yet


class State(BaseModel):
    """A run's status, why it ended so, and the process in charge of it."""

    status: Status
    cause: str = ""  # for the user; of a run that is active: what it waits for
    reason: Reason | None = None
    stage: Status | None = None  # the status it failed in
    traceback: str = ""  # of an unknown error
    pid: int | None = None
    process_started: float | None = None  # see _start_time: a pid alone may have been given to another process
    boot: str = ""  # which start of the computer it ran in; known on Linux only
    gpus: list[str] = []  # those the process was given, where there are several
    changed: float = Field(default_factory=time.time)

    def is_alive(self) -> bool:
        """Whether the process in charge is there."""
        if self.pid is None or self.process_started is None or self.boot != _this_boot():
            return False
        try:
            process = psutil.Process(self.pid)
            # Not all systems give the start time with the same fraction of a second twice.
            same = abs(_start_time(process) - self.process_started) < 1.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False  # a process that may not be looked at is not ours

    def with_process(self, pid: int) -> State:
        """The same with this process in charge; one that ended just now reads as such."""
        try:
            started = _start_time(psutil.Process(pid))
        except psutil.NoSuchProcess:
            started = None
        return self.model_copy(update={"pid": pid, "process_started": started, "boot": _this_boot()})

    def lost(self) -> State:
        """What is true of a run whose process is gone without a last word."""
        rebooted = self.boot != _this_boot()
        cause = (
            "The computer went down or was started anew while this run was going."
            if rebooted
            else "The training process ended without a word while nobody watched it: it was killed or it crashed."
        )
        return self.model_copy(
            update={"status": Status.FAILED, "cause": cause, "reason": Reason.LOST, "stage": self.status}
        )


def _this_boot() -> str:
    """What tells one start of the computer from the next; its time would not, because the clock may be set."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.is_file() else ""


def _start_time(process: psutil.Process) -> float:
    """When the process started, in seconds; on Linux since the computer did, because its clock may be set meanwhile."""
    return float(process.create_time() - (psutil.boot_time() if psutil.LINUX else 0.0))
