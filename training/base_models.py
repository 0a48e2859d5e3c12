"""Which base model is meant: a folder in models/ or a Hugging Face name, and whether it can be trained at all."""

from __future__ import annotations

import os
import re
from pathlib import Path

from training.errors import UserError
from training.hub_cache import cache_folder, cached_model
from training.model_facts import CONFIG, ModelFacts, about, context_of, facts_of, read_config
from training.paths import Folders, lies_in, quoted
from training.settings import Settings
from training.trainable import why_not

_HUB_NAME = re.compile(r"[A-Za-z0-9]([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)  # and nothing that only looks like it


def is_hub_name(name: str) -> bool:
    """Whether `name` is written as the Hub's names are: org/model."""
    return bool(_HUB_NAME.fullmatch(name)) and ".." not in name


def locate_base_model(folders: Folders, name: str, *, run_code: bool = False) -> str:
    """The path of the folder `name` in models/, or of the model `name` in the Hugging Face cache.

    A Hub name of which not everything is in the cache is returned as it is: it has to be downloaded first. Raises
    UserError for what is neither, and for what cannot be trained; `run_code` says that the model's own code may run.
    """
    found = _find(folders, name.strip())
    if found is None:
        return name.strip()
    path, facts = found
    if reason := why_not(facts, run_code=run_code):
        raise UserError(f"Base model: {reason}")
    return str(path.resolve())


def local_base_model(folders: Folders, name: str, *, run_code: bool = False) -> str:
    """The same for those who cannot wait for a download; raises UserError also for a model that is not here yet."""
    source = locate_base_model(folders, name, run_code=run_code)
    if source == name.strip():
        raise UserError(f"Base model: {source} is not on this computer yet: download it first, on the Training tab.")
    return source


def about_base_model(folders: Folders, name: str, *, run_code: bool = False) -> str:
    """One line on the model, or that it is not here yet; raises UserError as `locate_base_model` does."""
    found = _find(folders, name.strip())
    if found is None:
        return "Not on this computer yet: it is downloaded when the training starts, or now with the box below."
    if reason := why_not(found[1], run_code=run_code):
        raise UserError(f"Base model: {reason}")
    return about(found[1])


def _find(folders: Folders, name: str) -> tuple[Path, ModelFacts] | None:
    """The folder of a model and its facts; None for a Hub name that is not in the cache in whole."""
    if not name:
        raise UserError("Base model: choose one.")
    if name.lower().endswith((".gguf", ".ggml", ".bin", ".safetensors")):
        raise UserError(
            f"Base model: {quoted(name)} is a single file, and a GGUF file can be run but not trained: "
            "give the folder or the name of the original model on Hugging Face."
        )
    folder = folders.models / name
    # Not Path.is_dir, which raises for a name longer than the system allows.
    if lies_in(folder, folders.models) and os.path.isdir(folder):
        return folder, facts_of(folder)
    if is_hub_name(name):
        return cached_model(cache_folder(folders.hub_cache), name)
    raise UserError(
        f"Base model: there is no folder {quoted(name)} in {folders.models}: put the model's folder there, "
        "or type its Hugging Face name, such as org/model."
    )


def context_length(source: str) -> int | None:
    """Tokens that the model in a folder can read at once, where its config says so; for a Hub name nothing is known."""
    folder = Path(source)
    return context_of(read_config(folder, folder.name)) if (folder / CONFIG).is_file() else None


def cutoff_warning(settings: Settings, source: str) -> str:
    """A sentence where the cutoff is beyond what the model can read, else nothing."""
    context = context_length(source)
    if context is None or settings.cutoff_length <= context:
        return ""
    return (
        f"{settings.base_model} reads at most {context:,} tokens at once, so a cutoff of {settings.cutoff_length:,} "
        "asks too much of it: lower the cutoff."
    )
