"""The run folder, the only truth about a training: settings, state, events, log, checkpoints, adapter."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil
from pydantic import BaseModel, Field, ValidationError

from training.errors import UserError
from training.events import Event, event_reader
from training.parsing import parse
from training.paths import Folders, free_path, safe_name, write_atomically
from training.settings import Settings

SETTINGS_FILE = "settings.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHECKPOINT_PREFIX = "checkpoint-"
_CHECKPOINT = re.compile(CHECKPOINT_PREFIX + r"(\d+)")
# What may differ when a run goes on: none of it changes what was learnt so far.
_MAY_CHANGE = {
    "if_exists",
    "epochs",
    "evaluate_every",
    "save_every",
    "keep_last",
    "stop_at_loss",
    "micro_batch_size",
    "gradient_checkpointing",
}


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
        return self not in (Status.DONE, Status.STOPPED, Status.FAILED)


class State(BaseModel):
    """A run's status, why it ended so, and the process in charge of it."""

    status: Status
    cause: str = ""
    pid: int | None = None
    process_started: float | None = None  # see _start_time: a pid alone may have been given to another process
    changed: float = Field(default_factory=time.time)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: adapter, optimizer, random states."""

    step: int
    folder: Path


def is_adapter(folder: Path) -> bool:
    """Whether PEFT's files of an adapter lie in a folder."""
    return (folder / ADAPTER_WEIGHTS).is_file() and (folder / ADAPTER_CONFIG).is_file()


def is_whole_model(folder: Path) -> bool:
    """Whether a folder holds a model with all of its weights, as full fine-tuning leaves it."""
    return (folder / MODEL_CONFIG).is_file() and any(folder.glob("model*.safetensors"))


class Run:
    """One training and its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.events_file = folder / "events.jsonl"
        self.log_file = folder / "worker.log"
        self.receipt_file = folder / "receipt.json"
        self._settings_file = folder / SETTINGS_FILE
        self._state_file = folder / "state.json"
        self._stop_file = folder / "stop"

    def settings(self) -> Settings:
        """What was asked; raises UserError where the file is missing or damaged."""
        try:
            return parse(json.loads(self._settings_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"'{self.name}' has no {SETTINGS_FILE}: it was not trained with Graft.") from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise UserError(f"The {SETTINGS_FILE} of '{self.name}' is damaged: it is not JSON.") from None

    def write_settings(self, settings: Settings) -> None:
        write_atomically(self._settings_file, settings.model_dump_json(indent=2))

    def stored_state(self) -> State:
        """The last state written down. A folder without one holds an adapter from elsewhere, or nothing of use."""
        try:
            return State.model_validate_json(self._state_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if self.has_result():
                return State(status=Status.DONE)
            return State(status=Status.FAILED, cause="It is empty.")
        except (ValidationError, UnicodeDecodeError):
            return State(status=Status.FAILED, cause="Its state.json is damaged.")

    def state(self) -> State:
        """The state as it truly is: a run whose process is gone without a last word has failed."""
        state = self.stored_state()
        if state.status.active and not _is_alive(state):
            state.status = Status.FAILED
            state.cause = "The training process ended without a word: it was killed, or the computer went down."
        return state

    def set_state(self, status: Status, cause: str = "", pid: int | None = None) -> None:
        """Write the state; `pid` is the process in charge, by default this one."""
        pid = pid or os.getpid()
        try:
            started = _start_time(psutil.Process(pid))
        except psutil.NoSuchProcess:
            started = None  # it ended just now; the state then reads as such
        write_atomically(
            self._state_file,
            State(status=status, cause=cause, pid=pid, process_started=started).model_dump_json(indent=2),
        )

    def append(self, event: Event) -> None:
        """Add a line to the events; one write, so that lines never mix."""
        line = event.model_dump_json().encode() + b"\n"
        with self.events_file.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # A line that a crash tore stays by itself: what is added after it must be readable.
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)

    def request_stop(self) -> None:
        """Ask the worker to save and end after the step it is at."""
        self._stop_file.touch()

    def is_graft(self) -> bool:
        """Whether Graft made this folder, and not the user or another program."""
        return self._settings_file.is_file()

    def withdraw_stop(self) -> None:
        self._stop_file.unlink(missing_ok=True)

    def stop_requested(self) -> bool:
        return self._stop_file.exists()

    def has_result(self) -> bool:
        """Whether what was trained is there: an adapter, or a whole model."""
        return is_adapter(self.folder) or is_whole_model(self.folder)

    def has_tokenizer(self) -> bool:
        """Whether the tokenizer of the training lies beside the adapter, with its template."""
        return (self.folder / TOKENIZER_CONFIG).is_file()

    def checkpoints(self) -> list[Checkpoint]:
        """The complete checkpoints, oldest first."""
        found = ((_CHECKPOINT.fullmatch(p.name), p) for p in self.folder.glob(f"{CHECKPOINT_PREFIX}*") if p.is_dir())
        return sorted((Checkpoint(int(m[1]), p) for m, p in found if m), key=lambda c: c.step)

    def log_tail(self, lines: int = 30, max_bytes: int = 16_384) -> str:
        """The last lines the worker printed."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, self.log_file.stat().st_size - max_bytes))
                text = file.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        # A progress bar overwrites its line: only what it showed last is of use.
        return "\n".join(line.rsplit("\r", 1)[-1] for line in text.rstrip().split("\n")[-lines:])


