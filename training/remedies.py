"""What would make a training fit that ran out of memory: changes with the memory they save, the most helpful first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.base_models import locate_base_model
from training.errors import UserError
from training.libraries import load_libraries
from training.parsing import parse
from training.paths import Folders
from training.run_store import MAY_CHANGE
from training.runs import Run
from training.settings import ALWAYS, FULL, WHEN_NEEDED, Settings

_WORTH_NAMING = 0.03  # share of the memory that a change saves at least
_SHORTEST_CUTOFF = 64  # tokens


@dataclass(frozen=True)
class Remedy:
    """A change of settings that makes a training need less memory."""

    label: str
    saves: int  # bytes, as estimated
    changes: dict[str, Any]  # values by setting name
    continues: bool  # the run can go on from its last checkpoint with it


def remedies(run: Run, folders: Folders) -> list[Remedy]:
    """What would make the run need less, in order of gain; nothing where its model cannot be reckoned with."""
    settings = run.settings().model_copy(update={"trust_remote_code": False})  # no such code runs in the page's process
    if settings.gradient_checkpointing == WHEN_NEEDED and was_on(run):
        settings = settings.model_copy(update={"gradient_checkpointing": ALWAYS})
    try:
        source = locate_base_model(folders, settings.base_model)
        if not Path(source).is_dir():
            return []
        before = _memory(settings, source)
    except UserError:
        return []
    found = []
    for label, changes in _candidates(settings):
        try:
            saves = before - _memory(parse(settings.model_dump() | changes), source)
        except UserError:
            continue  # it does not go with the other settings, or not with this model
        if saves > _WORTH_NAMING * before:
            found.append(Remedy(label, saves, changes, changes.keys() <= MAY_CHANGE))
    return sorted(found, key=lambda remedy: remedy.saves, reverse=True)


def _candidates(settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    """Changes that may help, with their names."""
    found: list[tuple[str, dict[str, Any]]] = []
    if settings.gradient_checkpointing != ALWAYS:
        found.append(("Gradient checkpointing", {"gradient_checkpointing": ALWAYS}))
    if settings.micro_batch_size > 1:
        found.append(("Micro-batch size 1", {"micro_batch_size": 1}))
    if settings.cutoff_length >= 2 * _SHORTEST_CUTOFF:
        half = settings.cutoff_length // 2
        changes = {"cutoff_length": half, "overlap_length": min(settings.overlap_length, half // 4)}
        found.append((f"Cutoff length {half:,}", changes))
    if settings.method == FULL:
        found.append(("LoRA instead of full fine-tuning", {"method": "LoRA"}))
    elif settings.precision != "4-bit":
        found.append(("Load in 4-bit", {"precision": "4-bit"}))
    if settings.precision == "32-bit":
        found.append(("Load in 16-bit", {"precision": "16-bit"}))
    if not settings.optimizer.endswith("_8bit"):
        found.append(("Optimizer adamw_8bit", {"optimizer": "adamw_8bit"}))
    return found


def was_on(run: Run) -> bool:
    """Whether memory had asked for gradient checkpointing when the run was trained last."""
    try:
        return bool(json.loads(run.receipt_file.read_text(encoding="utf-8"))["gradient_checkpointing"])
    except (OSError, ValueError, LookupError, TypeError):
        return False  # it ended before it had a receipt, or that is of an earlier version


def _memory(settings: Settings, source: str) -> int:
    """Bytes at the fullest moment, as estimated; raises UserError where the method does not go with the model."""
    # Here, because it brings torch along.
    load_libraries()
    from training.estimate import estimate

    return estimate(settings, source).memory.total
