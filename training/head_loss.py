"""The loss from hidden states: logits are made for trained tokens only, a few at a time, and never kept.

Vocabulary times tokens is the largest tensor of a training where it is held whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

# Logits at once: what a processor's cache holds, or keeps a GPU busy.
_NUMBERS_A_CHUNK = {"cpu": 2**20, "cuda": 2**25}
_FEWEST_TOKENS = 64  # of a chunk: products with fewer rows are inefficient


@dataclass(frozen=True)
class Head:
    """What makes logits (tokens, vocabulary) of hidden states (tokens, features), and what of it is trained."""

    logits: Callable[[torch.Tensor], torch.Tensor]
    parameters: Sequence[torch.Tensor]
    vocabulary: int
    device: str  # "cpu" or "cuda": where it computes

    @property
    def tokens_a_chunk(self) -> int:
        """How many tokens get their logits at once."""
        return max(_FEWEST_TOKENS, _NUMBERS_A_CHUNK[self.device] // self.vocabulary)


def loss_of_hidden(hidden: torch.Tensor, targets: torch.Tensor, head: Head, smoothing: float = 0.0) -> torch.Tensor:
    """Cross entropy summed over the tokens, in nats: hidden (tokens, features), targets (tokens), all of them trained.

    Gradients are computed along with the loss, so that no chunk of logits outlives its own turn.
    """
    chunks = _Chunks(head, targets, smoothing)
    if not torch.is_grad_enabled():
        return sum(
            (chunks.loss(part, place) for part, place in chunks.of(hidden)), hidden.new_zeros((), dtype=torch.float32)
        )
    loss: torch.Tensor = _HeadLoss.apply(hidden, chunks, *head.parameters)
    return loss


class _Chunks:
    def __init__(self, head: Head, targets: torch.Tensor, smoothing: float) -> None:
        self._head, self._targets, self._smoothing = head, targets, smoothing
        self._tokens = head.tokens_a_chunk

    def of(self, hidden: torch.Tensor) -> list[tuple[torch.Tensor, int]]:
        """Its parts, each with its place in the order."""
        return [(part, number) for number, part in enumerate(hidden.split(self._tokens))]

    def loss(self, part: torch.Tensor, place: int) -> torch.Tensor:
        """Of the part at that place."""
        targets = self._targets[place * self._tokens :][: len(part)]
        logits = self._head.logits(part).float()
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=self._smoothing)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, chunks: _Chunks, *parameters: torch.Tensor) -> torch.Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        of_hidden, of_parameters = [], [torch.zeros_like(p) for p in parameters]
        wanted = ctx.needs_input_grad[0]
        for part, place in chunks.of(hidden):
            with torch.enable_grad(), _uncached():
                inputs = part.detach().requires_grad_(wanted)
                loss = chunks.loss(inputs, place)
            gradients = torch.autograd.grad(loss, [inputs, *parameters] if wanted else parameters)
            if wanted:
                of_hidden.append(gradients[0])
            for sum_so_far, gradient in zip(of_parameters, gradients[wanted:], strict=True):
                sum_so_far += gradient
            total += loss.detach()
        ctx.save_for_backward(*([torch.cat(of_hidden)] if wanted else []), *of_parameters)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        scaled = [(saved * gradients[0].float()).to(saved.dtype) for saved in ctx.saved_tensors]
        of_hidden = scaled.pop(0) if ctx.needs_input_grad[0] else None
        return of_hidden, None, *scaled


@contextmanager
def _uncached() -> Iterator[None]:
    """Autocast keeps the short copy of a trained weight with its graph, which ends with the first chunk."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
