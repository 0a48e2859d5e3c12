"""Which base model is meant: a folder in models/ or a Hugging Face name, and whether it can be trained at all."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from training.errors import UserError
from training.paths import Folders

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
