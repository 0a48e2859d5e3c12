"""What a checkpoint is made of, as it was at one step, so that it can be written while the training goes on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

from training.progress import Progress

_SHARE_OF_FREE_MEMORY = 0.25  # the next steps may need more than the last ones did
_NEVER_CHANGES = (int, float, str, type(None))  # random states have thousands, and to copy each would take a while


@dataclass(frozen=True)
class Snapshot:
    """A `Resumable.state()`, the progress, and the model's weights by their names."""

    state: dict[str, Any]
    progress: Progress
    weights: dict[str, torch.Tensor] | None = None  # None: nothing is a copy, and the training has to wait

    @property
    def is_copy(self) -> bool:
        """Whether the training may change the model and the optimizer before this is written."""
        return self.weights is not None


def copy_of(model: nn.Module, state: dict[str, Any], progress: Progress) -> Snapshot:
    """Copies, in main memory, of all that training changes; what it leaves as it is, is only referred to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # of memory that both sides use, a copy would not wait for the step
    weights: dict[str, torch.Tensor] = {
        name: parameter.detach().to("cpu", copy=True) if parameter.requires_grad else parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    weights.update(model.named_buffers(remove_duplicate=False))
    return Snapshot(_copied(state, {}), copy.deepcopy(progress), weights)


def may_be_copied(model: nn.Module, state: dict[str, Any]) -> bool:
    """Whether main memory surely has room for `copy_of` what is trained."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    needed = trained + _bytes_of_tensors(state)
    return needed < _SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available


def _bytes_of_tensors(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes_of_tensors, value.values()))
    return sum(map(_bytes_of_tensors, value)) if isinstance(value, list | tuple) else 0


def _copied(value: Any, made: dict[int, torch.Tensor]) -> Any:
    """The same with copies of its tensors; one that several parameters share, as quantized states do, stays one."""
    if isinstance(value, torch.Tensor):
        if id(value) not in made:
            made[id(value)] = value.detach().to("cpu", copy=True)
        return made[id(value)]
    if isinstance(value, dict):
        return {key: _copied(item, made) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)([_copied(item, made) for item in value])
    return value if isinstance(value, _NEVER_CHANGES) else copy.deepcopy(value)