class EventReader:
    """Reads a run's events as they are appended, each once. A file that was replaced needs a new reader."""

    def __init__(self, run: Run) -> None:
        self._path = run.events_file
        self._offset = 0  # bytes

    def is_outdated(self) -> bool:
        """Whether the file is shorter than what was read of it, so that it must be another."""
        return self._path.is_file() and self._path.stat().st_size < self._offset

    def read_new(self) -> list[Event]:
        """The events added since the last call. An unterminated last line waits for the next one."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [event for line in complete.splitlines() if (event := _parse_event(line))]


def _parse_event(line: bytes) -> Event | None:
    """The event, or None for a line that a crash of the machine tore: the others still tell the story."""
    try:
        return event_reader.validate_json(line)
    except ValidationError:
        return None


def _start_time(process: psutil.Process) -> float:
    """When the process started, in seconds; on Linux since the computer did, because its clock may be set meanwhile."""
    return float(process.create_time() - (psutil.boot_time() if psutil.LINUX else 0.0))


def _is_alive(state: State) -> bool:
    if state.pid is None or state.process_started is None:
        return False
    try:
        process = psutil.Process(state.pid)
        # Not all systems give the start time with the same fraction of a second twice.
        return process.status() != psutil.STATUS_ZOMBIE and abs(_start_time(process) - state.process_started) < 1.0
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False  # a process that may not be looked at is not ours


def list_runs(folders: Folders) -> list[Run]:
    """The runs in the loras folder, newest first. Adapters from elsewhere that lie there count as runs."""
    if not folders.loras.is_dir():
        return []
    found = [
        (p / SETTINGS_FILE if (p / SETTINGS_FILE).is_file() else p / ADAPTER_CONFIG, p)
        for p in folders.loras.iterdir()
        if not p.name.startswith(".")
    ]
    dated = [(marker.stat().st_mtime, p) for marker, p in found if marker.is_file()]
    return [Run(p) for _, p in sorted(dated, reverse=True)]


def find_run(folders: Folders, name: str) -> Run:
    """The run called `name`; raises UserError when there is none."""
    # Looked up, not put together: an adapter from elsewhere may have a name that Graft would not give.
    inside = folders.loras.iterdir() if folders.loras.is_dir() else ()
    folder = next((p for p in inside if p.name == name.strip() and p.is_dir() and name[0] != "."), None)
    if folder is None:
        raise UserError(f"There is no LoRA called '{name}' in {folders.loras}.")
    return Run(folder)


def create_run(folders: Folders, settings: Settings) -> Run:
    """The run folder for a training to come, made or reused as `if_exists` says; raises UserError when it cannot be."""
    run = Run(folders.loras / safe_name(settings.name))
    if run.folder.exists():
        if settings.if_exists == "continue":
            return continue_run(run, settings)
        if settings.if_exists == "overwrite":
            _set_aside(run)
        elif _is_worth_keeping(run):
            run = Run(free_path(run.folder))
        else:
            _set_aside(run)  # an attempt that failed before it learnt anything must not use names up
    run.folder.mkdir(parents=True)
    run.write_settings(settings.model_copy(update={"name": run.name}))
    run.set_state(Status.QUEUED)
    return run


def continue_run(run: Run, settings: Settings) -> Run:
    """Make a finished, stopped or failed run ready to go on from its last checkpoint; raises UserError if it cannot."""
    state = run.state()
    if state.status.active:
        raise UserError(f"'{run.name}' is being trained at this moment: stop it first.")
    if not run.checkpoints():
        raise UserError(f"'{run.name}' has no checkpoint to continue from: choose 'new version'.")
    before = run.settings()
    differing = [
        str(field.title)
        for name, field in Settings.model_fields.items()
        if name not in _MAY_CHANGE and getattr(before, name) != getattr(settings, name)
    ]
    if differing:
        raise UserError(
            f"'{run.name}' was begun with other settings ({', '.join(differing)}): copy its settings to continue it, "
            "or choose 'new version'."
        )
    ended_by_loss = before.stop_at_loss > 0 and settings.stop_at_loss < before.stop_at_loss
    if state.status is Status.DONE and settings.epochs <= before.epochs and not ended_by_loss:
        also = " and lower Stop at loss" if before.stop_at_loss else ""
        raise UserError(f"'{run.name}' is done as it was asked: raise Epochs{also} to train it further.")
    run.withdraw_stop()
    run.write_settings(settings)
    run.set_state(Status.QUEUED)
    return run


def _is_worth_keeping(run: Run) -> bool:
    return run.state().status.active or run.has_result() or bool(run.checkpoints()) or not run.is_graft()


def _set_aside(run: Run) -> None:
    """Move a run out of the way, where it can be taken back by hand."""
    if run.state().status.active:
        raise UserError(f"'{run.name}' is being trained at this moment: stop it first, or choose another name.")
    store = run.folder.parent / ".replaced"
    store.mkdir(exist_ok=True)
    target = free_path(store / f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        run.folder.rename(target)
    except OSError as error:
        raise UserError(f"'{run.name}' cannot be moved to {store} ({error.strerror}): choose another name.") from error
