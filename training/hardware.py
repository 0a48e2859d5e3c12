"""Where a training would run, found out without taking any of its memory."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import subprocess
from dataclasses import dataclass

import psutil
import torch

from training.model import compute_dtype

_PATIENCE = 10.0  # seconds
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hardware:
    """Where a training would run: `total` is its memory in bytes, None where the system does not tell."""

    name: str
    is_gpu: bool
    total: int | None
    compute: torch.dtype  # of 16-bit


@functools.lru_cache(maxsize=1)
def this_hardware() -> Hardware:
    """The first GPU that a training would see, else this computer.

    A GPU is asked through nvidia-smi: torch would take some of its memory for the answer, for as long as the page runs.
    """
    if torch.cuda.is_available():
        return _gpu(shutil.which("nvidia-smi"))
    return Hardware("this computer", False, psutil.virtual_memory().total, compute_dtype("16-bit"))


def free_memory() -> int | None:
    """Bytes that a process begun now could have where a training would run; None where the system does not tell."""
    if not torch.cuda.is_available():
        return psutil.virtual_memory().available
    answer = _ask(shutil.which("nvidia-smi"), "memory.free")
    return _bytes(answer[0]) if answer else None


def _gpu(nvidia_smi: str | None) -> Hardware:
    answer = _ask(nvidia_smi, "name,memory.total,compute_cap")
    if answer is None:
        return Hardware("the GPU", True, None, torch.bfloat16)
    name, mebibytes, capability = answer
    # Those before Ampere compute bfloat16 by emulation only, which training does without.
    compute = torch.bfloat16 if float(capability) >= 8 else torch.float16
    return Hardware(name, True, _bytes(mebibytes), compute)


def _ask(nvidia_smi: str | None, what: str) -> list[str] | None:
    """What nvidia-smi says of the first GPU that a training would see; None where it does not."""
    if nvidia_smi is None:
        return None
    number = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    query = [nvidia_smi, f"--query-gpu={what}", "--format=csv,noheader,nounits", f"--id={number}"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:  # a driver that hangs must not end a training
        log.warning("nvidia-smi gives no answer")
        return None
    return [part.strip() for part in answer.stdout.splitlines()[0].split(",")] if not answer.returncode else None


def _bytes(mebibytes: str) -> int | None:
    """A GPU that shares the main memory has none of its own to tell of."""
    return int(mebibytes) * 2**20 if mebibytes.isdigit() else None
