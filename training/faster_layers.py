"""Has the layers of a model that is trained compute what they compute anyway, faster: LoRA layers, norms, gates.

Only the `forward` of single modules is exchanged, never a parameter or a name, so that PEFT saves what it always does.
Which layers read the same input, and whether a norm is the one we know, a trial of the model itself shows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt
from peft.tuners.lora.layer import Linear
from torch import nn
from transformers.activations import SiLUActivation
from transformers.pytorch_utils import Conv1D

from training.fused_layers import rms_norm, rotate, swiglu
from training.lora_function import LoraBranch, lora_outputs

_ADAPTER = "default"
_PLAIN = (Linear, Linear4bit, Linear8bitLt)  # of exactly these classes; those derived from them compute otherwise
_ROTATION = "apply_rotary_pos_emb"  # as every architecture of transformers calls it
_GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_TOLERANCE = 1e-5  # of the largest number of the result, in float32


class Exchanges:
    """What was exchanged, and what each module had in its place, beside what its class has."""

    def __init__(self) -> None:
        self._done: list[tuple[nn.Module, Any]] = []

    def put(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Have the module compute so from now on."""
        self._done.append((module, vars(module).get("forward")))
        module.forward = forward

    def undo(self) -> None:
        """Leave every module as it was found."""
        while self._done:
            module, before = self._done.pop()
            del module.forward
            if before is not None:
                module.forward = before


def make_faster(model: nn.Module, trial: Callable[[], object]) -> Exchanges:
    """Exchange what can be; `trial` runs a short text through the model."""
    exchanges = Exchanges()
    for layers in _groups(model, trial):
        group = _Group(layers)
        for place, layer in enumerate(layers):
            exchanges.put(layer, group.forward_of(place))
    for module in model.modules():
        faster = _faster_norm(module) or _faster_gate(module) or _faster_attention(module)
        if faster is not None:
            exchanges.put(module, faster)
    return exchanges


def _groups(model: nn.Module, trial: Callable[[], object]) -> list[list[LoraLayer]]:
    """The plain LoRA layers by the input they read, in the order in which they are called."""
    called: list[tuple[torch.Tensor, LoraLayer]] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        called.append((args[0], module))

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, LoraLayer) and _is_plain(m)]
    try:
        trial()
    finally:
        for hook in hooks:
            hook.remove()
    times: dict[int, int] = {}
    for _, module in called:
        times[id(module)] = times.get(id(module), 0) + 1
    groups: list[list[LoraLayer]] = []
    last: torch.Tensor | None = None
    for x, module in called:
        if times[id(module)] > 1:  # one that several layers share
            continue
        if x is last and _dropout(module) == _dropout(groups[-1][0]):
            groups[-1].append(module)
        else:
            groups.append([module])
        last = x
    return groups


def _is_plain(layer: LoraLayer) -> bool:
    """Whether it computes `base(x) + B A x * scale` and nothing else."""
    if type(layer) not in _PLAIN or layer.active_adapters != [_ADAPTER] or layer.merged or layer.disable_adapters:
        return False
    if _ADAPTER in layer.lora_variant or layer.lora_B[_ADAPTER].bias is not None:  # DoRA and its like
        return False
    return not any(p.requires_grad for p in layer.get_base_layer().parameters())


def _dropout(layer: LoraLayer) -> float:
    dropout = layer.lora_dropout[_ADAPTER]
    return dropout.p if isinstance(dropout, nn.Dropout) else 0.0


def _branch(layer: LoraLayer) -> LoraBranch:
    base = layer.get_base_layer()
    weight = bias = None
    if type(base) is nn.Linear:
        weight, bias = base.weight, base.bias
    elif type(base) is Conv1D:
        weight, bias = base.weight.t(), base.bias
    a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    return LoraBranch(weight, bias, a, b, layer.scaling[_ADAPTER])


