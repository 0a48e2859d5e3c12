"""Which adapter is meant, a run's final one or that of a checkpoint, and which base model it belongs to."""

from __future__ import annotations

import json
import re
from pathlib import Path

from training.errors import UserError
from training.paths import Folders, list_models
from training.runs import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Run, find_run


def base_of(folders: Folders, run: Run) -> str:
    """The base model an adapter was trained on, a name in models/ or on the Hub; raises UserError if none is told."""
    name = _base_in_settings(run) or _base_in_config(run)
    if not name:
        raise UserError(f"'{run.name}' does not say on which base model it was trained: choose that one yourself.")
    # The path may be one of another computer: the name of the model's folder is what both share.
    last = re.split(r"[\\/]", name.rstrip("\\/"))[-1]
    is_path = Path(name).is_absolute() or "\\" in name
    return last if is_path and last in list_models(folders) else name


def _base_in_settings(run: Run) -> str:
    try:
        return run.settings().base_model
    except UserError:
        return ""  # the adapter comes from elsewhere, or the file is damaged


def _base_in_config(run: Run) -> str:
    """What PEFT wrote down, in the final adapter or in a checkpoint."""
    for folder in (run.folder, *(checkpoint.folder for checkpoint in run.checkpoints())):
        try:
            config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and config.get("base_model_name_or_path"):
            return str(config["base_model_name_or_path"])
    return ""


def adapter_folder(folders: Folders, name: str, step: int | None) -> Path:
    """Where a run's final adapter lies, or that of its checkpoint at `step`; raises UserError when it is gone."""
    run = find_run(folders, name)
    if step is None:
        if not run.has_adapter():
            raise UserError(f"'{run.name}' has no finished adapter: choose a checkpoint, or train it to the end.")
        return run.folder
    for checkpoint in run.checkpoints():
        if checkpoint.step == step and (checkpoint.folder / ADAPTER_WEIGHTS).is_file():
            return checkpoint.folder
    raise UserError(f"'{run.name}' has no checkpoint of step {step} any more: choose another.")
