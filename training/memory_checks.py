"""Memory checks as the page sees them: each measures in a process of its own, one at a time, and never while training.

What is measured is in memory_check.py, which the page does not import.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ValidationError

from training.allocator import training_environment
from training.base_models import locate_base_model
from training.errors import UserError
from training.paths import PROJECT, Folders, write_atomically
from training.settings import Settings
from training.supervisor import active_run

REQUEST_FILE, REPORT_FILE, LOG_FILE = "request.json", "report.json", "check.log"
CheckState = Literal["running", "done", "failed", "cancelled"]
_POLL = 0.05  # seconds; memory fills at some gigabytes a second
_SPARE_SHARE, _MIN_SPARE = 0.03, 300 * 10**6  # of main memory; bytes
_SIGKILL = 9  # Windows has no name for it
_LOG_TAIL = 4_000  # characters
log = logging.getLogger(__name__)


class Request(BaseModel):
    """What a check is asked for."""

    settings: Settings
    folders: Folders


class Tried(BaseModel):
    """A micro-batch size, whether it fits, and the most bytes in use at once, which are unknown where it does not."""

    micro_batch_size: int
    fits: bool
    peak: int | None = None
    reserved: int | None = None  # the same with what torch keeps for later; on a GPU only


class Report(BaseModel):
    """What a check has found so far."""

    doing: str = "starting"
    problem: str = ""  # why it could not go on, for the user
    trying: int | None = None  # the micro-batch size that is in memory at this moment
    asked: int = 0  # the micro-batch size of the settings
    most: int = 0  # examples that can be in a micro-batch: the batch size, or all there are
    longest: int = 0  # tokens of the longest example
    gradient_checkpointing: bool = False  # whether it is on, as in a training of these settings
    on_gpu: bool = False
    free: int = 0  # bytes that were free before the model was loaded
    total: int = 0  # bytes of the device
    tried: list[Tried] = []
    timed_at: int | None = None  # the micro-batch size that the times are for
    tokens_per_second: float = 0.0
    total_seconds: float = 0.0  # of the whole training, evaluations included

    @property
    def largest(self) -> Tried | None:
        """The largest micro-batch of those tried that fits."""
        return next((tried for tried in reversed(self.tried) if tried.fits), None)

    @property
    def too_large(self) -> int | None:
        """The size that was tried and does not fit, if there is one."""
        return next((tried.micro_batch_size for tried in self.tried if not tried.fits), None)

    def of(self, size: int) -> Tried | None:
        """What was found for this size."""
        return next((tried for tried in self.tried if tried.micro_batch_size == size), None)

    def ran_out(self) -> None:
        """Note that memory ran out at what it was at."""
        size = self.trying
        if size is None:
            what = "the data was prepared" if not self.asked else "the model was loaded"
            self.problem = (
                f"Memory ran out while {what}, before any micro-batch: end other programs, load the model in 4-bit, "
                "or choose a smaller one."
            )
            return
        smaller = [tried for tried in self.tried if tried.micro_batch_size < size]
        self.tried = [*smaller, Tried(micro_batch_size=size, fits=False)]
        if self.timed_at == size:
            self.timed_at = None


def check_command(folder: Path) -> list[str]:
    """What starts the process that does the check requested in `folder`."""
    return [sys.executable, "-m", "training.memory_check", str(folder)]


def spare_memory() -> int:
    """Bytes of main memory that no check may use: the system and other programs need air."""
    return max(int(psutil.virtual_memory().total * _SPARE_SHARE), _MIN_SPARE)


@dataclass(frozen=True)
class CheckProgress:
    """Where a check stands; `message` is for the user where it was cancelled or has failed."""

    settings: Settings
    report: Report
    state: CheckState = "running"
    message: str = ""


class MemoryCheck(threading.Thread):
    """One check; any number of pages may ask for its progress."""

    def __init__(self, settings: Settings, folders: Folders) -> None:
        super().__init__(name="memory check", daemon=True)
        self._request = Request(settings=settings, folders=folders)
        self._cancelled = threading.Event()
        self._report = Report()
        self._end: tuple[CheckState, str] = ("running", "")

    def run(self) -> None:
        """Check, and leave a state behind that says how it ended."""
        try:
            with tempfile.TemporaryDirectory(prefix="graft-memory-", ignore_cleanup_errors=True) as folder:
                self._end = self._check(Path(folder))
        except Exception:
            log.exception("the memory check failed")
            self._end = _failed()

    def cancel(self) -> None:
        """Ask the check to end; it does so at once."""
        self._cancelled.set()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._end[0] == "running"

    def progress(self) -> CheckProgress:
        """Where it stands at this moment."""
        state, message = self._end
        return CheckProgress(self._request.settings, self._report, state, message)

    def _check(self, folder: Path) -> tuple[CheckState, str]:
        write_atomically(folder / REQUEST_FILE, self._request.model_dump_json())
        with (folder / LOG_FILE).open("wb") as log_file:
            process = subprocess.Popen(
                check_command(folder),
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                env={**training_environment(), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"},
            )
        try:
            ran_out = self._follow(process, folder)
        finally:
            process.kill()
            process.wait()
        if self._cancelled.is_set():
            return "cancelled", "The memory check was cancelled."
        self._report = _read(folder) or self._report
        if ran_out or process.returncode == -_SIGKILL:
            self._report.ran_out()
        elif process.returncode and not self._report.problem:
            said = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]
            log.error("the memory check ended with exit code %d:\n%s", process.returncode, said)
            return _failed()
        return ("failed", self._report.problem) if self._report.problem else ("done", "")

    def _follow(self, process: subprocess.Popen[bytes], folder: Path) -> bool:
        """Wait until the process has ended or must be; returns whether it was about to use main memory up."""
        spare, seen = spare_memory(), 0
        while not self._cancelled.is_set():
            try:
                process.wait(_POLL)
                return False
            except subprocess.TimeoutExpired:
                pass
            # Sooner than the system, which might end another program instead.
            if psutil.virtual_memory().available < spare / 2:
                return True
            changed = _changed(folder / REPORT_FILE)
            if changed != seen and (report := _read(folder)):
                self._report, seen = report, changed
        return False


class MemoryChecks:
    """The check of this server: there is one at a time, because two would measure each other."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._starting = threading.Lock()
        self.latest: MemoryCheck | None = None

    def start(self, settings: Settings) -> MemoryCheck:
        """Begin a check; raises UserError while another one or a training is going on, and for a model not here."""
        source = locate_base_model(self._folders, settings.base_model, run_code=settings.trust_remote_code)
        if not Path(source).is_dir():
            raise UserError(
                f"Base model: '{settings.base_model}' is not on this computer yet: download it first, then check."
            )
        with self._starting:
            if self.latest and self.latest.running:
                raise UserError("Memory is being checked at this moment: wait for it, or cancel it first.")
            if busy := active_run(self._folders):
                raise UserError(f"'{busy.name}' is being trained and uses the memory: check when it has ended.")
            self.latest = MemoryCheck(settings, self._folders)
            self.latest.start()
            return self.latest

    def stop(self) -> None:
        """Cancel the check that is going on, if one is, and wait until its memory is free again."""
        if self.latest and self.latest.is_alive():
            self.latest.cancel()
            self.latest.join()


def _failed() -> tuple[CheckState, str]:
    return "failed", "The memory check failed in a way that only Graft's log tells more of."


def _read(folder: Path) -> Report | None:
    """The report as it is at this moment; none before the process has written one."""
    try:
        return Report.model_validate_json((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValidationError:
        log.exception("the report of the memory check is damaged")
        return None


def _changed(path: Path) -> int:
    """When a file was written last, in nanoseconds; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
