"""Has what a step keeps for its way back wait in main memory, so that it takes none of a GPU's."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from transformers import PreTrainedModel

from training.methods import TrainableModel

_WORTH_IT = 2**16  # bytes; a copy of fewer takes longer than it is good for


def offload_activations(model: TrainableModel, store: saved_tensors_hooks | None = None) -> None:
    """From now on put away what the model's body saves for its backward, but for weights and what is small.

    `store` puts it away and brings it back; without one it is torch's own, which copies to main memory.
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(causal, PreTrainedModel)
    # Not around the head too: a chunk of logits is gone before it would have been copied.
    body: nn.Module = causal.get_decoder()
    around = _Around(model, store or save_on_cpu(pin_memory=True))
    body.register_forward_pre_hook(around.begin)
    body.register_forward_hook(around.end, always_call=True)


class _Around:
    """What is done before and after a forward of the body."""

    def __init__(self, model: nn.Module, store: saved_tensors_hooks) -> None:
        self._store = store
        self._weights = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}
        self._open: list[saved_tensors_hooks] = []

    def begin(self, *_: object) -> None:
        hooks = saved_tensors_hooks(self._pack, self._unpack)
        hooks.__enter__()
        self._open.append(hooks)

    def end(self, *_: object) -> None:
        self._open.pop().__exit__()

    def _pack(self, tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        if id(storage) in self._weights or tensor.nbytes < _WORTH_IT:
            return tensor
        return self._store.pack_hook(tensor)

    def _unpack(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        brought: torch.Tensor = self._store.unpack_hook(packed)
        return brought
