"""Which adapter is meant, a run's final one or that of a checkpoint, and which base model it belongs to."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import UserError
from training.paths import Folders, list_models
from training.runs import (
    ADAPTER_CONFIG,
    CHECKPOINT_PREFIX,
    Run,
    find_run,
    is_adapter,
    is_whole_model,
    list_runs,
)
from training.settings import PROMPT_METHODS, Method, Settings

METHODS: dict[str, Method] = {  # by PEFT's names for them
    "LORA": "LoRA",
    "VERA": "VeRA",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "IA3": "IA3",
    "PREFIX_TUNING": "prefix tuning",
    "PROMPT_TUNING": "prompt tuning",
    "P_TUNING": "P-tuning",
}


@dataclass(frozen=True)
class Earlier:
    """An adapter that a training can start from: `name` is what `start_from` takes, `base` is empty where untold."""

    name: str
    base: str


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
        if not run.has_result():
            raise UserError(f"'{run.name}' is not finished: choose a checkpoint, or train it to the end.")
        return run.folder
    for checkpoint in run.checkpoints():
        if checkpoint.step == step and (is_adapter(checkpoint.folder) or is_whole_model(checkpoint.folder)):
            return checkpoint.folder
    raise UserError(f"'{run.name}' has no checkpoint of step {step} any more: choose another.")


def earlier_adapters(folders: Folders) -> list[Earlier]:
    """The finished adapters and their checkpoints, newest first."""
    found = []
    for run in list_runs(folders):
        names = [run.name] if is_adapter(run.folder) else []
        names += [f"{run.name}/{c.folder.name}" for c in reversed(run.checkpoints()) if is_adapter(c.folder)]
        try:
            base = base_of(folders, run) if names else ""
        except UserError:
            base = ""
        found += [Earlier(name, base) for name in names]
    return found


def earlier_adapter(folders: Folders, settings: Settings) -> Path:
    """The folder of the adapter that `start_from` names.

    Raises UserError when it is gone, its base is another, or it cannot be used as the settings ask.
    """
    name, _, checkpoint = settings.start_from.partition("/")
    step = checkpoint.removeprefix(CHECKPOINT_PREFIX)
    if checkpoint and not step.isdecimal():
        raise UserError(f"Start from: '{checkpoint}' is no checkpoint: write it like my-lora/{CHECKPOINT_PREFIX}40.")
    folder = adapter_folder(folders, name, int(step) if checkpoint else None)
    if not is_adapter(folder):
        raise UserError(
            f"Start from: '{name}' is a whole model, no adapter: move its folder to models/ and train that."
        )
    base = base_of(folders, find_run(folders, name))
    if Path(base).name != Path(settings.base_model).name:
        raise UserError(
            f"Start from: '{name}' was trained on {base} and fits no other: choose that base model, or start anew."
        )
    _check_use(name, adapter_config(folder), settings)
    return folder


def _check_use(name: str, config: dict[str, Any], settings: Settings) -> None:
    """Raises UserError when an adapter with this config cannot be continued or merged as the settings ask."""
    kind = str(config.get("peft_type", ""))
    method = METHODS.get(kind, kind)
    if settings.start_as != "continue it":
        if method in PROMPT_METHODS:
            raise UserError(f"Start from: the virtual tokens of '{name}' cannot be merged into a model: continue it.")
        return
    if method != settings.method:
        raise UserError(f"Start from: '{name}' is of the method {method}, not {settings.method}: choose its method.")
    if method == "P-tuning":
        raise UserError(f"Start from: of '{name}' only the virtual tokens are saved, not what makes them: start anew.")
    if method in PROMPT_METHODS and config.get("num_virtual_tokens") != settings.virtual_tokens:
        raise UserError(f"Start from: '{name}' has {config.get('num_virtual_tokens')} virtual tokens: set as many.")
    fully = config.get("modules_to_save") or []
    if settings.new_tokens and not fully:
        raise UserError(
            f"Start from: '{name}' does not train its embeddings, which new tokens need: merge it into the base, or "
            "leave New tokens empty."
        )
    if fully and (config.get("r"), config.get("lora_alpha")) != (settings.lora_rank, settings.lora_alpha):
        raise UserError(f"Start from: '{name}' also trains {', '.join(fully)}, so keep its rank and alpha.")


def adapter_config(folder: Path) -> dict[str, Any]:
    """PEFT's adapter_config.json in a folder; raises UserError when it is damaged."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"The {ADAPTER_CONFIG} of '{folder.name}' is damaged: it is not JSON.") from None
    if not isinstance(config, dict):
        raise UserError(f"The {ADAPTER_CONFIG} of '{folder.name}' is damaged: it holds no settings.")
    return config
