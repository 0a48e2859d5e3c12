"""Layers between the matrix products, in fewer passes over memory, and with less kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`weight * x / sqrt(mean(x^2) + epsilon)` over the last dimension (Zhang and Sennrich, 2019)."""
    result: torch.Tensor = _RmsNorm.apply(x, weight, epsilon)
    return result


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` (Shazeer, 2020); keeps the two and nothing else."""
    result: torch.Tensor = _SwiGlu.apply(gate, up)
    return result


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`x * cos + (-x2, x1) * sin` with x1, x2 the halves of the last dimension (Su et al., 2021)."""
    result: torch.Tensor = _Rotation.apply(x, cos, sin)
    return result


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        factor = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return (x * factor).to(x.dtype).mul_(weight)  # in 32 bits, as a short factor would scale a whole token wrongly

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight, factor = ctx.saved_tensors
        normed = x * factor
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (gradients[0] * normed).flatten(0, -2).sum(0).to(weight.dtype)
        of_normed = (gradients[0] * weight).float()
        along = (of_normed * normed).mean(-1, keepdim=True)
        of_x = of_normed.addcmul_(normed, along, value=-1).mul_(factor)
        return of_x.to(x.dtype), of_weight, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        of_up = F.silu(gate).mul_(gradients[0])
        of_gate = gradients[0] * up
        return torch.ops.aten.silu_backward(of_gate, gate, grad_input=of_gate), of_up  # no memory beside the two


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        out = x * cos
        out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        out[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        gradient = gradients[0]
        half = gradient.shape[-1] // 2
        of_x = gradient * cos
        of_x[..., :half].addcmul_(gradient[..., half:], sin[..., half:])
        of_x[..., half:].addcmul_(gradient[..., :half], sin[..., :half], value=-1)
        return of_x, None, None
