"""The training thread: starts the worker process of a run, watches it, and decides how the run ended."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from training.adapters import earlier_adapter
from training.allocator import training_environment
from training.base_models import locate_base_model
from training.chat_templates import load_template
from training.data_files import iter_text
from training.dataset_format import check_rows
from training.errors import UserError
from training.parsing import parse_runnable
from training.paths import DATASET_SUFFIXES, PROJECT, TEXT_SUFFIXES, Folders, data_files
from training.runs import Run, Status, create_run, list_runs
from training.settings import Settings

log = logging.getLogger(__name__)
STOP_GRACE = 600.0  # seconds without a sign of life after a stop was asked for; a step of a large model takes long
EXIT_GRACE = 30.0  # seconds for a worker to leave after its last word
MIN_FREE_BYTES = 200 * 2**20  # the starter's LoRA with three checkpoints is about 40 MB
_POLL = 0.2  # seconds
# subprocess has the name on Windows only, where a session of its own cannot be had.
_WINDOWS_PROCESS_GROUP = 0x200 if os.name == "nt" else 0
_SIGKILL = 9  # Windows has no name for it
_starting = threading.Lock()


def active_run(folders: Folders) -> Run | None:
    """The run that is being trained at this moment, by whichever page or program it was started."""
    return next((run for run in list_runs(folders) if run.state().status.active), None)


def worker_command(run: Run, folders: Folders) -> list[str]:
    """What starts the worker of `run`."""
    return [
        sys.executable,
        "-m",
        "training.worker",
        str(run.folder),
        "--models-dir",
        str(folders.models),
        "--datasets-dir",
        str(folders.datasets),
        "--formats-dir",
        str(folders.formats),
        "--templates-dir",
        str(folders.templates),
    ]


class TrainingThread(threading.Thread):
    """Runs one worker process to its end and leaves a truthful state behind, whatever the worker does."""

    def __init__(
        self,
        run: Run,
        command: Sequence[str],
        stop_grace: float = STOP_GRACE,
        exit_grace: float = EXIT_GRACE,
    ) -> None:
        # Not a daemon of the page: the worker outlives this process, and this thread must not hold its exit up.
        super().__init__(name=f"training {run.name}", daemon=True)
        self.training_run = run
        self._command = list(command)
        self._stop_grace = stop_grace
        self._exit_grace = exit_grace

    def run(self) -> None:
        """Start the worker, wait for it, write down how it ended."""
        try:
            process = self._start_worker()
        except OSError as error:
            self.training_run.set_state(Status.FAILED, f"The training process could not be started ({error.strerror}).")
            return
        ended_by_us = self._wait(process)
        self._judge(process.returncode, ended_by_us)

    def _start_worker(self) -> subprocess.Popen[bytes]:
        # The log goes on where the run goes on. A session of its own keeps Ctrl+C in the server's terminal
        # from the worker.
        with self.training_run.log_file.open("ab") as log_file:
            process = subprocess.Popen(
                self._command,
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                creationflags=_WINDOWS_PROCESS_GROUP,
                env={**training_environment(), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "true"},
            )
        log.info("the worker of %s has process id %d", self.training_run.name, process.pid)
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the worker to leave; returns whether it had to be ended."""
        stop_seen: float | None = None
        last_word: float | None = None
        signs = self._signs_of_life()
        while True:
            try:
                process.wait(timeout=_POLL)
                return False
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if self.training_run.stop_requested():
                stop_seen = stop_seen or now
            if stop_seen and signs != (signs := self._signs_of_life()):
                stop_seen = now  # it is on its way: loading, evaluating and saving take their time
            if not self.training_run.stored_state().status.active:
                last_word = last_word or now
            overdue = (stop_seen and now - stop_seen > self._stop_grace) or (
                last_word and now - last_word > self._exit_grace
            )
            if overdue:
                process.kill()
                process.wait()
                return True

    def _signs_of_life(self) -> tuple[int, int]:
        """What grows while the worker is at work: its log and its events, in bytes."""
        run = self.training_run
        log_size, events_size = (p.stat().st_size if p.is_file() else 0 for p in (run.log_file, run.events_file))
        return log_size, events_size

    def _judge(self, exit_code: int, ended_by_us: bool) -> None:
        """A worker that left a last word is believed; of any other the cause is told from how it ended."""
        state = self.training_run.stored_state()
        if not state.status.active:
            return
        if ended_by_us:
            cause = (
                f"The worker was asked to stop, gave no sign of life for {self._stop_grace:.0f} seconds and was ended. "
                "What it had saved in checkpoints is there."
            )
        else:
            cause = exit_cause(exit_code)
        try:
            self.training_run.set_state(Status.FAILED, cause)
        except OSError:
            log.exception("the state of %s cannot be written; it failed: %s", self.training_run.name, cause)


def exit_cause(exit_code: int) -> str:
    """Why a worker ended that said nothing itself, in words for the user."""
    if exit_code == -_SIGKILL:
        return (
            "The training process was killed by the system, most likely because main memory ran out. "
            "Lower the micro-batch size or the cutoff length, or load the model in 4-bit."
        )
    if exit_code < 0:
        return f"The training process crashed (signal {-exit_code}). The log below tells more."
    return f"The training process ended too early (exit code {exit_code}). The log below tells more."


def start(settings: Settings, folders: Folders) -> TrainingThread:
    """Make the run folder and launch its training thread; raises UserError when a run is going on or cannot be made."""
    parse_runnable(settings.model_dump())
    locate_base_model(folders, settings.base_model, run_code=settings.trust_remote_code)
    if settings.start_from.partition("/")[0] == settings.name and settings.if_exists == "overwrite":
        raise UserError(f"Name: overwriting '{settings.name}' would take away what is started from: choose another.")
    if settings.start_from:
        earlier_adapter(folders, settings)
    _check_data(settings, folders)
    folders.make()
    _check_disk(folders)
    # Two clicks, or two pages, must not both find the place empty.
    with _starting:
        if busy := active_run(folders):
            raise UserError(f"'{busy.name}' is being trained at this moment: wait for it, or stop it first.")
        run = create_run(folders, settings)
    thread = TrainingThread(run, worker_command(run, folders))
    thread.start()
    return thread


def _check_data(settings: Settings, folders: Folders) -> None:
    """Raise UserError for data that cannot be trained on, before anything is made that would have to be cleared up.

    Of a large file only the beginning is looked at: the worker looks at all of it.
    """
    if settings.chat_template:
        load_template(folders, settings.chat_template)
    suffixes = TEXT_SUFFIXES if settings.raw_text else DATASET_SUFFIXES
    files = data_files(folders, settings.raw_text or settings.dataset, suffixes)
    if settings.evaluation_file:
        files += data_files(folders, [settings.evaluation_file], suffixes)
    for path in files:
        if settings.raw_text:
            any(block.strip() for block in iter_text(path))
        else:
            check_rows(path, settings.data_format, folders)


def _check_disk(folders: Folders) -> None:
    """Raise UserError when the disk has no room for a training's files."""
    free = shutil.disk_usage(folders.loras).free
    if free < MIN_FREE_BYTES:
        raise UserError(
            f"The disk with {folders.loras} has {free / 2**20:,.0f} MB left and a training needs at least "
            f"{MIN_FREE_BYTES / 2**20:,.0f} MB: make room first."
        )
