"""Makes run folders and changes what becomes of them: new, continued, replaced, deleted and brought back."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.begun_here import forget, remember
from training.errors import UserError
from training.paths import Folders, free_path, safe_name
from training.run_state import Status
from training.runs import Run
from training.settings import Settings
from training.watch import Watch

_REPLACED, _TRASH = ".replaced", ".trash"
_DATED = re.compile(r"(?P<name>.+)-(?P<date>\d{8}-\d{6})(-\d+)?")
# What may differ when a run goes on: none of it changes what was learnt so far.
MAY_CHANGE = {
    "if_exists",
    "epochs",
    "evaluate_every",
    "save_every",
    "save_minutes",
    "keep_last",
    "result",
    "patience",
    "stop_at_loss",
    "micro_batch_size",
    "gradient_checkpointing",
    "offload_activations",
    "retry_smaller",
    "gpus",
    "learning_rate",
    "max_grad_norm",
}


class NameInUse(UserError):  # noqa: N818 - a question to the user rather than an error
    """A run of this name is there and nobody has said what becomes of it; nothing was made."""

    def __init__(self, run: Run) -> None:
        super().__init__(
            f"Name: there is a LoRA called '{run.name}' already: choose under 'If the name exists' (--if-exists) "
            "whether this is a new version, goes on from it or takes its place."
        )
        self.run = run


@dataclass(frozen=True)
class Trashed:
    """A deleted run that can be brought back: the name it had, when it was deleted (local time), where it lies."""

    name: str
    deleted: str
    folder: Path


def create_run(folders: Folders, settings: Settings) -> Run:
    """The run folder for a training to come, made or reused as `if_exists` says.

    Raises NameInUse where that says "ask" and something worth keeping has the name, and UserError when it cannot be.
    """
    run = Run(folders.loras / safe_name(settings.name))
    if run.folder.exists():
        if settings.if_exists == "continue":
            return continue_run(run, settings)
        if not _is_worth_keeping(run):
            _set_aside(run, _REPLACED)  # an attempt that failed before it learnt anything must not use names up
        elif settings.if_exists == "ask":
            raise NameInUse(run)
        elif settings.if_exists == "overwrite":
            _set_aside(run, _REPLACED)
        else:
            run = Run(free_path(run.folder))
    run.folder.mkdir(parents=True)
    run.write_settings(settings.model_copy(update={"name": run.name}))
    remember(run.folder)
    run.set_state(Status.QUEUED)
    return run


def continue_run(run: Run, settings: Settings) -> Run:
    """Make a finished, stopped or failed run ready to go on from its last checkpoint; raises UserError if it cannot.

    One that has none yet, because it ended before its first, begins anew with these settings.
    """
    _refuse_if_busy(run, "stop it first")
    if run.checkpoints():
        _check_may_go_on(run, settings)
    elif run.has_result() or not run.is_graft():
        raise UserError(f"'{run.name}' has no checkpoint to continue from: choose 'new version'.")
    run.withdraw_requests()
    run.write_settings(settings)
    run.set_state(Status.QUEUED)
    return run


def _check_may_go_on(run: Run, settings: Settings) -> None:
    """Raise UserError where these settings would have begun the run differently, or leave it nothing to do."""
    before = run.settings()
    differing = [
        str(field.title)
        for name, field in Settings.model_fields.items()
        if name not in MAY_CHANGE and getattr(before, name) != getattr(settings, name)
    ]
    if differing:
        raise UserError(
            f"'{run.name}' was begun with other settings ({', '.join(differing)}): copy its settings to continue it, "
            "or choose 'new version'."
        )
    ended_by_loss = before.stop_at_loss > 0 and settings.stop_at_loss < before.stop_at_loss
    ended_by_patience = before.patience > 0 and settings.patience not in range(1, before.patience + 1)
    done = run.state().status is Status.DONE
    if done and settings.epochs <= before.epochs and not (ended_by_loss or ended_by_patience):
        also = " and lower Stop at loss" if before.stop_at_loss else ""
        also += " and raise Early stopping" if before.patience else ""
        raise UserError(f"'{run.name}' is done as it was asked: raise Epochs{also} to train it further.")


def extended(run: Run, amount: float, unit: Literal["epochs", "steps"]) -> dict[str, float]:
    """The settings that make a run longer by so many epochs or steps; raises UserError where that cannot be told."""
    if not 0 < amount < math.inf:
        raise UserError("Extend: give a number of more than 0.")
    epochs = run.settings().epochs
    if unit == "epochs":
        return {"epochs": epochs + amount}
    try:
        steps_per_epoch = json.loads(run.receipt_file.read_text(encoding="utf-8"))["steps_per_epoch"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(
            f"Extend: how many steps an epoch of '{run.name}' has is not known: go by epochs instead."
        ) from None
    return {"epochs": (math.ceil(round(epochs * steps_per_epoch, 6)) + amount) / steps_per_epoch}


def delete_run(run: Run) -> Trashed:
    """Move a run into the trash; raises UserError for one that is being trained or waits its turn."""
    return _trashed(_set_aside(run, _TRASH))


def trashed_runs(folders: Folders) -> list[Trashed]:
    """What lies in the trash, deleted last first."""
    trash = folders.loras / _TRASH
    found = [_trashed(p) for p in trash.iterdir() if _DATED.fullmatch(p.name)] if trash.is_dir() else []
    return sorted(found, key=lambda trashed: trashed.deleted, reverse=True)


def restore_run(folders: Folders, trashed: Trashed) -> Run:
    """Bring a deleted run back, under the next free name where its own was taken meanwhile."""
    if not trashed.folder.is_dir():
        raise UserError(f"'{trashed.name}' is not in the trash any more.")
    run = Run(trashed.folder.rename(free_path(folders.loras / trashed.name)))
    if run.is_graft() and run.settings().name != run.name:
        run.write_settings(run.settings().model_copy(update={"name": run.name}))
    return run


def empty_trash(folders: Folders) -> None:
    """Delete for good what lies in the trash."""
    for trashed in trashed_runs(folders):
        shutil.rmtree(trashed.folder)


def _trashed(folder: Path) -> Trashed:
    match = _DATED.fullmatch(folder.name)
    assert match  # it was named here
    return Trashed(match["name"], match["date"], folder)


def _is_worth_keeping(run: Run) -> bool:
    return not run.state().status.ended or run.has_result() or bool(run.checkpoints()) or not run.is_graft()


def _refuse_if_busy(run: Run, what_to_do: str) -> None:
    status = run.state().status
    if status.active:
        raise UserError(f"'{run.name}' is being trained at this moment: {what_to_do}.")
    if status is Status.QUEUED:
        raise UserError(f"'{run.name}' waits in the queue: take it out first.")


def _set_aside(run: Run, store_name: str) -> Path:
    """Move a run out of the way, into a folder that says when."""
    _refuse_if_busy(run, "stop it first, or choose another name")
    if Watch(run).is_held():  # it may come again with a smaller micro-batch
        raise UserError(f"'{run.name}' is just ending: try again in a moment.")
    store = run.folder.parent / store_name
    store.mkdir(exist_ok=True)
    target = free_path(store / f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    forget(run.folder)
    try:
        return run.folder.rename(target)
    except OSError as error:
        raise UserError(f"'{run.name}' cannot be moved to {store} ({error.strerror}): choose another name.") from error
