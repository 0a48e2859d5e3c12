"""Saves and loads what a run needs to go on; a folder in the run is complete or it is not there."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from training.errors import UserError
from training.runs import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Checkpoint, Run

_STATE_FILE = "trainer_state.pt"
_SPARE_BYTES = 64 * 2**20  # left free beside what a save needs


@dataclass
class Progress:
    """How far the training is: optimizer steps done, and the losses of the last of them."""

    step: int = 0
    loss: float | None = None
    evaluation_loss: float | None = None


@dataclass
class Resumable:
    """Everything with a memory of its own that training goes on from."""

    optimizer: Any
    scheduler: Any
    scaler: Any | None  # only float16 has one

    def state(self) -> dict[str, Any]:
        """All states and the random ones, as tensors and plain values only, so that loading them can run no code."""
        version, python_state, gauss = random.getstate()
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "torch_random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python_random": [version, list(python_state), gauss],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self._take_rate_of_the_new_schedule()
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["torch_random"])
        if torch.cuda.is_available() and state["cuda_random"]:
            torch.cuda.set_rng_state_all(state["cuda_random"])
        version, python_state, gauss = state["python_random"]
        random.setstate((version, tuple(python_state), gauss))

    def _take_rate_of_the_new_schedule(self) -> None:
        """With more epochs the schedule is another from here on; the optimizer came back with the old one's rate."""
        if isinstance(self.scheduler, LambdaLR):
            step = self.scheduler.last_epoch
            for group, base, share in zip(
                self.optimizer.param_groups, self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * share(step)


def save_checkpoint(run: Run, model: PeftModel, resumable: Resumable, progress: Progress) -> Checkpoint:
    """Write checkpoint-<step>; raises UserError when the disk is full."""
    folder = run.folder / f"checkpoint-{progress.step}"
    _check_room(run.folder, 4 * _adapter_bytes(model))  # the adapter, two moments an optimizer keeps, and a spare
    with _whole_folder(folder) as partial:
        _save_adapter(model, partial)
        # Into a file of Python's: of a full disk torch's own would only say that a position is unexpected.
        with (partial / _STATE_FILE).open("wb") as file:
            torch.save(resumable.state(), file)
        (partial / "progress.json").write_text(json.dumps(vars(progress)), encoding="utf-8")
    return Checkpoint(progress.step, folder)


def load_checkpoint(checkpoint: Checkpoint, resumable: Resumable) -> Progress:
    """Restore everything but the adapter, which `load_adapter` brings; raises UserError when the folder is damaged."""
    try:
        state = torch.load(checkpoint.folder / _STATE_FILE, weights_only=True, map_location="cpu")
        resumable.load(state)
        return Progress(**json.loads((checkpoint.folder / "progress.json").read_text(encoding="utf-8")))
    except (OSError, EOFError, UnpicklingError, RuntimeError, LookupError, ValueError, TypeError) as error:
        raise UserError(
            f"The checkpoint of step {checkpoint.step} is damaged: delete its folder {checkpoint.folder.name} "
            "and continue from the one before."
        ) from error


def delete_old_checkpoints(run: Run, keep_last: int) -> None:
    """Leave the newest `keep_last` checkpoints; 0 keeps all."""
    for checkpoint in run.checkpoints()[:-keep_last] if keep_last else []:
        # Renamed first: a checkpoint that is half deleted must not look like a whole one.
        doomed = checkpoint.folder.rename(run.folder / f".{checkpoint.folder.name}.deleted")
        shutil.rmtree(doomed)


def save_result(run: Run, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the adapter and the tokenizer, with the template used in training, into the run folder, each file whole."""
    _check_room(run.folder, _adapter_bytes(model))
    partial = run.folder / ".result.partial"
    shutil.rmtree(partial, ignore_errors=True)
    _save_adapter(model, partial)
    tokenizer.save_pretrained(str(partial))
    _flush(partial)
    # The config goes last: readers take a folder without it for one without an adapter.
    for file in sorted(partial.iterdir(), key=lambda p: p.name == ADAPTER_CONFIG):
        if file.is_dir():  # a folder, such as that of a tokenizer's further templates, replaces no full one
            shutil.rmtree(run.folder / file.name, ignore_errors=True)
        file.replace(run.folder / file.name)
    partial.rmdir()


def _save_adapter(model: PeftModel, folder: Path) -> None:
    # "auto" would ask the Hub whether the vocabulary has grown; Graft does not grow it.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise RuntimeError(f"PEFT wrote no {ADAPTER_WEIGHTS}")


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that gets its name only when all is in it."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _flush(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # half a checkpoint must not fill the disk up


def _flush(folder: Path) -> None:
    """Have the files really on the disk before their names say so: a power cut must not leave empty ones behind."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _adapter_bytes(model: PeftModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise UserError(
            f"The disk is full: saving needs {(needed + _SPARE_BYTES) / 2**20:,.0f} MB and {free / 2**20:,.0f} MB are "
            "free. Make room, then continue from the last checkpoint."
        )
