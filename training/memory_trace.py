"""What a training step keeps in memory besides the weights: the step run on a model without weights, and counted.

On torch's meta device nothing is computed and nothing is allocated, but every operation is there, of whatever family
the model is: what autograd keeps, what checkpointing drops, logits and their gradients. Only what the device decides
is told here: attention by a fused kernel, autocast, quantized layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from training.allocator import taken_on_heap
from training.batches import PackedRow, PaddedRows
from training.device_rules import Device, DeviceRules
from training.loss import ExampleLoss
from training.methods import TrainableModel
from training.packing import Packing

# Where what is offloaded waits: it is counted no more until it is brought back.
ELSEWHERE = saved_tensors_hooks(
    lambda tensor: (tensor.shape, tensor.dtype),
    lambda kept: torch.empty(kept[0], dtype=kept[1], device="meta"),
)


@dataclass
class Micro:
    """The micro-batch of a step: examples, tokens of each, and whether gradients are there already."""

    examples: int
    tokens: int
    accumulates: bool = False


def loss_on(model: TrainableModel, device: Device, smoothing: float = 0.0) -> ExampleLoss:
    """What a model without weights computes its loss with, as it would on that device."""
    with DeviceRules(device):
        return ExampleLoss(model, 0, device.compute, smoothing, "cuda" if device.is_gpu else "cpu")


def step_peak(
    model: TrainableModel, loss: ExampleLoss, layers: Sequence[nn.Module], micro: Micro, device: Device
) -> int:
    """The most bytes that a forward and backward of this model on the meta device holds beside its weights.

    Gradients are among them. Of `layers` that are alike only the first two and the last are run; those between hold
    what the second one held.
    """
    model.train()
    live, rules = _LiveBytes(model, taken=int if device.is_gpu else taken_on_heap), DeviceRules(device)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if base.is_activation_checkpointing:  # again, so that the rules hold for what is computed a second time, too
        base.activation_checkpointing_enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), rules)})
    stand_ins = _StandIns(layers, live)
    try:
        with live:
            if micro.accumulates:
                _give_gradients(model)
            with rules:
                _forward_and_backward(loss, micro, rules)
        return live.peak
    finally:
        stand_ins.remove()
        for parameter in model.parameters():
            parameter.grad = None


def _forward_and_backward(loss: ExampleLoss, micro: Micro, rules: DeviceRules) -> None:
    """As training.trainer does it, with every token trained and examples of equal length."""
    places = torch.zeros(micro.examples * (micro.tokens - 1), dtype=torch.long, device="meta")
    shape = (micro.examples, micro.tokens) if loss.why_padded else (1, micro.examples * micro.tokens)
    ids, others = (torch.ones(shape, dtype=torch.long, device="meta") for _ in range(2))
    with rules.autocast():
        if loss.why_padded:
            total = loss.of_rows(PaddedRows(ids, others, places, places))
        else:
            packing = Packing((micro.tokens,) * micro.examples)
            total = loss.of_row(PackedRow(ids, others, places, places, packing))
    total.backward()


def _give_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made under it that still live; not those of the model, or views of it.

    `taken` tells how many a block of a tensor's bytes takes.
    """

    def __init__(self, model: nn.Module, taken: Callable[[int], int]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._taken = taken
        self._known: dict[int, weakref.ref[Any]] = {}
        self._own = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self._add(storage, self._taken(storage.nbytes()))
        return out

    def held(self, size: int) -> torch.Tensor:
        """A tensor that counts as so many bytes, taken for more blocks than one."""
        taken, self._taken = self._taken, int
        try:
            return torch.empty(size, dtype=torch.uint8, device="meta")
        finally:
            self._taken = taken

    def _add(self, storage: torch.UntypedStorage, size: int) -> None:
        key = id(storage)
        if key in self._known or key in self._own or not size:
            return

        def gone(_: object) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class _StandIns:
    """Has most of the layers that are alike only hold what one of them held, so that large models take no longer."""

    def __init__(self, layers: Sequence[nn.Module], live: _LiveBytes) -> None:
        self._layers, self._live = layers, live
        self._entries: dict[int, int] = {}
        kinds: dict[Any, list[int]] = {}
        for number, layer in enumerate(self._layers):
            kinds.setdefault(_kind(layer), []).append(number)
        for numbers in kinds.values():
            for number in numbers:
                layer = self._layers[number]
                second = numbers[1] if 1 < numbers.index(number) < len(numbers) - 1 else None
                layer.forward = self._stand_in(number, second) if second is not None else self._recorded(number)

    def remove(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._layers:
            del layer.forward

    def _recorded(self, number: int) -> Callable[..., Any]:
        layer = self._layers[number]
        real = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._entries.setdefault(number, self._live.now)
            result = real(*args, **kwargs)
            self._shape_of_result = None if isinstance(result, torch.Tensor) else len(result)
            return result

        return forward

    def _stand_in(self, number: int, second: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._entries.setdefault(number, self._live.now)
            held = max(0, self._entries[second + 1] - self._entries[second])
            hidden = args[0] if args else kwargs["hidden_states"]
            out = _StandIn.apply(hidden, self._layers[number], self._live.held(held))
            return out if self._shape_of_result is None else (out, *[None] * (self._shape_of_result - 1))

        return forward


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, layer: nn.Module, held: torch.Tensor) -> torch.Tensor:
        ctx.held = held
        ctx.layer = layer
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        ctx.held = None
        _give_gradients(ctx.layer)
        return torch.empty_like(grads[0]), None, None


def _kind(layer: nn.Module) -> Any:
    """Layers of the same kind hold the same."""
    return tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters())
