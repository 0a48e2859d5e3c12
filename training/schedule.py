"""Which examples each step of a training sees."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Schedule:
    """Which examples each step sees: a new order each epoch, always the same for a seed, so that a run can go on."""

    examples: int
    batch_size: int
    epochs: float
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every example once."""
        return math.ceil(self.examples / self.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        # Rounded, because 29 steps of 7 an epoch are a little more than 29 / 7 epochs times 7.
        return max(1, math.ceil(round(self.epochs * self.steps_per_epoch, 6)))

    def batch(self, step: int) -> list[int]:
        """Numbers of the examples of `step`, counted from 0; an epoch's last batch may be smaller."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _shuffled(self.examples, f"{self.seed}/{epoch}")
        return order[position * self.batch_size : (position + 1) * self.batch_size]


@lru_cache(maxsize=1)
def _shuffled(count: int, seed: str) -> list[int]:
    """The numbers below `count` in an order that only the seed decides; kept, because a whole epoch asks for it."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
