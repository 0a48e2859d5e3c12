"""How several examples lie in one row, one after the other, and which row goes through the model at present."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate

import torch


@dataclass(frozen=True)
class Packing:
    """Where the examples of a row lie: their lengths in tokens, in order; what is behind them belongs to none.

    Scores are computed for multiples of `round_to` tokens, for processors that compile a kernel for each shape.
    """

    lengths: tuple[int, ...]
    round_to: int = 1

    def spans(self) -> list[tuple[int, int]]:
        """First token and length of each example."""
        return list(zip(accumulate(self.lengths, initial=0), self.lengths, strict=False))


@dataclass(frozen=True)
class Masks:
    """What the layers of one kind may see: all tokens before in the example, or what its mask says besides.

    Masks have shape (tokens, tokens) and are True where nothing may be seen.
    """

    packing: Packing
    hidden: list[torch.Tensor] | None = None


_CURRENT: ContextVar[Packing | None] = ContextVar("packing", default=None)


@contextmanager
def packed_as(packing: Packing) -> Iterator[None]:
    """Within it a forward pass of a model with this attention takes its row to be packed so."""
    token = _CURRENT.set(packing)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_packing() -> Packing | None:
    """How the row that goes through the model at present is packed; None where it is not."""
    return _CURRENT.get()
