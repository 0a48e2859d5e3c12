"""Saves and loads what a run needs to go on; a folder in the run is complete or it is not there."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from training.errors import UserError
from training.methods import TrainableModel
from training.runs import ADAPTER_CONFIG, CHECKPOINT_PREFIX, MODEL_CONFIG, Checkpoint, Run, is_adapter, is_whole_model

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
    weights: dict[str, torch.Tensor] = field(default_factory=dict)  # those that the model's own files do not hold

    def state(self) -> dict[str, Any]:
        """All states and the random ones, as tensors and plain values only, so that loading them can run no code."""
        version, python_state, gauss = random.getstate()
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "torch_random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python_random": [version, list(python_state), gauss],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for name, weight in self.weights.items():
            weight.data.copy_(state["weights"][name])
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


def save_checkpoint(run: Run, model: TrainableModel, resumable: Resumable, progress: Progress) -> Checkpoint:
    """Write checkpoint-<step>; raises UserError when the disk is full."""
    folder = run.folder / f"{CHECKPOINT_PREFIX}{progress.step}"
    check_room(run.folder, 4 * _trained_bytes(model))  # the adapter, two moments an optimizer keeps, and a spare
    with whole_folder(folder) as partial:
        _save_model(run, model, partial)
        # Into a file of Python's: of a full disk torch's own would only say that a position is unexpected.
        with (partial / _STATE_FILE).open("wb") as file:
            torch.save(resumable.state(), file)
        (partial / "progress.json").write_text(json.dumps(vars(progress)), encoding="utf-8")
    return Checkpoint(progress.step, folder)


def load_checkpoint(checkpoint: Checkpoint, resumable: Resumable) -> Progress:
    """Restore everything but the model, which is loaded before; raises UserError when the folder is damaged."""
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


def save_result(run: Run, model: TrainableModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the adapter and the tokenizer, with the template used in training, into the run folder, each file whole."""
    check_room(run.folder, _trained_bytes(model))
    partial = run.folder / ".result.partial"
    shutil.rmtree(partial, ignore_errors=True)
    _save_model(run, model, partial)
    tokenizer.save_pretrained(str(partial))
    _flush(partial)
    # The config goes last: readers take a folder without it for one without an adapter.
    for file in sorted(partial.iterdir(), key=lambda p: p.name in (ADAPTER_CONFIG, MODEL_CONFIG)):
        if file.is_dir():  # a folder, such as that of a tokenizer's further templates, replaces no full one
            shutil.rmtree(run.folder / file.name, ignore_errors=True)
        file.replace(run.folder / file.name)
    partial.rmdir()


def initial_adapter(run: Run) -> Path:
    """Where a run keeps what its adapter began with, if that was taken out of the base's weights."""
    return run.folder / "initial-adapter"


def save_initial_adapter(run: Run, model: PeftModel) -> None:
    """Keep what the adapter begins with, so that each save can be told as a change to the untouched base."""
    config = model.peft_config["default"]
    begins_with, config.init_lora_weights = config.init_lora_weights, True  # PEFT's conversion asks for it so
    model.save_pretrained(str(initial_adapter(run)), save_embedding_layers=False)
    config.init_lora_weights = begins_with


def _save_model(run: Run, model: TrainableModel, folder: Path) -> None:
    if isinstance(model, PeftModel):
        initial = initial_adapter(run)
        # "auto" would ask the Hub whether the vocabulary has grown; where it has, the embeddings are trained fully.
        with torch.random.fork_rng():  # the conversion draws numbers, and saving must not change what follows
            model.save_pretrained(
                str(folder),
                save_embedding_layers=False,
                path_initial_model_for_weight_conversion=str(initial) if initial.is_dir() else None,
            )
    else:
        model.save_pretrained(str(folder))
    if not (is_adapter(folder) or is_whole_model(folder)):
        raise RuntimeError("the library wrote no weights")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
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


def _trained_bytes(model: TrainableModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise UserError(
            f"The disk is full: saving needs {(needed + _SPARE_BYTES) / 2**20:,.0f} MB and {free / 2**20:,.0f} MB are "
            "free. Make room, then continue from the last checkpoint."
        )
