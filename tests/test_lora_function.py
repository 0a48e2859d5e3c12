"""LoRA layers computed together give what PEFT's formula gives, in the result and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.lora_function import LoraBranch, _keep_mask, lora_outputs


def branches(dtype: torch.dtype, *, dense: bool = True, rank: int = 4) -> list[LoraBranch]:
    torch.manual_seed(0)
    return [
        LoraBranch(
            torch.randn(size, 24, dtype=dtype) if dense else None,
            torch.randn(size, dtype=dtype) if dense and size == 16 else None,
            nn.Parameter(torch.randn(rank + size // 8, 24, dtype=dtype)),
            nn.Parameter(torch.randn(size, rank + size // 8, dtype=dtype)),
            size / 16,
        )
        for size in (16, 8, 8)
    ]


def plain(x: torch.Tensor, group: list[LoraBranch], base: list[torch.Tensor | None]) -> list[torch.Tensor]:
    outputs = []
    for branch, given in zip(group, base, strict=True):
        first = given if branch.weight is None else nn.functional.linear(x, branch.weight, branch.bias)
        assert first is not None
        outputs.append(first + x @ branch.a.T @ branch.b.T * branch.scale)
    return outputs


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("needs_input", [True, False])
def test_results_and_gradients_are_those_of_the_formula(dense: bool, needs_input: bool) -> None:
    group = branches(torch.float64, dense=dense)
    x = torch.randn(2, 7, 24, dtype=torch.float64, requires_grad=needs_input)
    base = [None if dense else torch.randn(2, 7, len(b.b), dtype=torch.float64, requires_grad=True) for b in group]
    found, expected = lora_outputs(x, group, base, 0.0), plain(x, group, base)
    torch.testing.assert_close(list(found), expected)
    wanted = [*(b.a for b in group), *(b.b for b in group), *(t for t in (x, *base) if t is not None)]
    wanted = [tensor for tensor in wanted if tensor.requires_grad]
    directions = [torch.randn_like(tensor) for tensor in found]
    torch.testing.assert_close(
        torch.autograd.grad(found, wanted, directions), torch.autograd.grad(expected, wanted, directions)
    )


def test_a_result_may_be_changed_in_place() -> None:
    group = branches(torch.float32)
    x = torch.randn(5, 24)
    for output in lora_outputs(x, group, [None] * 3, 0.0):
        output.clamp_(-1, 1).sum().backward(retain_graph=True)
    assert all(branch.a.grad is not None for branch in group)


def test_autocast_decides_the_type_of_results_and_none_of_gradients() -> None:
    group = branches(torch.float32)
    x = torch.randn(5, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = lora_outputs(x, group, [None] * 3, 0.0)
    assert {output.dtype for output in found} == {torch.bfloat16}
    sum(output.float().sum() for output in found).backward()  # type: ignore[union-attr]
    assert x.grad is not None and x.grad.dtype == torch.float32
    expected = torch.autograd.grad(sum(o.sum() for o in plain(x, group, [None] * 3)), [b.a for b in group])  # type: ignore[type-var]
    for branch, gradient in zip(group, expected, strict=True):
        assert branch.a.grad is not None and branch.a.grad.dtype == torch.float32
        torch.testing.assert_close(branch.a.grad, gradient, rtol=0.05, atol=0.05 * float(gradient.abs().max()))


def test_dropout_leaves_out_the_same_share_forward_and_backward() -> None:
    torch.manual_seed(3)
    size = 2_000
    group = [
        LoraBranch(torch.zeros(1, size), None, nn.Parameter(torch.ones(1, size)), nn.Parameter(torch.ones(1, 1)), 1.0)
    ]
    x = torch.ones(1, size, requires_grad=True)
    (out,) = lora_outputs(x, group, [None], 0.25)
    out.sum().backward()
    assert x.grad is not None
    kept = x.grad != 0
    assert float(out.sum()) == pytest.approx(float(kept.sum()) / 0.75, rel=1e-5)
    assert abs(kept.float().mean() - 0.75) < 0.05
    torch.testing.assert_close(x.grad[kept], torch.full((int(kept.sum()),), 1 / 0.75))
    a = group[0].a.grad
    assert a is not None and torch.equal(a != 0, kept)


@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.5, 0.9])
def test_masks_keep_the_share_that_is_asked_for(dropout: float) -> None:
    torch.manual_seed(0)
    mask = _keep_mask(torch.empty(999, 1001), dropout)
    assert mask.dtype == torch.bool and mask.shape == (999, 1001)
    assert float(mask.float().mean()) == pytest.approx(1 - dropout, abs=0.002)
    neighbours = (mask[:, :-1] & mask[:, 1:]).float().mean()
    assert float(neighbours) == pytest.approx((1 - dropout) ** 2, abs=0.003)  # they know nothing of each other
    state = torch.get_rng_state()
    first = _keep_mask(torch.empty(7, 5), dropout)
    torch.set_rng_state(state)
    assert torch.equal(first, _keep_mask(torch.empty(7, 5), dropout))
