"""Adds an adapter to its base model for good: the sum is a base model of its own in models/."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig

from training.adapters import earlier_adapter
from training.earlier import tokenizer_folder
from training.errors import UserError
from training.model import fit_embeddings, load_adapter, load_base, load_tokenizer
from training.paths import Folders, safe_name
from training.settings import Precision, Settings


def merged_name(settings: Settings) -> str:
    """The name in models/ of the base with the adapter of `start_from` in it."""
    return safe_name(settings.start_from.replace("/", "-") + "-merged")


def merge(folders: Folders, source: str, settings: Settings) -> Path:
    """The merged model's folder; it is made if it is not there or older than the adapter.

    Raises UserError where the adapter is gone, is of another base, or of a kind that cannot be merged.
    """
    adapter = earlier_adapter(folders, settings)
    folder = folders.models / merged_name(settings)
    if folder.is_dir() and folder.stat().st_mtime >= adapter.stat().st_mtime:
        return folder
    config = AutoConfig.from_pretrained(source, trust_remote_code=settings.trust_remote_code)
    if "quantization_config" in config.to_dict():
        raise UserError(
            "Start from: the base model is stored quantized, and the sum would be rounded so coarsely that much of the "
            "LoRA is lost: continue it instead."
        )
    # In the type of the base's files, never quantized: the sum is rounded once, as its files are.
    precision: Precision = "32-bit" if config.dtype == torch.float32 else "16-bit"
    base = load_base(source, Settings(precision=precision, trust_remote_code=settings.trust_remote_code))
    tokenizer = load_tokenizer(str(tokenizer_folder(adapter) or source), trust_remote_code=settings.trust_remote_code)
    fit_embeddings(base, tokenizer)
    model = load_adapter(base, adapter)
    if model.peft_config["default"].is_prompt_learning:
        raise UserError("Start from: virtual tokens cannot be merged into a model: continue that adapter instead.")
    merged = model.merge_and_unload(safe_merge=True)
    partial = folders.models / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    merged.save_pretrained(str(partial))
    tokenizer.save_pretrained(str(partial))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder
