"""After a failure: what ended the training, in words for the user, and a report for whoever looks into it."""

from __future__ import annotations

import os
import platform
import re
import traceback
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from training.disk import is_disk_full
from training.errors import Diverged, UserError
from training.gpus import gpu_names
from training.run_state import Reason
from training.runs import Run

ALREADY_TRAINED = 75  # the worker's exit code where another one is at work on the run
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "gradio")
_SIGKILL = 9  # Windows has no name for it
_COUNTS = Path("/proc/vmstat")  # Linux only
# How libraries say that memory ran out, where their errors have no type of their own.
_OUT_OF_MEMORY = (
    "out of memory",
    "MemoryError",
    "DefaultCPUAllocator",
    "Cannot allocate memory",
    "bad_alloc",
    "bad alloc",
    "could not create a primitive",  # oneDNN, which computes 16 bits on a processor, says no more
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "could not create a memory object",
    "can't start new thread",
    "Thread creation failed",
)
_LESS_MEMORY = "The changes listed below make it need less."
MEMORY_RAN_OUT = f"Memory ran out. {_LESS_MEMORY}"


@dataclass(frozen=True)
class Death:
    """Why a training ended: the sentence for the user, the kind, and for a kind that is unknown what Python said."""

    cause: str
    reason: Reason
    traceback: str = ""


def cause_of(error: Exception) -> Death:
    """Why the training failed with this error, and what to do."""
    if isinstance(error, UserError):
        return Death(str(error), Reason.DIVERGED if isinstance(error, Diverged) else Reason.REFUSED)
    if is_out_of_memory(error):
        return Death(MEMORY_RAN_OUT, Reason.MEMORY)
    if is_disk_full(error):
        return Death("The disk is full: make room, then continue from the last checkpoint.", Reason.DISK)
    text = "".join(traceback.format_exception(error))
    return Death(
        f"An unexpected error ended the training ({type(error).__name__}): {_first_line(error)}", Reason.UNKNOWN, text
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether main memory or a GPU's ran out."""
    # By name, because torch may be what could not be imported.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return tells_of_memory(str(error))


def tells_of_memory(text: str) -> bool:
    """Whether a library says in this text that memory ran out."""
    return any(words in text for words in _OUT_OF_MEMORY)


def exit_cause(exit_code: int, last_words: str, by_oom_killer: bool) -> Death:
    """Why a worker ended that left no word in its state: from its exit code (negative: a signal) and its log."""
    if by_oom_killer and (exit_code == -_SIGKILL or "SIGKILL" in last_words):  # of one of several processes
        return Death(f"The system ended the training, because main memory ran out. {_LESS_MEMORY}", Reason.MEMORY)
    if exit_code == -_SIGKILL:
        return Death(
            "The training process was killed by the system or by another program, most often because main memory ran "
            "out: end other programs, then continue.",
            Reason.KILLED,
        )
    if tells_of_memory(last_words):
        return Death(MEMORY_RAN_OUT, Reason.MEMORY)
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    return Death(
        f"The training process crashed ({how}): continue from its last checkpoint, and if it happens again copy the "
        "report below.",
        Reason.CRASHED,
    )


def oom_kills() -> int:
    """How many processes the system has ended since it started because memory ran out; 0 where that is not told."""
    if not _COUNTS.is_file():
        return 0
    counts = dict(line.split() for line in _COUNTS.read_text().splitlines())
    return int(counts.get("oom_kill", 0))


def report(run: Run) -> str:
    """What somebody who looks into a failure needs, as plain text without tokens, passwords and the home folder."""
    state = run.state()
    try:
        settings = run.settings().model_dump_json(indent=2)
    except UserError as error:
        settings = str(error)
    stage = f" while {state.stage}" if state.stage else ""
    parts = [
        f"Graft: {state.status}{stage} ({state.reason or 'no reason'}): {state.cause}",
        f"{platform.platform()}, Python {platform.python_version()}",
        ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
        f"GPUs: {', '.join(gpu_names()) or 'none'}; memory: {psutil.virtual_memory().total / 2**30:.1f} GB",
        f"Settings:\n{settings}",
        f"Last lines of the log:\n{run.log_tail()}",
    ]
    if state.traceback:
        parts.append(state.traceback)
    return _without_secrets("\n\n".join(parts))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _without_secrets(text: str) -> str:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if secret := os.environ.get(name):
            text = text.replace(secret, "[token]")
    text = re.sub(r"\bhf_\w{8,}", "[token]", text)
    text = re.sub(r"(?<=://)[^/\s@]+@", "", text)
    home = str(Path.home())
    for written in (home, home.replace("\\", "\\\\")):  # JSON doubles the strokes of Windows
        text = text.replace(written, "~")
    return text


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or "it gave no reason."
