"""Saves and loads what a run needs to go on, each checkpoint with the hashes of its files."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import GreedyLR

from training import processes
from training.checkpoint_files import MANIFEST, bytes_of, flush, whole_folder, why_damaged, write_manifest
from training.errors import UserError
from training.events import Note
from training.methods import TrainableModel
from training.paths import free_path
from training.post_mortem import is_out_of_memory
from training.progress import Progress
from training.room import write_when_it_fits
from training.runs import CHECKPOINT_PREFIX, Checkpoint, Run, is_adapter, is_whole_model
from training.snapshots import Snapshot, copy_of, may_be_copied

_STATE_FILE, _PROGRESS_FILE = "trainer_state.pt", "progress.json"
NOT_OF_THE_RESULT = (_STATE_FILE, _PROGRESS_FILE, MANIFEST)
_READING_FAILS = (OSError, EOFError, UnpicklingError, RuntimeError, LookupError, ValueError, TypeError, AttributeError)


@dataclass
class Resumable:
    """Everything with a memory of its own that training goes on from."""

    optimizer: Any
    scheduler: Any
    scaler: Any | None  # only float16 has one
    learning_rate: float  # as the settings ask for it
    weights: dict[str, torch.Tensor] = field(default_factory=dict)  # those that the model's own files do not hold

    def state(self) -> dict[str, Any]:
        """All states and the random ones, as tensors and plain values only, so that loading them can run no code.

        Where several processes train, each has to call this at the same time.
        """
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "learning_rate": self.learning_rate,
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "random": processes.gathered(_random_state()),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave, with the learning rate of now."""
        new_rates = [float(r) for r in self.scheduler.base_lrs] if isinstance(self.scheduler, LambdaLR) else []
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for name, weight in self.weights.items():
            weight.data.copy_(state["weights"][name])
        if isinstance(self.scheduler, LambdaLR):
            self._follow_schedule(self.scheduler, new_rates)
        elif self.learning_rate != state["learning_rate"]:
            self._scale_rates(self.learning_rate / state["learning_rate"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        _take_random_state(state["random"])

    def _follow_schedule(self, scheduler: LambdaLR, rates: list[float]) -> None:
        """The rate is that of the schedule of now, which more epochs or another learning rate have changed."""
        scheduler.base_lrs[:] = rates
        for group, rate, share in zip(self.optimizer.param_groups, rates, scheduler.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = rate, rate * share(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _scale_rates(self, factor: float) -> None:
        """A rate that followed the evaluation stays at the same share of the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] *= factor
        self.scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        if isinstance(self.scheduler, GreedyLR):
            for bounds in (self.scheduler.min_lrs, self.scheduler.max_lrs, self.scheduler._init_lrs):
                bounds[:] = [rate * factor for rate in bounds]


def _random_state() -> dict[str, Any]:
    """Of all that draws random numbers in this process, on its own GPU."""
    version, python_state, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [version, list(python_state), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def _take_random_state(states: list[dict[str, Any]]) -> None:
    own = processes.rank()
    state = states[own] if own < len(states) else states[0]
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
    version, python_state, gauss = state["python"]
    random.setstate((version, tuple(python_state), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    if own >= len(states):  # more processes than there were
        processes.own_random_numbers(torch.initial_seed())


def take_snapshot(run: Run, model: TrainableModel, state: dict[str, Any], progress: Progress) -> Snapshot:
    """What the checkpoint of this step is made of: copies, where that is possible and main memory has room for them.

    A whole model would take its memory twice. To tell an adapter as a change to the base, PEFT puts another one into
    the model; virtual tokens it computes anew. Neither can be done while the model is trained.
    """
    if not isinstance(model, PeftModel) or initial_adapter(run).is_dir() or model.active_peft_config.is_prompt_learning:
        return Snapshot(state, progress)
    return copy_of(model, state, progress) if may_be_copied(model, state) else Snapshot(state, progress)


def save_checkpoint(
    run: Run, model: TrainableModel, snapshot: Snapshot, held_up: Callable[[], object] = lambda: None
) -> Checkpoint:
    """Write checkpoint-<step>; while the disk is full it waits for room, which `held_up` is told of.

    It speaks with no other process, and of a snapshot that is a copy may be written in another thread.
    """
    progress = snapshot.progress
    folder = run.folder / f"{CHECKPOINT_PREFIX}{progress.step}"

    def write() -> None:
        with whole_folder(folder) as partial:
            save_model(run, model, partial, snapshot.weights)
            # Into a file of Python's: of a full disk torch's own would only say that a position is unexpected.
            with (partial / _STATE_FILE).open("wb") as file:
                torch.save(snapshot.state, file)
            (partial / _PROGRESS_FILE).write_text(progress.to_json(), encoding="utf-8")
            write_manifest(partial)

    write_when_it_fits(run, _room_for_checkpoint(run, model), write, held_up)
    return Checkpoint(progress.step, folder)


def _room_for_checkpoint(run: Run, model: TrainableModel) -> int:
    """Bytes: as many as the last one takes, or the weights, the two moments an optimizer keeps, and a spare."""
    saved = run.checkpoints()
    return bytes_of(saved[-1].folder) if saved else 4 * trained_bytes(model)


def newest_whole_checkpoint(run: Run) -> Checkpoint | None:
    """The last checkpoint that is as it was written; later ones are damaged and set aside, with a note of the run.

    What a process that was killed has left half written or half deleted goes, because it only takes room.
    """
    for pattern in (f".{CHECKPOINT_PREFIX}*.partial", f".{CHECKPOINT_PREFIX}*.deleted", ".result.partial"):
        for leftover in run.folder.glob(pattern):
            shutil.rmtree(leftover)
    whole, damaged = None, {}
    for checkpoint in reversed(run.checkpoints()):
        if not (problem := why_damaged(checkpoint.folder) or _why_unreadable(checkpoint)):
            whole = checkpoint
            break
        damaged[checkpoint] = problem
    if damaged and not whole and run.has_result():  # which a training from the beginning would take the place of
        raise UserError(f"'{run.name}' has no whole checkpoint to continue from: start a new version from this LoRA.")
    for checkpoint, problem in damaged.items():
        set_aside(run, [checkpoint], "damaged")
        what = "the one before is taken" if whole else "none is left and the training begins anew"
        text = f"The checkpoint of step {checkpoint.step:,} is damaged ({problem}): {what}."
        run.append(Note(level="warning", text=text))
    return whole


def set_aside(run: Run, checkpoints: Iterable[Checkpoint], why: str) -> None:
    """Rename checkpoints that nothing may go on from, which frees their names; `why` is the new name's ending."""
    for checkpoint in checkpoints:
        checkpoint.folder.rename(free_path(run.folder / f".{checkpoint.folder.name}.{why}"))


def _why_unreadable(checkpoint: Checkpoint) -> str:
    """What is wrong with a state whose bytes are as they were written; nothing where it can be gone on from."""
    try:
        # Mapped: of a large one only what is looked at comes into memory.
        torch.load(checkpoint.folder / _STATE_FILE, weights_only=True, map_location="cpu", mmap=True)
        _read_progress(checkpoint)
    except _READING_FAILS as error:
        if is_out_of_memory(error):
            raise
        return "its state cannot be read"
    return ""


def _read_progress(checkpoint: Checkpoint) -> Progress:
    progress = Progress.from_json((checkpoint.folder / _PROGRESS_FILE).read_text(encoding="utf-8"))
    if progress.step != checkpoint.step:
        raise ValueError(f"the progress is that of step {progress.step}")
    return progress


def load_checkpoint(checkpoint: Checkpoint, resumable: Resumable) -> Progress:
    """Restore everything but the model, which is loaded before, from a whole checkpoint.

    Raises UserError where its state is of another kind than what is trained now.
    """
    try:
        state = torch.load(checkpoint.folder / _STATE_FILE, weights_only=True, map_location="cpu")
        resumable.load(state)
        return _read_progress(checkpoint)
    except _READING_FAILS as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"The checkpoint of step {checkpoint.step:,} cannot be gone on from, because its state does not fit this "
            "training: begin a new version that starts from this LoRA."
        ) from error


def best_checkpoint(run: Run, progress: Progress) -> Checkpoint | None:
    """Of the checkpoints that are there, the one whose step has the lowest evaluation loss; the first of equals."""
    known = [c for c in run.checkpoints() if c.step in progress.evaluations]
    return min(known, key=lambda c: progress.evaluations[c.step], default=None)


def delete_old_checkpoints(run: Run, keep_last: int, best: Checkpoint | None = None) -> None:
    """Leave the newest `keep_last` checkpoints and the best one; 0 keeps all."""
    for checkpoint in run.checkpoints()[:-keep_last] if keep_last else []:
        if checkpoint != best:
            # Renamed first: a checkpoint that is half deleted must not look like a whole one.
            doomed = checkpoint.folder.rename(run.folder / f".{checkpoint.folder.name}.deleted")
            shutil.rmtree(doomed)


def initial_adapter(run: Run) -> Path:
    """Where a run keeps what its adapter began with, if that was taken out of the base's weights."""
    return run.folder / "initial-adapter"


def save_initial_adapter(run: Run, model: PeftModel) -> None:
    """Keep what the adapter begins with, so that each save can be told as a change to the untouched base."""
    config = model.peft_config["default"]
    begins_with, config.init_lora_weights = config.init_lora_weights, True  # PEFT's conversion asks for it so

    def write() -> None:
        model.save_pretrained(str(initial_adapter(run)), save_embedding_layers=False)
        flush(initial_adapter(run))

    write_when_it_fits(run, trained_bytes(model), write)
    config.init_lora_weights = begins_with


def save_model(run: Run, model: TrainableModel, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write what is trained into `folder`, as anyone loads it; the random numbers go on as if nothing had been done.

    With the weights of a snapshot, those of the model are not looked at.
    """
    # "auto" would ask the Hub whether the vocabulary has grown; where it has, the embeddings are trained fully.
    options: dict[str, Any] = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    if (initial := initial_adapter(run)).is_dir():
        options["path_initial_model_for_weight_conversion"] = str(initial)
    if weights is not None:  # no numbers are drawn; and those that the training draws meanwhile must not be taken back
        model.save_pretrained(str(folder), state_dict=weights, **options)
    else:
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):  # the conversion draws numbers, and saving must not change what follows
            model.save_pretrained(str(folder), **options)
    if not (is_adapter(folder) or is_whole_model(folder)):
        raise RuntimeError("the library wrote no weights")


def trained_bytes(model: TrainableModel) -> int:
    """What the trained weights take, in bytes."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
