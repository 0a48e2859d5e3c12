"""Which layers of a model an adapter can be put on, by kind: read off the model itself, whatever its family."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_EXPERT_DIMENSIONS = 3  # experts, outputs, inputs
Part = Literal["attention", "feed-forward", "other"]
_ATTENTION = ("attn", "attention", "mixer")
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "fc1", "fc2", "expert", "moe")
# What a feed-forward part ends with, in the families that PEFT knows.
_DOWN = ("down_proj", "fc2", "dense_4h_to_h", "c_proj", "w2", "wo", "fc_out")
# State-space models take the weights of these layers without calling them, always or at times: an adapter on them would
# have no effect, and quantized they could not be read. PEFT refuses the first two as well.
_OFTEN_NOT_CALLED = ("out_proj", "conv1d")
NEVER_CALLED = {
    "mamba": (*_OFTEN_NOT_CALLED, "dt_proj"),
    "mamba2": _OFTEN_NOT_CALLED,
    "falcon_mamba": (*_OFTEN_NOT_CALLED, "dt_proj"),
    "falcon_h1": _OFTEN_NOT_CALLED,
    "nemotron_h": _OFTEN_NOT_CALLED,
    "jamba": ("dt_proj",),
}


@dataclass(frozen=True)
class ModuleKind:
    """Linear layers of one name: `name` is what ends the full name of each of the `count`, and of no other layer."""

    name: str
    part: Part
    count: int
    parameters: int  # of all of them

    @property
    def goes_down(self) -> bool:
        """Whether it leads from the wide middle of a feed-forward part back to the model's width."""
        return self.part == "feed-forward" and self.name.split(".")[-1] in _DOWN


def module_kinds(model: PreTrainedModel) -> list[ModuleKind]:
    """The linear layers by kind, in the order in which the model has them; its head is none of them."""
    layers = _linear_layers(model)
    parts: dict[str, set[Part]] = {}
    for full in layers:
        parts.setdefault(_last(full), set()).add(_part(full))
    names = {full: full if len(parts[_last(full)]) == 1 else ".".join(full.split(".")[-2:]) for full in layers}
    names = {full: _last(name) if name == full else name for full, name in names.items()}
    counts = Counter(names.values())
    sizes: Counter[str] = Counter()
    for full, layer in layers.items():
        sizes[names[full]] += layer.weight.numel()
    kinds = {name: ModuleKind(name, _part(full), counts[name], sizes[name]) for full, name in names.items()}
    return list(kinds.values())


def linear_sizes(model: PreTrainedModel) -> list[tuple[str, int, int]]:
    """Each single one of these layers: its full name, its inputs and its outputs."""
    sizes = []
    for name, layer in _linear_layers(model).items():
        rows, columns = layer.weight.shape
        # A Conv1D keeps its weight the other way round.
        sizes.append((name, rows, columns) if isinstance(layer, Conv1D) else (name, columns, rows))
    return sizes


def layer_count(model: PreTrainedModel) -> int:
    """How many layers, or blocks, the model has."""
    return int(model.config.get_text_config().num_hidden_layers)


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    head, never = model.get_output_embeddings(), NEVER_CALLED.get(model.config.model_type, ())
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and _last(name) not in never
    }


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _part(full_name: str) -> Part:
    if any(word in full_name for word in _ATTENTION):
        return "attention"
    return "feed-forward" if any(word in full_name for word in _FEED_FORWARD) else "other"


def has_fused_experts(model: nn.Module) -> bool:
    """Whether the experts of a mixture lie in one parameter, which no adapter here is put on and nothing quantizes."""
    return any("expert" in name and p.dim() == _EXPERT_DIMENSIONS for name, p in model.named_parameters())
