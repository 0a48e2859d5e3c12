"""The run folder, the only truth about a training: settings, state, events, log, checkpoints, adapter."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from training.disk import when_there_is_room
from training.errors import UserError
from training.events import Event, Step, event_reader
from training.parsing import parse
from training.paths import Folders, lies_in, quoted, write_atomically
from training.run_state import Reason, State, Status
from training.settings import Settings

SETTINGS_FILE = "settings.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHECKPOINT_PREFIX = "checkpoint-"
_CHECKPOINT = re.compile(CHECKPOINT_PREFIX + r"(\d+)")
_BETWEEN_BATCHES = 0.25  # seconds: shorter than anybody sees


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
    """One training and its folder. The worker's waits for a full disk to get room again; elsewhere that is an error."""

    def __init__(self, folder: Path, *, waits_for_room: bool = False) -> None:
        self._write: Callable[[Callable[[], object]], None] = when_there_is_room if waits_for_room else _at_once
        self.folder = folder
        self.name = folder.name
        self.events_file = folder / "events.jsonl"
        self.log_file = folder / "worker.log"
        self.receipt_file = folder / "receipt.json"
        self._settings_file = folder / SETTINGS_FILE
        self._state_file = folder / "state.json"
        self._stop_file = folder / "stop"
        self._save_file = folder / "save"
        self._cancel_file = folder / "cancel"
        self._lock = threading.Lock()  # over the lines that are not in the file yet
        self._lines: list[bytes] = []
        self._batched = False
        self._appended_at = 0.0

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
        return state.lost() if state.status.active and not state.is_alive() else state

    def set_state(self, status: Status, cause: str = "", reason: Reason | None = None, *, traceback: str = "") -> None:
        """Write the state, with this process as the one in charge."""
        before = self.stored_state()
        state = State(
            status=status,
            cause=cause,
            reason=reason,
            stage=before.status if status is Status.FAILED else None,
            traceback=traceback,
            gpus=before.gpus if status.active else [],
        )
        self.write_state(state.with_process(os.getpid()))

    def write_state(self, state: State) -> None:
        """Replace the state as a whole."""
        self._write(lambda: write_atomically(self._state_file, state.model_dump_json(indent=2)))

    def append(self, event: Event) -> None:
        """Add a line to the events, from any thread. It is in the file on return, but for steps `in_batches`."""
        line = event.model_dump_json().encode() + b"\n"
        with self._lock:
            self._lines.append(line)
            # No timer writes the last one down: a process that has run out of memory hangs as it starts a thread.
            soon = self._batched and isinstance(event, Step) and event.seconds < _BETWEEN_BATCHES
            if not soon or time.monotonic() - self._appended_at >= _BETWEEN_BATCHES:
                self._append_lines()

    @contextmanager
    def in_batches(self) -> Iterator[None]:
        """Inside, short steps reach the file together; each other event takes those before it along, and so do the end
        and an error."""
        self._batched = True
        try:
            yield
        finally:
            self._batched = False
            self.append_waiting()

    def append_waiting(self) -> None:
        """Have all events so far in the file."""
        with self._lock:
            self._append_lines()

    def _append_lines(self) -> None:
        if self._lines:
            self._write(lambda: self._append(b"".join(self._lines)))
            self._lines.clear()
            self._appended_at = time.monotonic()

    def _append(self, lines: bytes) -> None:
        with self.events_file.open("ab+", buffering=0) as file:
            if size := file.tell():
                file.seek(-1, os.SEEK_END)
                # A line that a crash tore stays by itself: what is added after it must be readable.
                lines = lines if file.read(1) == b"\n" else b"\n" + lines
            left = memoryview(lines)
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(size)  # of a full disk: all of it is written again
                raise

    def request_stop(self) -> None:
        """Ask the worker to save and end after the step it is at."""
        self._stop_file.touch()

    def stop_requested_at(self) -> float | None:
        """When it was asked to stop, in seconds since 1970."""
        try:
            return self._stop_file.stat().st_mtime
        except FileNotFoundError:
            return None

    def request_save(self) -> None:
        """Ask the worker for a checkpoint after the step it is at."""
        self._save_file.touch()

    def save_requested(self) -> bool:
        return self._save_file.exists()

    def save_answered(self) -> None:
        """Take note that the checkpoint asked for is there."""
        self._save_file.unlink(missing_ok=True)

    def request_cancel(self) -> None:
        """Ask whoever watches the worker to end it at once; what was not saved is lost."""
        self._cancel_file.touch()

    def cancel_requested(self) -> bool:
        return self._cancel_file.exists()

    def is_graft(self) -> bool:
        """Whether Graft made this folder, and not the user or another program."""
        return self._settings_file.is_file()

    def withdraw_requests(self) -> None:
        """Forget all that was asked of an earlier part of the training."""
        for file in (self._stop_file, self._save_file, self._cancel_file):
            file.unlink(missing_ok=True)

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


def _at_once(action: Callable[[], object]) -> None:
    action()


class EventReader:
    """Reads a run's events as they are appended, each once. A file that was replaced needs a new reader."""

    def __init__(self, run: Run, offset: int = 0) -> None:
        self._path = run.events_file
        self.offset = offset  # bytes that were read

    def is_outdated(self) -> bool:
        """Whether the file is shorter than what was read of it, so that it must be another."""
        return self._path.is_file() and self._path.stat().st_size < self.offset

    def read_new(self, most: int = -1) -> list[Event]:
        """The events added since the last call, or those of the next `most` bytes. An unterminated last line waits."""
        try:
            with self._path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(most)
                if len(data) == most:
                    data += file.readline()  # the rest of the line that the limit cut
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self.offset += len(complete)
        return [event for line in complete.splitlines() if (event := _parse_event(line))]


def _parse_event(line: bytes) -> Event | None:
    """The event, or None for a line that a crash of the machine tore: the others still tell the story."""
    try:
        return event_reader.validate_json(line)
    except ValidationError:
        return None


def list_runs(folders: Folders) -> list[Run]:
    """The runs in the loras folder, newest first. Adapters from elsewhere that lie there count as runs."""
    if not folders.loras.is_dir():
        return []
    found = [
        (p / SETTINGS_FILE if (p / SETTINGS_FILE).is_file() else p / ADAPTER_CONFIG, p)
        for p in folders.loras.iterdir()
        if not p.name.startswith(".") and lies_in(p, folders.loras)
    ]
    dated = [(marker.stat().st_mtime, p) for marker, p in found if marker.is_file()]
    return [Run(p) for _, p in sorted(dated, reverse=True)]


def find_run(folders: Folders, name: str) -> Run:
    """The run called `name`; raises UserError when there is none."""
    # Looked up, not put together: an adapter from elsewhere may have a name that Graft would not give.
    inside = folders.loras.iterdir() if folders.loras.is_dir() else ()
    folder = next((p for p in inside if p.name == name.strip() and p.is_dir() and name[0] != "."), None)
    if folder is None or not lies_in(folder, folders.loras):
        raise UserError(f"There is no LoRA called {quoted(name)} in {folders.loras}.")
    return Run(folder)
