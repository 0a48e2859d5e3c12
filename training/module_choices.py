"""What of a base model can be chosen: its layers by kind, and what can be trained whole beside an adapter."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedModel

from training.methods import embedding_names
from training.model_facts import CONFIG
from training.modules import ModuleKind, layer_count, module_kinds
from training.skeleton import skeleton


@dataclass(frozen=True)
class ModuleChoices:
    """The choices that a base model gives; `whole` are names of its embeddings, its head and its norms."""

    kinds: tuple[ModuleKind, ...]
    whole: tuple[str, ...]
    layers: int


def module_choices(source: str) -> ModuleChoices:
    """The choices of the model in a folder, from its config alone; raises UserError as `skeleton` does.

    A model's own code is never run for it.
    """
    return _choices(source, (Path(source) / CONFIG).stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _choices(source: str, _changed: int) -> ModuleChoices:
    model = skeleton(source)
    whole = dict.fromkeys([*embedding_names(model), *_norm_names(model)])
    return ModuleChoices(tuple(module_kinds(model)), tuple(whole), layer_count(model))


def _norm_names(model: PreTrainedModel) -> list[str]:
    """What ends the names of the norms of each kind, and of no other module."""
    last_parts = {full: full.rsplit(".", 1)[-1] for full, _ in model.named_modules()}
    norms = [full for full, module in model.named_modules() if "norm" in type(module).__name__.lower()]
    # PEFT looks at the end of a name only: "norm" alone would be "input_layernorm" too.
    unclear = {last for last in last_parts.values() if any(o != last and o.endswith(last) for o in last_parts.values())}
    counts = Counter(last_parts[full] for full in norms)
    return sorted(
        {
            full if (last := last_parts[full]) in unclear else last
            for full in norms
            if last_parts[full] not in unclear or counts[last_parts[full]] == 1
        }
    )