@dataclass
class _Group:
    """LoRA layers that read the same input: the first that is called computes the results of all."""

    layers: list[LoraLayer]
    _input: torch.Tensor | None = None
    _results: dict[int, torch.Tensor] = field(default_factory=dict)

    def forward_of(self, place: int) -> Callable[..., torch.Tensor]:
        """What the layer at that place computes with from now on."""
        plain = self.layers[place].forward

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            layer = self.layers[place]
            of_adapter = layer.lora_A[_ADAPTER].weight.dtype
            # Off, or in types that only autocast brings together.
            is_mixed = x.dtype != of_adapter and not (x.is_meta or torch.is_autocast_enabled(x.device.type))
            if layer.disable_adapters or args or kwargs or is_mixed:
                return plain(x, *args, **kwargs)
            if self._input is not x or place not in self._results:
                self._compute(x)
            result = self._results.pop(place)
            if not self._results:
                self._input = None
            return result

        return forward

    def _compute(self, x: torch.Tensor) -> None:
        branches = [_branch(layer) for layer in self.layers]
        base = [one.base_layer(x) if b.weight is None else None for one, b in zip(self.layers, branches, strict=True)]
        first = self.layers[0]
        outputs = lora_outputs(x, branches, base, _dropout(first) if first.training else 0.0)
        self._input, self._results = x, dict(enumerate(outputs))


def _faster_norm(module: nn.Module) -> Callable[..., torch.Tensor] | None:
    """Norms with one weight and an epsilon, as most families have them under names of their own."""
    epsilon = vars(module).get("variance_epsilon", vars(module).get("eps"))
    weight = module._parameters.get("weight")
    if len(inspect.signature(type(module).forward).parameters) != 2:  # some take a gate besides
        return None
    if weight is None or weight.dim() != 1 or not isinstance(epsilon, float):
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, cast(torch.Tensor, module.weight), epsilon)

    return forward if _same(module, forward, len(weight)) else None


def _faster_gate(module: nn.Module) -> Callable[..., torch.Tensor] | None:
    """Feed-forward layers with a gate that goes through SiLU."""
    parts = module._modules
    if not _GATED - {"act_fn"} <= parts.keys():
        return None
    if type(parts.get("act_fn")) not in (nn.SiLU, SiLUActivation):
        return None
    # A trial would not show what happens in training alone, or to large numbers only.
    if not set(type(module).forward.__code__.co_names) <= _GATED:
        return None
    gate, up, down = (cast(nn.Module, parts[name]) for name in ("gate_proj", "up_proj", "down_proj"))

    def forward(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = down(swiglu(gate(x), up(x)))
        return result

    return forward if _same(module, forward, int(vars(gate)["in_features"])) else None


def _faster_attention(module: nn.Module) -> Callable[..., Any] | None:
    """Attention that turns queries and keys by their position with a function of its architecture's own."""
    own = type(module).forward
    if not isinstance(own, FunctionType) or _ROTATION not in own.__code__.co_names:
        return None
    plain = own.__globals__[_ROTATION]
    faster = _rotation(plain)
    q, k = (torch.linspace(-2, 3, 3 * heads * 8).sin().view(1, heads, 3, 8) for heads in (2, 1))
    angle = torch.linspace(0, 3, 3 * 8).view(1, 3, 8)
    try:
        before, now = plain(q, k, angle.cos(), angle.sin()), faster(q, k, angle.cos(), angle.sin())
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None  # it takes other arguments
    if not all(torch.allclose(a, b, rtol=0, atol=_TOLERANCE) for a, b in zip(before, now, strict=True)):
        return None
    # The same code, that finds the other function by that name; other models of this process keep theirs.
    forward = FunctionType(
        own.__code__, own.__globals__ | {_ROTATION: faster}, own.__name__, own.__defaults__, own.__closure__
    )
    forward.__kwdefaults__ = own.__kwdefaults__
    return MethodType(forward, module)


def _rotation(plain: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Callable[..., Any]:
    def rotation(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if cos.shape[-1] != q.shape[-1]:  # only a part of each head is turned
            return plain(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    return rotation


@torch.no_grad()
def _same(module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], features: int) -> bool:
    """Whether both give the same, up to rounding, of inputs with so many features."""
    parameter = next(module.parameters())
    # In the module's own type: what it multiplies by before it rounds is not told by another.
    dtype = parameter.dtype if parameter.dtype.is_floating_point else torch.float32
    x = torch.linspace(-2, 3, 4 * features, device=parameter.device).sin().view(1, 4, -1).to(dtype)
    try:
        before, now = module(x), forward(x)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
        return False
    if not isinstance(before, torch.Tensor) or before.dtype != now.dtype or before.shape != now.shape:
        return False
    if before.is_meta:
        return True
    tolerance = _TOLERANCE if x.dtype == torch.float32 else 2 * torch.finfo(x.dtype).eps
    return bool((before - now).abs().max() <= tolerance * before.abs().max())
