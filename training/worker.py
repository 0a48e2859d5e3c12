"""`python -m training.worker <run folder>`: one run in its own process, its last word left in the run folder."""

from __future__ import annotations

import argparse
import errno
import gc
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

from training.errors import UserError
from training.paths import PROJECT, Folders
from training.runs import Run, Status

_OBJECTS_BETWEEN_COLLECTIONS = 200_000
log = logging.getLogger("training.worker")


def main() -> int:
    """Do the run and write how it ended; the exit code is 0 unless it failed."""
    parser = argparse.ArgumentParser(prog="python -m training.worker", description="Train the run in a run folder.")
    parser.add_argument("run_folder", type=Path)
    for flag in ("models", "datasets", "formats", "templates"):
        parser.add_argument(f"--{flag}-dir", type=Path, default=PROJECT / flag)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    # Said on every run and nothing the reader can act on: an optional kernel, and PEFT's use of an older name.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    run = Run(arguments.run_folder.resolve())
    folders = Folders(
        models=arguments.models_dir,
        datasets=arguments.datasets_dir,
        loras=run.folder.parent,
        formats=arguments.formats_dir,
        templates=arguments.templates_dir,
    )
    # The page asks for a stop through the run folder; a shell or the system asks with a signal. Both save first.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: run.request_stop())
    try:
        run.set_state(Status.PREPARING)
        log.info("preparing %s", run.name)
        # torch takes seconds to import: by now the page shows that the run is being prepared.
        from training.pipeline import train_run

        collect_rarely()

        finished = train_run(run, folders)
    except Exception as error:
        cause = cause_in_words(error)
        log.exception("failed: %s", cause)
        run.set_state(Status.FAILED, cause)
        return 1
    cause = "" if run.has_result() else "It was stopped before the first step, so there was nothing to save."
    run.set_state(Status.DONE if finished else Status.STOPPED, cause)
    log.info("done" if finished else "stopped")
    return 0


def collect_rarely() -> None:
    """Keep the garbage collector from what is in memory already, and from the many short-lived lists that rows are."""
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)


def cause_in_words(error: Exception) -> str:
    """Why the training failed and what to do, in a sentence for the user."""
    if isinstance(error, UserError):
        return str(error)
    # By name, because torch may be what could not be imported.
    # On the CPU torch raises a RuntimeError that only its text tells apart.
    names = (type(error).__name__, str(error))
    if isinstance(error, MemoryError) or names[0] == "OutOfMemoryError" or "DefaultCPUAllocator" in names[1]:
        return (
            "Memory ran out. Copy this run's settings, lower the micro-batch size, then the cutoff length, and start "
            "again; gradient checkpointing and loading in 4-bit also save much."
        )
    # safetensors has an error of its own, with the system's words in it.
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or os.strerror(errno.ENOSPC) in str(error):
        return "The disk is full: make room, then continue from the last checkpoint."
    return f"An unexpected error ended the training ({type(error).__name__}: {error}). The log below tells more."


if __name__ == "__main__":
    sys.exit(main())
