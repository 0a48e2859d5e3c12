"""What PEFT's LoRA layers compute, in fewer and cheaper operations: same result, same parameters, same file.

Layers that read the same input, such as those for queries, keys and values, are computed together: one product for all
their A matrices, forward and backward, and one gradient for the input. Products with the rank's few rows are laid out
so that the few come first, which a processor does several times as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_SIXTEEN_BITS = 2**16


@dataclass(frozen=True)
class LoraBranch:
    """One layer of a group: its frozen weight of shape (out, in), or None where another module computes that part.

    A has shape (rank, in), B (out, rank); what the two add is multiplied by `scale`.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    a: nn.Parameter
    b: nn.Parameter
    scale: float


def lora_outputs(
    x: torch.Tensor, branches: Sequence[LoraBranch], base_outputs: Sequence[torch.Tensor | None], dropout: float
) -> tuple[torch.Tensor, ...]:
    """`x W^T + bias + scale * dropout(x) A^T B^T` for each branch; x and the results have shape (..., features).

    `base_outputs` holds the first part for the branches without a weight. All branches share one dropout mask.
    """
    plan = _Plan([b.weight for b in branches], [b.bias for b in branches], [b.scale for b in branches], dropout)
    outputs: tuple[torch.Tensor, ...] = _Lora.apply(
        x, plan, *base_outputs, *(b.a for b in branches), *(b.b for b in branches)
    )
    return outputs


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """What autocast computes matrix products of x in, or the type of x where it is off."""
    kind = x.device.type
    is_on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_on else x.dtype


@dataclass(frozen=True)
class _Plan:
    weights: list[torch.Tensor | None]
    biases: list[torch.Tensor | None]
    scales: list[float]
    dropout: float


class _Lora(torch.autograd.Function):
    """Keeps its input once for the whole group, the mask of the dropout, and the few rows that A makes of the input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, plan: _Plan, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = len(plan.scales)
        base_outputs, a, b = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        dtype = compute_dtype(x)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        mask = _keep_mask(rows, plan.dropout) if plan.dropout else None
        seen = rows if mask is None else rows * mask
        low = torch.cat(a).to(dtype) @ seen.t()
        outputs = []
        of_branches = zip(plan.weights, plan.biases, plan.scales, base_outputs, b, strict=True)
        for parts, low_rows in zip(of_branches, low.split([m.shape[0] for m in a]), strict=True):
            weight, bias, scale, output, up = parts
            scale /= 1 - plan.dropout
            # Not views, since a model may change what it gets in place.
            if weight is None:
                result = output.clone()
            else:
                result = F.linear(rows.view(x.shape), weight.to(dtype), None if bias is None else bias.to(dtype))
            of_rank = low_rows.t().to(result.dtype)
            result.view(-1, result.shape[-1]).addmm_(of_rank, up.to(result.dtype).t(), alpha=scale)
            outputs.append(result)
        ctx.save_for_backward(rows, low, mask, *a, *b)
        ctx.plan, ctx.shape, ctx.dtype = plan, x.shape, x.dtype
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        plan: _Plan = ctx.plan
        rows, low, mask, *factors = ctx.saved_tensors
        count, dtype = len(plan.scales), rows.dtype
        a, b = factors[:count], factors[count:]
        ranks = [m.shape[0] for m in a]
        low_gradient = torch.empty_like(low)
        of_b, of_rows = [], None
        for parts in zip(
            plan.weights, plan.scales, gradients, b, low.split(ranks), low_gradient.split(ranks), strict=True
        ):
            weight, scale, gradient, up, low_rows, out = parts
            scale /= 1 - plan.dropout
            flat = gradient.reshape(-1, gradient.shape[-1]).to(dtype)
            out.copy_((up.to(dtype).t() @ flat.t()).mul_(scale))
            of_b.append((low_rows @ flat).t().to(up.dtype).mul_(scale).contiguous())
            if ctx.needs_input_grad[0] and weight is not None:
                weight = weight.to(dtype)
                of_rows = flat @ weight if of_rows is None else of_rows.addmm_(flat, weight)
        of_a = (low_gradient @ (rows if mask is None else rows * mask)).to(a[0].dtype)
        if ctx.needs_input_grad[0]:
            of_rows = _add_low(of_rows, low_gradient, torch.cat(a).to(dtype), mask)
        of_x = None if of_rows is None else of_rows.view(ctx.shape).to(ctx.dtype)
        # What another module computed passes its gradient on as it came.
        of_base = [g if weight is None else None for g, weight in zip(gradients, plan.weights, strict=True)]
        return (of_x, None, *of_base, *of_a.split(ranks), *of_b)


def _add_low(
    of_rows: torch.Tensor | None, low_gradient: torch.Tensor, a: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Add the gradient that reaches the input through A."""
    if mask is not None:
        through = (low_gradient.t() @ a).mul_(mask)
        return through if of_rows is None else of_rows.add_(through)
    return low_gradient.t() @ a if of_rows is None else of_rows.addmm_(low_gradient.t(), a)


def _keep_mask(rows: torch.Tensor, dropout: float) -> torch.Tensor:
    """True where a number is kept, in the shape of `rows`; left out are a share of `dropout`."""
    if rows.device.type != "cpu":
        return torch.empty_like(rows, dtype=torch.bool).bernoulli_(1 - dropout)
    # Four draws of 16 bits from one random number: torch's own bernoulli takes four times as long as all this.
    numbers = torch.empty(-(-rows.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    lowest = round(dropout * _SIXTEEN_BITS) - _SIXTEEN_BITS // 2
    return (numbers.view(torch.int16)[: rows.numel()] >= lowest).view(rows.shape)
