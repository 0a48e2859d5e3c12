"""`python -m training.worker <run folder>`: one run in its own process, its last word left in the run folder."""

from __future__ import annotations

import argparse
import gc
import logging
import signal
import sys
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from training.paths import PROJECT, Folders
from training.post_mortem import ALREADY_TRAINED, cause_of
from training.run_here import is_first_process, run_here
from training.run_state import Reason, Status
from training.runs import Run

_LOCK_TIMEOUT = 15.0  # seconds; processes that prepare data hold it a moment longer than a worker that was killed
_OBJECTS_BETWEEN_COLLECTIONS = 200_000
log = logging.getLogger("training.worker")


def main() -> int:
    """Do the run and write how it ended; the exit code is 0 unless it failed."""
    parser = argparse.ArgumentParser(prog="python -m training.worker", description="Train the run in a run folder.")
    parser.add_argument("run_folder", type=Path)
    for flag in ("models", "datasets", "formats", "templates"):
        parser.add_argument(f"--{flag}-dir", type=Path, default=PROJECT / flag)
    parser.add_argument("--hub-cache", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    # Said on every run and nothing the reader can act on: an optional kernel, and PEFT's use of an older name.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    run = run_here(arguments.run_folder.resolve())
    folders = Folders(
        models=arguments.models_dir,
        datasets=arguments.datasets_dir,
        loras=run.folder.parent,
        formats=arguments.formats_dir,
        templates=arguments.templates_dir,
        hub_cache=arguments.hub_cache,
        data_anywhere=True,  # whoever started the run was asked
    )
    # The page asks for a stop through the run folder; a shell or the system asks with a signal. Both save first.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, (lambda *_: run.request_stop()) if is_first_process() else signal.SIG_IGN)
    if not is_first_process():
        return _help(run, folders)
    try:
        # Two servers over one folder must never train one run twice; the lock goes with the process, however it ends.
        with FileLock(run.folder / ".worker.lock", timeout=_LOCK_TIMEOUT):
            return _train(run, folders)
    except Timeout:
        log.warning("another process trains %s already", run.name)
        return ALREADY_TRAINED


def _help(run: Run, folders: Folders) -> int:
    """Do this process' share of a training in several; the first one says how it ends."""
    from training.pipeline import train_run

    train_run(run, folders)
    return 0


def _train(run: Run, folders: Folders) -> int:
    try:
        run.set_state(Status.PREPARING)
        log.info("preparing %s", run.name)
        # torch takes seconds to import: by now the page shows that the run is being prepared.
        from training.pipeline import train_run

        collect_rarely()

        finished = train_run(run, folders)
    except Exception as error:
        death = cause_of(error)
        log.exception("ended: %s", death.cause)
        paused = death.reason is Reason.DIVERGED
        run.set_state(Status.STOPPED if paused else Status.FAILED, death.cause, death.reason, traceback=death.traceback)
        return 0 if paused else 1
    cause = "" if run.has_result() else "It was stopped before the first step, so there was nothing to save."
    run.set_state(Status.DONE if finished else Status.STOPPED, cause)
    log.info("done" if finished else "stopped")
    return 0


def collect_rarely() -> None:
    """Keep the garbage collector from what is in memory already, and from the many short-lived lists that rows are."""
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)


if __name__ == "__main__":
    sys.exit(main())
