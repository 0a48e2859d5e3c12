"""Which adapter is meant, a run's final one or that of a checkpoint, and which base model it belongs to."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import UserError
from training.json_files import read_small_json
from training.paths import Folders, lies_in, list_models, quoted
from training.runs import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
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
# What changes the base model or makes PEFT read other files.
_NOT_LOADED = (
    "megatron_config",
    "layer_replication",
    "corda_config",
    "lora_ga_config",
    "arrow_config",
    "tokenizer_kwargs",
)
_LARGEST_SIZE = 1 << 16  # of a rank, or of virtual tokens; real ones have a few hundred
_LONGEST_NAME = 2_000  # characters of a module's name or of an expression for several
_SHOWN = 40  # characters of a wrong value


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
            config = read_small_json(folder / ADAPTER_CONFIG)
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and config.get("base_model_name_or_path"):
            return str(config["base_model_name_or_path"])
    return ""


def adapter_folder(folders: Folders, name: str, step: int | None) -> Path:
    """Where a run's final adapter lies, or that of its checkpoint at `step`; raises UserError when it is gone."""
    run = find_run(folders, name)
    if not lies_in(run.folder, folders.loras):
        raise UserError(f"{quoted(name)} is a link that leads out of {folders.loras}: copy that folder there.")
    if step is None:
        if not run.has_result():
            raise UserError(f"'{run.name}' is not finished: choose a checkpoint, or train it to the end.")
        return run.folder
    for checkpoint in run.checkpoints():
        is_there = checkpoint.step == step and lies_in(checkpoint.folder, folders.loras)
        if is_there and (is_adapter(checkpoint.folder) or is_whole_model(checkpoint.folder)):
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
    if checkpoint and not re.fullmatch(r"\d{1,18}", step, re.ASCII):
        wrong = quoted(checkpoint)
        raise UserError(f"Start from: {wrong} is no checkpoint: write it like my-lora/{CHECKPOINT_PREFIX}40.")
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
        config = read_small_json(folder / ADAPTER_CONFIG)
    except (ValueError, OSError):
        raise UserError(f"The {ADAPTER_CONFIG} of '{folder.name}' is damaged: it is not JSON.") from None
    if not isinstance(config, dict):
        raise UserError(f"The {ADAPTER_CONFIG} of '{folder.name}' is damaged: it holds no settings.")
    return config


def check_adapter(folder: Path) -> None:
    """Raise UserError for an adapter that is not to be loaded: it may come from anybody, and PEFT does as it says.

    PEFT would load adapters of other kinds from places that their config names, or import what it names.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"There is no adapter in '{folder.name}'.")
    if not (folder / ADAPTER_WEIGHTS).is_file():  # else PEFT would look for a pickled one
        raise UserError(
            f"The adapter in '{folder.name}' has no {ADAPTER_WEIGHTS}, and only such weights are loaded, because other "
            "kinds can run code: choose another."
        )
    config = adapter_config(folder)
    if str(config.get("peft_type")) not in METHODS:
        raise UserError(
            f"The adapter in '{folder.name}' is of a kind that is not loaded ({_short(config.get('peft_type'))}): "
            f"choose one of {', '.join(METHODS)}."
        )
    if asked := [key for key in _NOT_LOADED if config.get(key)]:
        raise UserError(f"The adapter in '{folder.name}' asks for {asked[0]}, which is not loaded: choose another.")
    if wrong := next(_wrong_values(config), ""):
        raise UserError(f"The {ADAPTER_CONFIG} of '{folder.name}' is damaged ({wrong}): choose another adapter.")


def _wrong_values(config: dict[str, Any]) -> Iterator[str]:
    """What PEFT would take and then fail at, or fill the memory with."""
    for key in ("r", "num_virtual_tokens", "encoder_hidden_size"):
        if (value := config.get(key)) is not None and not (_is_whole(value) and 0 < value <= _LARGEST_SIZE):
            yield f"{key} is {_short(value)}"
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        values: list[Any] = list(patterns.values()) if isinstance(patterns, dict) else [None]
        if not all(_is_number(value) and 0 < value <= _LARGEST_SIZE for value in values):
            yield f"{key} is {_short(patterns)}"
    for key in ("lora_alpha", "alpha", "lora_dropout"):
        if (value := config.get(key)) is not None and not _is_number(value):
            yield f"{key} is {_short(value)}"
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        value = config.get(key)
        names = value if isinstance(value, list) else [value or ""]
        if not all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in names):
            yield f"{key} is {_short(value)}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    """A value of a file in a message."""
    return quoted(str(value)[:_SHOWN])
