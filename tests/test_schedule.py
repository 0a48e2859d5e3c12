"""Every example once an epoch, in an order that only the seed decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.schedule import Schedule


def test_every_example_once_an_epoch_in_changing_order() -> None:
    schedule = Schedule(examples=10, batch_size=4, epochs=2.5, seed=1)
    assert (schedule.steps_per_epoch, schedule.total_steps) == (3, 8)
    epochs = [[i for n in range(3) for i in schedule.batch(3 * epoch + n)] for epoch in range(2)]
    assert all(sorted(order) == list(range(10)) for order in epochs)
    assert epochs[0] != epochs[1]
    assert [len(schedule.batch(n)) for n in range(3)] == [4, 4, 2]
    assert Schedule(10, 4, 2.5, 1).batch(4) == schedule.batch(4)
    assert Schedule(10, 4, 2.5, 2).batch(4) != schedule.batch(4)


@pytest.mark.parametrize(("epochs", "total"), [(0.01, 1), (1, 3), (1.01, 4), (2, 6)])
def test_part_of_an_epoch_is_rounded_up(epochs: float, total: int) -> None:
    assert Schedule(10, 4, epochs, 1).total_steps == total


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_whole_epochs_hold_every_example_as_often(examples: int, batch: int, epochs: int, seed: int) -> None:
    schedule = Schedule(examples, batch, epochs, seed)
    seen = [number for step in range(schedule.total_steps) for number in schedule.batch(step)]
    assert sorted(seen) == sorted(list(range(examples)) * epochs)
    # A run that goes on asks for a step without those before it, between those of other runs.
    last = schedule.total_steps - 1
    assert schedule.batch(0) == seen[: min(batch, examples)]
    assert Schedule(examples, batch, epochs, seed).batch(last) == schedule.batch(last)
