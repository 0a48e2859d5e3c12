"""Where a training would run, found out without taking any of its memory."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass

import psutil
import torch

from training.model import compute_dtype


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


def _gpu(nvidia_smi: str | None) -> Hardware:
    if nvidia_smi is None:
        return Hardware("the GPU", True, None, torch.bfloat16)
    number = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    query = ["--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits", f"--id={number}"]
    answer = subprocess.run([nvidia_smi, *query], capture_output=True, text=True, check=False, timeout=10)
    if answer.returncode:
        return Hardware("the GPU", True, None, torch.bfloat16)
    name, mebibytes, capability = (part.strip() for part in answer.stdout.splitlines()[0].split(","))
    # Those before Ampere compute bfloat16 by emulation only, which training does without.
    compute = torch.bfloat16 if float(capability) >= 8 else torch.float16
    return Hardware(name, True, int(mebibytes) * 2**20, compute)
