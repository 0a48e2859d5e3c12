"""LoRA layers for answering: what PEFT's compute, without what only a training needs, so that a token costs less.

For one token PEFT's own steps around each pair of small matrices take longer than the matrices. The base layer is
shared, never changed: nothing is merged.
"""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.nn import functional

_PLAIN = (Linear, Linear4bit, Linear8bitLt)  # of exactly these classes; those derived from them compute otherwise


class LoraForAnswers(nn.Module):
    """`base_layer(x) + x A^T B^T * scaling` for a layer that answers: no dropout, no gradient."""

    def __init__(self, base_layer: nn.Module, down: torch.Tensor, up: torch.Tensor) -> None:
        """`down` is A with shape (rank, in); `up` is B, scaled and transposed, with shape (rank, out)."""
        super().__init__()
        self.base_layer = base_layer
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.base_layer(x)
        down, up = self._buffers["down"], self._buffers["up"]  # past nn.Module's search, which takes as long as they do
        assert down is not None and up is not None
        low = functional.linear(x.to(down.dtype), down).flatten(0, -2)
        if result.dtype == down.dtype:
            return torch.addmm(result.flatten(0, -2), low, up).view(result.shape)
        return (result + (low @ up).view(result.shape)).to(result.dtype)


def for_answers(layer: nn.Module) -> nn.Module:
    """The layer for answering in the place of a LoRA layer of PEFT's, or the same layer where it is of another kind."""
    if not isinstance(layer, LoraLayer) or type(layer) not in _PLAIN or layer.merged or layer.disable_adapters:
        return layer
    if len(layer.active_adapters) != 1 or layer.active_adapters[0] not in layer.lora_A:
        return layer
    name = layer.active_adapters[0]
    a, b = layer.lora_A[name], layer.lora_B[name]
    if name in layer.lora_variant or b.bias is not None:  # DoRA and its like
        return layer
    up = (b.weight.detach() * layer.scaling[name]).T.contiguous()
    return LoraForAnswers(layer.base_layer, a.weight.detach(), up)
