"""The loss in chunks is the loss at once, gradients included, and holds few logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training import head_loss
from training.head_loss import Head, loss_of_hidden


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("trained", [True, False])
def test_loss_and_gradients_are_those_of_all_logits_at_once(trained: bool, tokens: int, smoothing: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 50_000, dtype=torch.float64).requires_grad_(trained)
    hidden = torch.randn(tokens, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50_000, (tokens,))
    head = Head(layer, list(layer.parameters()) if trained else [], 50_000, "cpu")
    loss = loss_of_hidden(hidden, targets, head, smoothing)
    expected = F.cross_entropy(layer(hidden), targets, reduction="sum", label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    wanted = [hidden, *head.parameters]
    for found, right in zip(
        torch.autograd.grad(3 * loss, wanted), torch.autograd.grad(3 * expected, wanted), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=2e-5)
    with torch.no_grad():
        assert loss_of_hidden(hidden, targets, head, smoothing).item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_more_tokens_than_a_chunk_get_their_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_loss._NUMBERS_A_CHUNK, "cpu", 1000 * 70)
    seen = []
    weight = torch.randn(1000, 4)

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(hidden))
        return hidden @ weight.T

    hidden = torch.randn(150, 4, requires_grad=True)
    loss_of_hidden(hidden, torch.zeros(150, dtype=torch.long), Head(logits, [], 1000, "cpu")).backward()
    assert seen == [70, 70, 10]


def test_a_head_trained_under_autocast_gets_the_gradient_of_every_chunk() -> None:
    """Autocast keeps its short copy of a weight together with the graph of the first chunk."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 20_000, bias=False)
    hidden = torch.randn(200, 8, requires_grad=True)
    targets = torch.randint(0, 20_000, (200,))
    with torch.autocast("cpu", torch.bfloat16):
        layer(hidden)  # the copy is made
        loss_of_hidden(hidden, targets, Head(layer, [layer.weight], 20_000, "cpu")).backward()
    found = layer.weight.grad
    layer.weight.grad = None
    F.cross_entropy(layer(hidden), targets, reduction="sum").backward()
    assert found is not None and layer.weight.grad is not None
    assert (found - layer.weight.grad).norm() < 0.02 * layer.weight.grad.norm()
