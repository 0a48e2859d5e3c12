"""Settings from the files of an earlier LoRA: of Graft, of text-generation-webui, or of a plain PEFT adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from training.adapters import METHODS, base_of
from training.errors import SettingsError, UserError
from training.formats import FORMAT_FILE_SUFFIX
from training.json_files import read_small_json
from training.parsing import parse
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders
from training.runs import ADAPTER_CONFIG, SETTINGS_FILE, Run
from training.settings import ALL_LINEAR, Initialization, Settings

OLD_SETTINGS_FILE = "training_parameters.json"
_SAME_MEANING = {  # text-generation-webui's name: Graft's
    "save_steps": "save_every",
    "micro_batch_size": "micro_batch_size",
    "batch_size": "batch_size",
    "epochs": "epochs",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "scheduler",
    "lora_rank": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "cutoff_len": "cutoff_length",
    "eval_steps": "evaluate_every",
    "overlap_len": "overlap_length",
    "hard_cut_string": "hard_cut_string",
    "optimizer": "optimizer",
    "stop_at_loss": "stop_at_loss",
}
_CHARACTERS_PER_TOKEN = 4  # of English text, roughly


@dataclass
class Copied:
    """Settings for the whole form, and sentences about what could not be taken over."""

    settings: Settings
    notes: list[str] = field(default_factory=list)


def copy_settings(folders: Folders, run: Run) -> Copied:
    """The settings of an earlier LoRA, from its files; raises UserError when it has none that can be read."""
    if (run.folder / SETTINGS_FILE).is_file():
        return _without_consent(run.settings())
    if (run.folder / OLD_SETTINGS_FILE).is_file():
        values, notes = _from_old_page(folders, run)
    elif (run.folder / ADAPTER_CONFIG).is_file():
        values, notes = _from_adapter(folders, run)
        notes = [*notes, "Only its LoRA settings are known; the others are the defaults."]
    else:
        raise UserError(f"'{run.name}' has no settings to copy.")
    return _with_defaults_for_wrong(values, notes)


def _from_old_page(folders: Folders, run: Run) -> tuple[dict[str, Any], list[str]]:
    """Translate a training_parameters.json of text-generation-webui."""
    old = _read_json(run.folder / OLD_SETTINGS_FILE)
    values, notes = _from_adapter(folders, run) if (run.folder / ADAPTER_CONFIG).is_file() else ({}, [])
    values |= {new: old[name] for name, new in _SAME_MEANING.items() if name in old}
    values["name"] = str(old.get("lora_name") or run.name)
    values["train_on"] = "answers" if old.get("train_only_after") else "everything"
    values["held_out_share"] = 0.0  # it had no such thing
    ticked = [name.removesuffix("_en") for name, ticked in old.items() if name.endswith("_proj_en") and ticked]
    # Before there were tick boxes it trained these two.
    values["target_modules"] = ticked or values.get("target_modules") or ["q_proj", "v_proj"]
    if "newline_favor_len" in old:  # it counted characters
        values["prefer_line_cut"] = int(old["newline_favor_len"]) // _CHARACTERS_PER_TOKEN
    if "warmup_steps" in old:
        # It divided the number it asked for by the gradient accumulation.
        accumulation = max(1, int(old.get("batch_size", 1)) // max(1, int(old.get("micro_batch_size", 1))))
        values["warmup"] = math.ceil(float(old["warmup_steps"]) / accumulation)
    values["dataset"] = _data_file_name(folders, old.get("dataset"), DATASET_SUFFIXES)
    values["raw_text"] = _data_file_name(folders, old.get("raw_text_file"), TEXT_SUFFIXES)
    values["evaluation_file"] = _data_file_name(folders, old.get("eval_dataset"), DATASET_SUFFIXES)
    if values["raw_text"]:
        values["dataset"] = ""
    if old.get("format") not in (None, "", "None"):
        format_file = f"{old['format']}{FORMAT_FILE_SUFFIX}"
        if (folders.formats / format_file).is_file():
            values["data_format"] = format_file
        else:
            notes.append(
                f"Its data format '{old['format']}' is replaced by auto: to use it, upload {format_file} as a dataset."
            )
    return values, notes


def _data_file_name(folders: Folders, old_name: Any, suffixes: tuple[str, ...]) -> str:
    """The file in datasets/ that the old page named without its ending."""
    if old_name in (None, "", "None"):
        return ""
    for suffix in suffixes:
        if (folders.datasets / f"{old_name}{suffix}").is_file():
            return f"{old_name}{suffix}"
    return f"{old_name}{suffixes[0]}"


def _without_consent(settings: Settings) -> Copied:
    """To let a model's own code run is decided for each training anew."""
    if not settings.trust_remote_code:
        return Copied(settings)
    label = Settings.model_fields["trust_remote_code"].title
    note = f"'{label}' is not taken over: tick it again if you still trust the model's publisher."
    return Copied(settings.model_copy(update={"trust_remote_code": False}), [note])


def _from_adapter(folders: Folders, run: Run) -> tuple[dict[str, Any], list[str]]:
    """What an adapter_config.json of PEFT tells, of whichever method it is."""
    config = _read_json(run.folder / ADAPTER_CONFIG)
    kind = str(config.get("peft_type") or "LORA")
    values = {
        "name": run.name,
        "base_model": base_of(folders, run) if config.get("base_model_name_or_path") else None,
        "method": METHODS.get(kind),
        "lora_rank": config.get("r"),
        "lora_alpha": config.get("lora_alpha", config.get("alpha")),
        "lora_dropout": config.get("lora_dropout", config.get("vera_dropout", config.get("rank_dropout"))),
        "rank_stabilized": config.get("use_rslora"),
        "dora": config.get("use_dora"),
        "initialization": _initialization(config.get("init_lora_weights")),
        "virtual_tokens": config.get("num_virtual_tokens"),
        "layer_range": _layer_range(config.get("layers_to_transform")),
        "rank_pattern": _pattern(config.get("rank_pattern")),
        "alpha_pattern": _pattern(config.get("alpha_pattern")),
        "train_fully": config.get("modules_to_save"),
        **_target_modules(config.get("target_modules")),
    }
    notes = [] if kind in METHODS else [f"Its method, {kind}, is none of Graft's: LoRA takes its place."]
    return {name: value for name, value in values.items() if value not in (None, "")}, notes


def _initialization(told: Any) -> str | None:
    """Graft's name for it; PEFT writes a number of rounds behind PiSSA's."""
    by_name = {name.lower(): name for name in get_args(Initialization)}
    return by_name.get(str(told).lower().split("_")[0])


def _target_modules(told: Any) -> dict[str, Any]:
    """Names are ticks, in the order of the alphabet because PEFT keeps none; a text is a regular expression."""
    if isinstance(told, str) and told and told != ALL_LINEAR:
        return {"target_pattern": told}
    return {"target_modules": sorted(map(str, told)) if isinstance(told, list) and all(told) and told else [ALL_LINEAR]}


def _layer_range(told: Any) -> str:
    layers = [told] if isinstance(told, int) else told
    return ", ".join(map(str, layers)) if isinstance(layers, list) else ""


def _pattern(told: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in told.items()) if isinstance(told, dict) else ""


def _with_defaults_for_wrong(values: dict[str, Any], notes: list[str]) -> Copied:
    """Settings of another program may lie outside Graft's bounds: those take the default, and a note says so."""
    try:
        return Copied(parse(values), notes)
    except SettingsError as error:
        wrong = [name for name in error.problems if name in values]
        if not wrong:
            raise
        notes = [*notes, *(f"{problem} The default is used." for problem in error.problems.values())]
        return _with_defaults_for_wrong({k: v for k, v in values.items() if k not in wrong}, notes)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_small_json(path)
    except ValueError:
        raise UserError(f"The {path.name} of '{path.parent.name}' is damaged: it is not JSON.") from None
    if not isinstance(content, dict):
        raise UserError(f"The {path.name} of '{path.parent.name}' is damaged: it holds no settings.")
    return content
