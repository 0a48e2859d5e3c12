"""Which base model is meant: a folder in models/ or a Hugging Face name, and whether it can be trained at all."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from training.errors import UserError
from training.paths import Folders
from training.settings import Settings

_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")  # in configs of different families
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def locate_base_model(folders: Folders, name: str) -> str:
    """The path of the folder `name` in models/, or `name` itself when it is a Hub name; raises UserError if neither."""
    name = name.strip()
    if not name:
        raise UserError("Base model: choose one.")
    if name.lower().endswith((".gguf", ".ggml", ".bin", ".safetensors")):
        raise UserError(
            f"Base model: '{name}' is a single file, and a GGUF file can be run but not trained: "
            "give the folder or the name of the original model on Hugging Face."
        )
    folder = folders.models / name
    # Not Path.is_dir, which raises for a name longer than the system allows.
    if os.path.isdir(folder) and folder.resolve().is_relative_to(folders.models.resolve()):
        _check_folder(folder)
        return str(folder.resolve())
    if _HUB_NAME.fullmatch(name):
        return name
    raise UserError(
        f"Base model: there is no folder '{name}' in {folders.models}. Put the model's folder there, "
        "or type its Hugging Face name, such as org/model."
    )


def context_length(source: str) -> int | None:
    """Tokens that the model in a folder can read at once, where its config says so; for a Hub name nothing is known."""
    config = Path(source) / "config.json"
    if not config.is_file():
        return None
    values = json.loads(config.read_text(encoding="utf-8"))
    values = values | values.get("text_config", {})
    return next((int(values[name]) for name in _CONTEXT_NAMES if values.get(name)), None)


def cutoff_warning(settings: Settings, source: str) -> str:
    """A sentence where the cutoff is beyond what the model can read, else nothing."""
    context = context_length(source)
    if context is None or settings.cutoff_length <= context:
        return ""
    return (
        f"{settings.base_model} reads at most {context:,} tokens at once, so a cutoff of {settings.cutoff_length:,} "
        "asks too much of it: lower the cutoff."
    )


def _check_folder(folder: Path) -> None:
    """Raise UserError for a folder that is no trainable Hugging Face model."""
    config = folder / "config.json"
    if not config.is_file():
        if any(folder.glob("*.gguf")):
            raise UserError(
                f"Base model: '{folder.name}' holds a GGUF file, which is for running and cannot be trained. "
                "Get the original Hugging Face folder of that model."
            )
        raise UserError(
            f"Base model: the folder '{folder.name}' has no config.json, so it is not a Hugging Face model."
        )
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"Base model: the config.json of '{folder.name}' is damaged; copy the model again.") from None
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"Base model: '{folder.name}' has no .safetensors weights. "
            "Only these are loaded, because other kinds can run code."
        )
