"""What a device does otherwise than torch's meta device, for counting: autocast, fused attention, packed weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

_MATRIX_PRODUCTS: set[Any] = {
    F.linear,
    F.conv1d,
    torch.conv1d,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    torch.addmm,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.bmm,
    torch.Tensor.baddbmm,
    torch.mm,
    torch.Tensor.mm,
}
# What autocast computes in 32 bits on a GPU, and leaves as it is on a processor.
_LONG_ON_GPU = {F.layer_norm, F.softmax, torch.softmax, torch.Tensor.softmax, torch.pow, torch.Tensor.pow}
_PRODUCTS_WITH_WEIGHT = {torch.Tensor.__matmul__, torch.Tensor.matmul, torch.Tensor.addmm_}
_GROUPED_PRODUCTS: set[Any] = {F.grouped_mm, torch._grouped_mm}
SHORT = (torch.bfloat16, torch.float16)


@dataclass
class Device:
    """How the device computes: `compute` is what autocast computes in, float32 where there is no autocast."""

    is_gpu: bool
    compute: torch.dtype
    quantized: dict[int, int] = field(default_factory=dict)  # bits by id of the weight


class DeviceRules(TorchFunctionMode):
    """Answers for the device where an operation would do something else on it than on the meta device."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self._autocast = device.compute in SHORT
        self._casts: dict[int, torch.Tensor] | None = None

    def autocast(self) -> _CastCache:
        """Within it the 16-bit copy of a weight is made once and kept, as autocast does."""
        return _CastCache(self)

    def use_cache(self, cache: dict[int, torch.Tensor] | None) -> None:
        """From now on keep copies of weights in `cache`, or nowhere."""
        self._casts = cache

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.__bool__, torch.Tensor.__contains__) and args[0].is_meta:
            return False  # "is every token real?", "is all of it one text?": not so
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func in (F.linear, torch.addmm):
            weight = args[1] if func is F.linear else args[2]
            if bits := self.device.quantized.get(id(weight)):
                return self._quantized(args[0] if func is F.linear else args[1], weight, bits, func is F.linear)
        if func in _PRODUCTS_WITH_WEIGHT and id(args[-1]) in self.device.quantized:
            unpacked = args[0].new_empty(args[-1].shape)  # for as long as the product takes
            result = func(*args, **kwargs)
            del unpacked
            return result
        if func in _GROUPED_PRODUCTS:
            return _GroupedProduct.apply(args[0], args[1])
        if func is F.dropout and self.device.is_gpu:
            return _dropout_on_gpu(*args, **kwargs)
        if self._autocast and func in _MATRIX_PRODUCTS:
            args = tuple(self._short(value) for value in args)
            kwargs = {name: self._short(value) for name, value in kwargs.items()}
        elif self._autocast and self.device.is_gpu and func in _LONG_ON_GPU:
            args = tuple(v.float() if isinstance(v, torch.Tensor) and v.dtype in SHORT else v for v in args)
        return func(*args, **kwargs)

    def _short(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        # Leaves are not enough: a view made within an autograd function is one, and its id another's soon.
        if self._casts is None or not (isinstance(value, nn.Parameter) and value.requires_grad):
            return value.to(self.device.compute)
        if id(value) not in self._casts:
            self._casts[id(value)] = value.to(self.device.compute)
        return self._casts[id(value)]

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **others: Any,
    ) -> torch.Tensor:
        if self._autocast:
            query, key, value = self._short(query), self._short(key), self._short(value)
        if not self.device.is_gpu and dropout_p > 0:  # the processor's fused kernel knows no dropout
            return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **others)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.empty_like(attn_mask, dtype=query.dtype)  # every layer makes its own of numbers
        result: torch.Tensor = _FusedAttention.apply(query, key, value, attn_mask)
        return result

    def _quantized(self, x: torch.Tensor, weight: torch.Tensor, bits: int, is_linear: bool) -> torch.Tensor:
        outputs = weight.shape[0] if is_linear else weight.shape[1]
        dtype = x.dtype
        if bits == 4:
            x = x.to(self.device.compute)
        result: torch.Tensor = _QuantizedLinear.apply(x, weight.shape, outputs, bits == 8)
        return result.to(dtype)


class _CastCache:
    def __init__(self, rules: DeviceRules) -> None:
        self._rules = rules

    def __enter__(self) -> None:
        self._rules.use_cache({})

    def __exit__(self, *_: object) -> None:
        self._rules.use_cache(None)


def _dropout_on_gpu(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """The GPU's kernel keeps a byte for each number, not a factor."""
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


class _FusedAttention(torch.autograd.Function):
    """Attention that keeps no scores: what it keeps is its inputs, its output and one number for each query."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        examples, heads, tokens, _ = query.shape
        # Its output lies in memory as the layer after it wants it.
        out = query.new_empty((examples, tokens, heads, value.shape[-1])).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums, mask)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


class _QuantizedLinear(torch.autograd.Function):
    """A layer of bitsandbytes: unpacks its weight for each product; in 8 bits it keeps its input too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: torch.Size, outputs: int, keeps_input: bool) -> torch.Tensor:
        ctx.shapes, ctx.kept = (shape, x.shape), x if keeps_input else None
        unpacked = x.new_empty(shape)
        out = x.new_empty((*x.shape[:-1], outputs))
        del unpacked
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        weight_shape, input_shape = ctx.shapes
        unpacked = grads[0].new_empty(weight_shape)
        out = grads[0].new_empty(input_shape)
        del unpacked
        ctx.kept = None
        return out, None, None, None


class _GroupedProduct(torch.autograd.Function):
    """The experts' product of a mixture of experts, whose shapes are told by no values."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, weights)
        return rows.new_empty((rows.shape[0], weights.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        rows, weights = ctx.saved_tensors
        return torch.empty_like(rows), torch.empty_like(weights) if ctx.needs_input_grad[1] else None
