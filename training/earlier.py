"""Trains on from an earlier adapter: on other data, from any checkpoint, at its rank or another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PromptLearningConfig,
    VeraConfig,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.adapters import earlier_adapter
from training.methods import attach, patterns, targets
from training.model import load_adapter, load_tokenizer
from training.paths import Folders
from training.runs import TOKENIZER_CONFIG
from training.settings import ALL_LINEAR, Settings

_NAME = "default"  # PEFT's for an adapter that was given none


def training_tokenizer(source: str, settings: Settings, folders: Folders) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with the tokens that the earlier adapter has besides, and the new ones.

    Raises UserError where there is none, or no such adapter.
    """
    tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
    added: list[str] = []
    earlier = earlier_adapter(folders, settings) if settings.start_from else None
    if earlier and (saved := tokenizer_folder(earlier)):
        known = tokenizer.get_vocab()
        theirs = load_tokenizer(str(saved), trust_remote_code=settings.trust_remote_code).get_vocab()
        added = sorted((token for token in theirs if token not in known), key=theirs.__getitem__)
    tokenizer.add_tokens([*added, *settings.new_tokens])
    return tokenizer


def tokenizer_folder(adapter: Path) -> Path | None:
    """Where the tokenizer of an adapter lies: beside it, or in the run where it is a checkpoint."""
    return next((f for f in (adapter, adapter.parent) if (f / TOKENIZER_CONFIG).is_file()), None)


def continue_adapter(base: PreTrainedModel, folder: Path, settings: Settings) -> tuple[PeftModel, list[str]]:
    """The adapter in `folder`, ready to be trained at the rank of the settings, and what the user should know of it.

    A higher rank leaves what the adapter does untouched; a lower one keeps the main directions of each layer's update,
    by its truncated singular value decomposition. `earlier_adapter` has looked before whether it can be continued.
    """
    config = PeftConfig.from_pretrained(str(folder))
    if isinstance(config, PromptLearningConfig):
        return _continued_prompts(base, folder, settings), []
    notes = _kept(config, base, settings)  # while the base has its own layers
    model = load_adapter(base, folder, trainable=True)
    if not isinstance(config, LoraConfig):
        return model, notes
    ranks = (config.r, config.lora_alpha, config.use_rslora, config.rank_pattern, config.alpha_pattern)
    if ranks == (
        settings.lora_rank,
        settings.lora_alpha,
        settings.rank_stabilized,
        patterns(settings.rank_pattern),
        patterns(settings.alpha_pattern),
    ):
        return model, notes
    notes.append(
        f"The earlier LoRA of rank {config.r} and alpha {config.lora_alpha} is continued at rank {settings.lora_rank} "
        f"and alpha {settings.lora_alpha}."
    )
    return _resized(model, config, settings), notes


def _continued_prompts(base: PreTrainedModel, folder: Path, settings: Settings) -> PeftModel:
    """Virtual tokens as they were left; PEFT would load them to be used only, not to be trained."""
    model = attach(base, settings)
    assert isinstance(model, PeftModel)
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    return model


def _kept(config: PeftConfig, base: PreTrainedModel, settings: Settings) -> list[str]:
    """A note on what an adapter keeps although the settings ask for something else."""
    asked = targets(base, settings)
    own: dict[str, tuple[object, object]] = {"modules": (config.target_modules, _as_set(asked))}
    if isinstance(config, LoraConfig | VeraConfig | LoHaConfig | LoKrConfig):
        own["layers"] = (config.layers_to_transform, settings.layers)
    if settings.train_fully:
        own["modules trained fully"] = (set(config.modules_to_save or ()), set(settings.train_fully))
    if isinstance(config, LoraConfig):
        own["DoRA"] = (config.use_dora, settings.dora)
        own["dropout"] = (config.lora_dropout, settings.lora_dropout)
    elif isinstance(config, VeraConfig | LoHaConfig | LoKrConfig):
        own["rank"] = (config.r, settings.lora_rank)
    differing = " and ".join(what for what, (its, wanted) in own.items() if its != wanted)
    if not differing:
        return []
    adapter = "LoRA" if isinstance(config, LoraConfig) else "adapter"
    return [f"The earlier {adapter} keeps its own {differing}, which the settings cannot change any more."]


@dataclass(frozen=True)
class _Update:
    """One layer's update, scaling included: `b` (outputs x rank) times `a` (rank x inputs); DoRA's lengths, if any."""

    a: torch.Tensor
    b: torch.Tensor
    magnitude: torch.Tensor | None


def _resized(model: PeftModel, config: LoraConfig, settings: Settings) -> PeftModel:
    updates = {name: _update(layer) for name, layer in _layers(model).items()}
    modules = config.target_modules
    same_places = {
        "target_modules": [ALL_LINEAR] if isinstance(modules, str) else sorted(modules or ()),
        "target_pattern": modules if isinstance(modules, str) else "",
        "layer_range": ", ".join(map(str, _as_list(config.layers_to_transform))),
        "dora": config.use_dora,
        "lora_dropout": config.lora_dropout,
    }
    resized = attach(model.unload(), settings.model_copy(update=same_places))
    assert isinstance(resized, PeftModel)
    for name, layer in _layers(resized).items():
        _take_over(layer, updates[name])
    return resized


@torch.no_grad()
def _take_over(layer: LoraLayer, update: _Update) -> None:
    """Give a new LoRA layer the update, or as much of it as its rank holds."""
    a, b, rank = update.a, update.b, layer.r[_NAME]
    if rank < a.shape[0]:
        # Of B A without ever forming it: the factors' own orthogonal parts go around a small matrix.
        q_b, r_b = torch.linalg.qr(b)
        q_a, r_a = torch.linalg.qr(a.T)
        u, values, v = torch.linalg.svd(r_b @ r_a.T)
        roots = values[:rank].sqrt()
        b, a = q_b @ u[:, :rank] * roots, (roots[:, None] * v[:rank]) @ q_a.T
    new_a, new_b = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    # Further rows of A stay random and those of B zero, as in a new LoRA: they add nothing yet.
    new_a[: a.shape[0]] = a.to(new_a)
    new_b.zero_()
    new_b[:, : b.shape[1]] = (b / layer.scaling[_NAME]).to(new_b)
    if update.magnitude is not None:
        layer.lora_magnitude_vector[_NAME].weight.copy_(update.magnitude)


def _update(layer: LoraLayer) -> _Update:
    a, b = layer.lora_A[_NAME].weight.detach().float(), layer.lora_B[_NAME].weight.detach().float()
    magnitude = layer.lora_magnitude_vector[_NAME].weight.detach() if layer.use_dora[_NAME] else None
    return _Update(a.clone(), b * layer.scaling[_NAME], magnitude)


def _layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _as_set(names: list[str] | str) -> set[str] | str:
    return names if isinstance(names, str) else set(names)


def _as_list(value: list[int] | int | None) -> list[int]:
    return [value] if isinstance(value, int) else value or []
