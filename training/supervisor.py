"""Starts what is queued, watches what runs and takes over what another program left; page and shell have one each."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psutil

from training.adapters import earlier_adapter
from training.base_models import locate_base_model
from training.begun_here import was_begun_here
from training.chat_templates import load_template
from training.data_files import iter_text
from training.dataset_format import check_rows
from training.disk import free_bytes
from training.errors import UserError
from training.gpus import place_for
from training.libraries import load_libraries
from training.parsing import parse_runnable
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders, data_files
from training.run_queue import RunQueue
from training.run_state import Reason, Status
from training.run_store import Trashed, continue_run, create_run, delete_run
from training.runs import Run, list_runs
from training.settings import Settings
from training.training_thread import GRACES, Graces, TrainingThread, death_unseen
from training.watch import Watch

log = logging.getLogger(__name__)
_MIN_FREE_BYTES = 200 * 2**20  # for the log, the events and the data that is prepared, too
_BETWEEN_LOOKS = 1.0  # seconds


def active_run(folders: Folders) -> Run | None:
    """A run that is being trained at this moment, by whichever page or program it was started."""
    return next((run for run in list_runs(folders) if run.state().status.active), None)


def worker_command(run: Run, folders: Folders, processes: int = 1) -> list[str]:
    """What starts the worker of `run`, in several processes where it has several GPUs."""
    command = ["-m", "training.worker", str(run.folder)]
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command]
    for flag in ("models", "datasets", "formats", "templates"):
        command += [f"--{flag}-dir", str(getattr(folders, flag))]
    return [sys.executable, *command] + (["--hub-cache", str(folders.hub_cache)] if folders.hub_cache else [])


class Supervisor:
    """Keeps the runs of some folders going; several programs may do so at once, and each run is started by one only."""

    def __init__(self, folders: Folders, graces: Graces = GRACES) -> None:
        self.queue = RunQueue(folders)
        self._folders = folders
        self._before_training: list[Callable[[], object]] = []
        self._graces = graces
        self._threads: dict[str, TrainingThread] = {}
        self._active: set[str] = set()  # at the last look
        self._closing = threading.Event()

    def before_training(self, action: Callable[[], object]) -> None:
        """Do this before a training takes the memory: whoever holds some gives it back."""
        self._before_training.append(action)

    def submit(self, settings: Settings) -> Run:
        """Check these settings and start a run with them, or queue it; raises UserError, having made nothing."""
        checked = self._checked(settings)
        with self.queue.locked():
            run = create_run(self._folders, checked)
            self.queue.add(run)
        self.look()
        return run

    def go_on(self, run: Run, **changes: object) -> None:
        """Continue a run that has ended, from its last checkpoint or, without one, from its beginning.

        `changes` are settings that may differ from here on. Raises UserError.
        """
        settings = parse_runnable(run.settings().model_dump() | changes)
        if not was_begun_here(run.folder):  # what a stranger's settings ask for is checked as if it were typed
            if settings.trust_remote_code:
                raise UserError(
                    f"'{run.name}' wants to run its model's own code, which nobody has allowed here: copy its settings "
                    "and tick that if you trust the model's publisher."
                )
            settings = self._checked(settings)
        with self.queue.locked():
            continue_run(run, settings)
            self.queue.add(run)
        self.look()

    def delete(self, run: Run) -> Trashed:
        """Move a run into the trash; raises UserError for one that is trained, waits its turn or is just ending."""
        with self.queue.locked():
            return delete_run(run)

    def keep_looking(self) -> None:
        """Look every second from now on, in a thread of its own."""
        threading.Thread(target=self._keep_looking, name="supervisor", daemon=True).start()

    def look(self) -> None:
        """Take over what nobody watches, say of what is gone that it is, and start what waits and has a place."""
        with self.queue.locked():
            if self._closing.is_set():
                return
            self._threads = {name: thread for name, thread in self._threads.items() if thread.is_alive()}
            active = [run for run in list_runs(self._folders) if run.stored_state().status.active]
            for run in active:
                if run.name not in self._threads:
                    self._take_over(run)
            if {run.name for run in active} - self._active - self._threads.keys():  # started by another program
                self._give_memory_back()
            self._active = {run.name for run in active}
            for run in self.queue.left_out():
                run.set_state(Status.STOPPED, "It was not in the queue any more: continue it to put it there.")
            for run in self.queue.runs():
                try:
                    wanted = run.settings().gpus
                except UserError as error:  # its file was damaged or taken away meanwhile; others still have their turn
                    run.set_state(Status.FAILED, str(error), Reason.REFUSED)
                    continue
                busy = [other.state().gpus for other in list_runs(self._folders) if _is_busy(other)]
                place = place_for(wanted, busy)
                if place is None:
                    return  # first come, first served
                self._launch(run, place)

    def followed(self) -> list[Run]:
        """The runs whose workers are followed from here at this moment."""
        return [thread.training_run for thread in self._threads.values() if thread.is_alive()]

    def thread_of(self, run: Run) -> TrainingThread | None:
        """The thread that follows this run, where it is one of this program."""
        return self._threads.get(run.name)

    def close(self, *, stop_runs: bool) -> None:
        """Start and take over nothing any more; with `stop_runs` the runs followed here save and end first."""
        with self.queue.locked():
            self._closing.set()
            threads = [thread for thread in self._threads.values() if thread.is_alive()]
        for thread in threads if stop_runs else ():
            thread.training_run.request_stop()
        for thread in threads if stop_runs else ():
            thread.join()

    def _keep_looking(self) -> None:
        while not self._closing.wait(_BETWEEN_LOOKS):
            try:
                self.look()
            except Exception:
                log.exception("the runs cannot be looked after")

    def _take_over(self, run: Run) -> None:
        """Watch a run whose watcher is gone, or mark it where its worker is gone too."""
        watch = Watch(run)
        if not watch.take():
            return
        state = run.stored_state()  # as it is now that nobody else changes it
        try:
            if state.status.active and state.is_alive() and state.pid:
                self._thread(run, watch, psutil.Process(state.pid)).start()
                log.info("%s goes on, watched from here", run.name)
                return
        except psutil.NoSuchProcess:
            pass  # it ended just now
        if state.status.active:
            run.write_state(death_unseen(run, state))
        watch.give_back()

    def _launch(self, run: Run, place: Sequence[str]) -> None:
        watch = Watch(run)
        if not watch.take():  # its last watcher is about to let go
            return
        try:
            self._give_memory_back()
            thread = self._thread(run, watch, None)
            thread.launch(place)
            thread.start()
        except BaseException:  # on a full disk, say: the next look tries again
            watch.give_back()
            raise

    def _give_memory_back(self) -> None:
        for action in self._before_training:
            action()

    def _thread(self, run: Run, watch: Watch, process: psutil.Process | None) -> TrainingThread:
        command = partial(worker_command, run, self._folders)
        thread = TrainingThread(run, command, watch, process=process, graces=self._graces, on_end=self.look)
        self._threads[run.name] = thread
        return thread

    def _checked(self, settings: Settings) -> Settings:
        """The settings, if a training with them can begin; raises UserError."""
        settings = parse_runnable(settings.model_dump())
        folders = self._folders
        source = locate_base_model(folders, settings.base_model, run_code=settings.trust_remote_code)
        if settings.start_from.partition("/")[0] == settings.name and settings.if_exists == "overwrite":
            raise UserError(
                f"Name: overwriting '{settings.name}' would take away what is started from: choose another."
            )
        if settings.start_from:
            earlier_adapter(folders, settings)
        _check_data(settings, folders)
        folders.make()
        _check_disk(folders, settings, source)
        return settings


def _is_busy(run: Run) -> bool:
    """Whether a run takes a place: its worker is there, or about to leave, or about to come again with less memory."""
    return run.is_graft() and (run.state().status.active or Watch(run).is_held())


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


def _check_disk(folders: Folders, settings: Settings, source: str) -> None:
    """Raise UserError when the disk has no room for what the training will save."""
    free, needed = free_bytes(folders.loras), max(_MIN_FREE_BYTES, _bytes_to_save(settings, source))
    if free < needed:
        raise UserError(
            f"The disk with {folders.loras} has {free / 2**20:,.0f} MB left and this training needs at least "
            f"{needed / 2**20:,.0f} MB: make room first, or keep fewer checkpoints."
        )


def _bytes_to_save(settings: Settings, source: str) -> int:
    """What the result takes with the checkpoints kept, the best one and one that is being written; 0 if not known."""
    if not Path(source).is_dir():
        return 0
    # Here, because it brings torch along.
    load_libraries()
    from training.estimate import estimate

    try:
        numbers = estimate(settings.model_copy(update={"trust_remote_code": False}), source)
    except UserError:
        return 0  # a model that cannot be reckoned with may be trained all the same
    return numbers.saved + numbers.checkpoint * (max(1, settings.keep_last) + 2)
