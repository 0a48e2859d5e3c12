"""Adds an adapter to its base model for good: the sum is a base model of its own in models/."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from transformers import AutoConfig

from training.adapters import earlier_adapter
from training.checkpoint_files import check_room, whole_folder
from training.earlier import tokenizer_folder
from training.errors import UserError
from training.json_files import read_small_json
from training.model import fit_embeddings, load_adapter, load_base, load_tokenizer
from training.paths import MAX_NAME_LENGTH, Folders, free_path, safe_name
from training.runs import ADAPTER_WEIGHTS
from training.settings import Settings

_ORIGIN = "merged_from.json"
_SUFFIX = "-merged"
_ROOM = 8  # letters left free for a number behind the name


def merge(folders: Folders, source: str, settings: Settings) -> Path:
    """The folder in models/ of the base with the adapter of `start_from` in it; one made before is taken again.

    Raises UserError where the adapter is gone or of another base, and where the base is stored quantized.
    """
    adapter = earlier_adapter(folders, settings)
    config = AutoConfig.from_pretrained(source, trust_remote_code=settings.trust_remote_code)
    if "quantization_config" in config.to_dict():
        raise UserError(
            "Start from: the base model is stored quantized, and the sum would be rounded so coarsely that much of the "
            "LoRA is lost: continue it instead."
        )
    weights = hashlib.sha256((adapter / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    origin = {"base_model": settings.base_model, "adapter": settings.start_from, "sha256": weights}
    if (made := _made_before(folders, origin)) is not None:
        return made
    # Whole numbers are added up, and the sum is rounded once, to the type of the base's files.
    whole = Settings(precision="32-bit", trust_remote_code=settings.trust_remote_code)
    base = load_base(source, whole)
    tokenizer = load_tokenizer(str(tokenizer_folder(adapter) or source), trust_remote_code=settings.trust_remote_code)
    fit_embeddings(base, tokenizer)
    merged = load_adapter(base, adapter).merge_and_unload(safe_merge=True).to(config.dtype or torch.float32)
    check_room(folders.models, sum(p.numel() * p.element_size() for p in merged.parameters()))
    folder = free_path(folders.models / _name(settings))
    with whole_folder(folder) as partial:
        merged.save_pretrained(str(partial))
        tokenizer.save_pretrained(str(partial))
        (partial / _ORIGIN).write_text(json.dumps(origin, indent=2), encoding="utf-8")
    return folder


def _name(settings: Settings) -> str:
    name = settings.start_from.replace("/", "-").encode()[: MAX_NAME_LENGTH - len(_SUFFIX) - _ROOM]
    return safe_name(name.decode(errors="ignore") + _SUFFIX)


def _made_before(folders: Folders, origin: dict[str, str]) -> Path | None:
    """The merged model of this very base and adapter, if it is there."""
    for file in folders.models.glob(f"*/{_ORIGIN}"):
        try:
            if read_small_json(file) == origin:
                return file.parent
        except ValueError:
            continue  # damaged: it is made anew
    return None
