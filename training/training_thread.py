"""The training thread: starts the worker process of a run or takes a running one over, and judges how it ended."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from training.allocator import training_environment
from training.disk import free_bytes
from training.events import Note
from training.paths import PROJECT
from training.post_mortem import ALREADY_TRAINED, MEMORY_RAN_OUT, exit_cause, oom_kills, tells_of_memory
from training.run_state import Reason, State, Status
from training.runs import Run
from training.watch import Watch

log = logging.getLogger(__name__)
_POLL = 0.2  # seconds
_NO_ROOM = 2**20  # bytes
_LAST_LINES = 5  # of the log: what ended the worker stands there, and not an earlier part's trouble
# subprocess has the name on Windows only, where a session of its own cannot be had.
_WINDOWS_PROCESS_GROUP = 0x200 if os.name == "nt" else 0


@dataclass(frozen=True)
class Graces:
    """Seconds that a worker is given: without a sign of life after a stop was asked for, and after its last word."""

    stop: float = 600.0  # a step of a large model takes long
    exit: float = 30.0


GRACES = Graces()


class TrainingThread(threading.Thread):
    """Follows one run to its end and leaves a truthful state behind, whatever the worker does."""

    def __init__(
        self,
        run: Run,
        command: Callable[[int], Sequence[str]],
        watch: Watch,
        *,
        process: psutil.Process | None = None,
        graces: Graces = GRACES,
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        # Not a daemon of the page: the worker outlives this process, and this thread must not hold its exit up.
        super().__init__(name=f"training {run.name}", daemon=True)
        self.training_run = run
        self._command = command  # by how many processes there are to be
        self._watch = watch
        self._process = process
        self._graces = graces
        self._on_end = on_end
        self._oom_kills = oom_kills()
        self._gpus: Sequence[str] = ()

    def launch(self, gpus: Sequence[str] = ()) -> None:
        """Start the worker; a run whose worker cannot be started has failed."""
        run = self.training_run
        environment = {**training_environment(), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "true"}
        self._gpus = gpus
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self._oom_kills = oom_kills()
        # Not after the start, when it might take the place of the worker's last word.
        state = State(status=Status.PREPARING, gpus=list(gpus))
        run.write_state(state.with_process(os.getpid()))
        try:
            # The log goes on where the run goes on. A session of its own keeps Ctrl+C in the server's terminal
            # from the worker.
            with run.log_file.open("ab") as log_file:
                self._process = psutil.Popen(
                    self._command(max(1, len(gpus))),
                    cwd=PROJECT,
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    creationflags=_WINDOWS_PROCESS_GROUP,
                    env=environment,
                )
        except OSError as error:
            cause = f"The training process could not be started ({error.strerror})."
            run.set_state(Status.FAILED, cause, Reason.REFUSED)
            return
        log.info("the worker of %s has process id %d", run.name, self._process.pid)

    def run(self) -> None:
        """Follow the worker, and another one where less memory may do, until the run has ended."""
        try:
            while self._process is not None:
                exit_code = self._wait(self._process)
                self._process = None
                self._judge(exit_code)
                if self._may_do_with_less():
                    self._halve_micro_batch()
                    self.launch(self._gpus)
        except OSError:
            log.exception("the state of %s cannot be written", self.training_run.name)
        finally:
            self._watch.give_back()
            self._on_end()

    def _wait(self, process: psutil.Process) -> int | None:
        """Wait for the worker to leave, or end it where that was asked for; returns its exit code, if that is known."""
        deadline = _Deadline(self.training_run, self._graces)
        while True:
            try:
                return process.wait(timeout=_POLL)
            except psutil.TimeoutExpired:
                # One that was taken over and is nobody's child may stay in the list of processes.
                if not isinstance(process, psutil.Popen) and not self.training_run.stored_state().is_alive():
                    return None
            if self.training_run.cancel_requested():
                end_process_tree(process)
                if self.training_run.stored_state().status.active:  # else it was quicker and has come to its end
                    self.training_run.set_state(Status.STOPPED, "It was cancelled; what was not saved is lost.")
                return None
            if deadline.is_over():
                end_process_tree(process)
                if self.training_run.stored_state().status.active:
                    cause = (
                        f"The worker was asked to stop, gave no sign of life for {self._graces.stop:.0f} seconds and "
                        "was ended. What it had saved in checkpoints is there."
                    )
                    self.training_run.set_state(Status.FAILED, cause, Reason.SILENT)
                return None

    def _judge(self, exit_code: int | None) -> None:
        """A worker that left a last word is believed; of any other the cause is told from how it ended."""
        run = self.training_run
        state = run.stored_state()
        if not state.status.active:
            return
        if exit_code == ALREADY_TRAINED and state.pid != os.getpid():
            return  # another worker is at it, and has written the state
        if exit_code == ALREADY_TRAINED:
            cause = "Another process still trains this run: wait until it has ended, then continue."
            run.set_state(Status.FAILED, cause, Reason.REFUSED)
            return
        if exit_code is not None and state.pid not in (None, os.getpid()) and state.is_alive():
            end_process_tree(psutil.Process(state.pid))  # of several processes one is left without its starter
        by_oom_killer = oom_kills() > self._oom_kills
        if exit_code is None:  # somebody else's child
            run.write_state(death_unseen(run, state, by_oom_killer=by_oom_killer))
            return
        death = exit_cause(exit_code, run.log_tail(), by_oom_killer)
        run.set_state(Status.FAILED, death.cause, death.reason)

    def _may_do_with_less(self) -> bool:
        """Whether memory ran out where a smaller micro-batch needs less of it, and one is wanted."""
        run = self.training_run
        state = run.stored_state()
        if state.reason is not Reason.MEMORY or state.stage not in (Status.TRAINING, Status.SAVING):
            return False
        settings = run.settings()
        return settings.retry_smaller and settings.micro_batch_size > 1 and not run.stop_requested()

    def _halve_micro_batch(self) -> None:
        """Ask for half the micro-batch, and so for twice the accumulation, and tell the reader."""
        run = self.training_run
        settings = run.settings()
        before, after = settings.micro_batch_size, settings.micro_batch_size // 2
        run.write_settings(settings.model_copy(update={"micro_batch_size": after}))
        where = "from its last checkpoint" if run.checkpoints() else "from the beginning"
        text = (
            f"Memory ran out with a micro-batch size of {before}: the training goes on {where} with {after}. "
            "What it learns is the same, because the batch size stays."
        )
        run.append(Note(level="warning", text=text))


def death_unseen(run: Run, state: State, *, by_oom_killer: bool = False) -> State:
    """What is true of a run whose worker is gone without a last word and without an exit code."""
    lost = state.lost()
    if by_oom_killer or tells_of_memory(run.log_tail(_LAST_LINES)):
        return lost.model_copy(update={"cause": MEMORY_RAN_OUT, "reason": Reason.MEMORY})
    return lost


class _Deadline:
    """When a worker that was asked to stop, or has said its last word, has had its time."""

    def __init__(self, run: Run, graces: Graces) -> None:
        self._run = run
        self._graces = graces
        self._stop_seen: float | None = None  # seconds of the monotonic clock, as all here
        self._last_word: float | None = None
        self._signs = _signs_of_life(run)

    def is_over(self) -> bool:
        """Whether the worker must be ended; asked again and again."""
        now = time.monotonic()
        if self._run.stop_requested():
            self._stop_seen = self._stop_seen or now
        if self._stop_seen and self._signs != (signs := _signs_of_life(self._run)):
            self._stop_seen, self._signs = now, signs  # it is on its way: evaluating and saving take their time
        if free_bytes(self._run.folder) < _NO_ROOM:
            self._stop_seen = self._stop_seen and now  # it waits for room, and cannot even say so
        if not self._run.stored_state().status.active:
            self._last_word = self._last_word or now
        return bool(
            (self._stop_seen and now - self._stop_seen > self._graces.stop)
            or (self._last_word and now - self._last_word > self._graces.exit)
        )


def _signs_of_life(run: Run) -> tuple[int, int]:
    """What grows while the worker is at work: its log and its events, in bytes."""
    log_size, events_size = (p.stat().st_size if p.is_file() else 0 for p in (run.log_file, run.events_file))
    return log_size, events_size


def seconds_until_ended(run: Run) -> float | None:
    """How long a worker that was asked to stop may still give no sign of life before it is ended; None if not asked."""
    asked = run.stop_requested_at()
    if asked is None:
        return None
    signs = [p.stat().st_mtime for p in (run.log_file, run.events_file) if p.is_file()]
    return max(0.0, max([asked, *signs]) + GRACES.stop - time.time())


def end_process_tree(process: psutil.Process) -> None:
    """End a process and all that it has started, at once."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    psutil.wait_procs(family, timeout=GRACES.exit)
