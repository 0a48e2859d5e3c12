"""What weights, gradients and optimizers take: in memory as they are stored, and on the disk."""

from __future__ import annotations

import math

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from training.methods import CHANGES_BASE, TrainableModel
from training.settings import PROMPT_METHODS, Settings

BITS = (32, 16, 8, 4)
_BLOCK = 64  # weights that share a constant in 4-bit loading
_BLOCK_OF_CONSTANTS = 256  # constants that share one in double quantization
_TABLE = 256 * 4  # bytes: the values that 8 bits stand for
_FLOAT = 4  # bytes
_SMALLEST_IN_8_BITS = 4096  # numbers; bitsandbytes keeps the states of smaller tensors in 32 bits
_OPTIMIZER_BLOCK = 256
# How many numbers an optimizer remembers of each weight; those of adafactor are counted by themselves.
_STATES = {"adamw": 2, "ademamix": 3, "lion": 1, "rmsprop": 1, "adagrad": 1, "sgd": 0}


def packed_weights(model: PreTrainedModel, bits: int) -> list[torch.Tensor]:
    """Those that bitsandbytes packs when the model is loaded in so many bits: of linear layers, but not of the head."""
    if bits not in (8, 4):
        return []
    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or [])]
    return [
        module.weight
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept)
    ]


def base_bytes(model: PreTrainedModel, bits: int, *, double: bool) -> int:
    """The base model in memory, loaded in 32, 16, 8 or 4 bits; what is not packed is then in 16."""
    packed = {id(weight) for weight in packed_weights(model, bits)}
    size = _FLOAT if bits == 32 else 2
    weights = sum(
        packed_bytes(p.shape, bits, double=double) if id(p) in packed else p.numel() * size for p in model.parameters()
    )
    return weights + sum(b.numel() * b.element_size() for b in model.buffers())


def packed_bytes(shape: torch.Size, bits: int, *, double: bool) -> int:
    """A weight as bitsandbytes stores it, its constants included."""
    if bits == 8:
        return shape.numel() + shape[0] * _FLOAT
    blocks = math.ceil(shape.numel() / _BLOCK)
    constants = blocks * _FLOAT
    if double:
        constants = blocks + math.ceil(blocks / _BLOCK_OF_CONSTANTS) * _FLOAT + _TABLE
    return math.ceil(shape.numel() / 2) + constants


def trained_tensors(model: TrainableModel) -> list[torch.Tensor]:
    """What is trained, each once."""
    return [p for p in model.parameters() if p.requires_grad]


def optimizer_bytes(tensors: list[torch.Tensor], optimizer: str) -> int:
    """What the optimizer keeps of these between two steps."""
    return sum(_states_of(tensor.shape, optimizer) for tensor in tensors)


def _states_of(shape: torch.Size, optimizer: str) -> int:
    if optimizer == "adafactor":
        return _FLOAT * (_rows_and_columns(shape) if len(shape) > 1 else shape.numel())
    states = next(count for name, count in _STATES.items() if name in optimizer)
    if "8bit" not in optimizer or shape.numel() < _SMALLEST_IN_8_BITS:
        return _FLOAT * states * shape.numel()
    return states * (shape.numel() + math.ceil(shape.numel() / _OPTIMIZER_BLOCK) * _FLOAT)


def _rows_and_columns(shape: torch.Size) -> int:
    """The means that adafactor keeps in the place of all squares (Shazeer and Stern, 2018)."""
    return shape[:-1].numel() + (shape[:-2] + shape[-1:]).numel()


def step_bytes(tensors: list[torch.Tensor], optimizer: str, *, is_gpu: bool) -> int:
    """What a step of the optimizer, by its implementation, needs for a moment.

    Torch's own on a GPU work on all tensors at once.
    """
    if not tensors or optimizer == "adamw_torch_fused":  # its kernel needs no other tensors
        return 0
    is_torch = optimizer in ("adamw_torch", "rmsprop", "adagrad", "sgd")
    if is_gpu and is_torch:
        return sum(tensor.numel() for tensor in tensors) * _FLOAT
    temporaries = 4 if "8bit" in optimizer and not is_gpu else 2
    return temporaries * max(tensor.numel() for tensor in tensors) * _FLOAT


def saved_bytes(model: TrainableModel, settings: Settings) -> int:
    """What is trained as a file: the adapter, or the whole model after full fine-tuning."""
    if not isinstance(model, PeftModel):
        return sum(p.numel() for p in model.parameters()) * _FLOAT
    if settings.method in PROMPT_METHODS:  # the library can only write these down from real weights
        if settings.method == "P-tuning":  # what makes the vectors is left behind
            return settings.virtual_tokens * model.active_peft_config.token_dim * _FLOAT
        return sum(p.numel() for p in trained_tensors(model)) * _FLOAT
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    adapter = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    twice = settings.method == "LoRA" and settings.initialization in CHANGES_BASE
    return adapter * 2 if twice else adapter
