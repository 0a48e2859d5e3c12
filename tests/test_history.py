"""What the events of a run add up to."""

from __future__ import annotations

import pytest

from training.events import CheckpointSaved, Evaluation, Event, Note, Preparing, Started, Step
from training.history import History, smoothed


def step(number: int, tokens: int = 100, seconds: float = 0.5) -> Step:
    return Step(
        step=number,
        epoch=number / 10,
        loss=1.0,
        learning_rate=1e-4,
        grad_norm=1.0,
        tokens=tokens,
        seconds=seconds,
        memory=0,
    )


def history_of(*events: Event) -> History:
    history = History()
    for event in events:
        history.add(event)
    return history


def test_before_the_first_event() -> None:
    history = History()
    assert (history.step, history.progress, history.tokens_per_second, history.seconds_left) == (0, 0.0, 0.0, None)


def test_progress_and_speed() -> None:
    history = history_of(Started(from_step=0, total_steps=40, epochs=1), *(step(n) for n in range(1, 11)))
    assert history.step == 10 and history.progress == 0.25
    assert history.tokens_per_second == pytest.approx(200)
    assert history.seconds_left == pytest.approx(15)


def test_speed_is_that_of_the_last_steps() -> None:
    slow, fast = [step(n, seconds=10) for n in range(1, 31)], [step(n, seconds=0.1) for n in range(31, 51)]
    history = history_of(Started(from_step=0, total_steps=60, epochs=1), *slow, *fast)
    assert history.tokens_per_second == pytest.approx(1000)
    assert history.seconds_left == pytest.approx(1)


def test_going_on_forgets_what_is_done_again() -> None:
    history = history_of(
        Started(from_step=0, total_steps=20, epochs=1),
        *(step(n) for n in range(1, 9)),
        Evaluation(step=4, loss=2.0),
        Evaluation(step=8, loss=1.0),
        CheckpointSaved(step=4, loss=1.0, evaluation_loss=2.0),
        CheckpointSaved(step=8, loss=1.0, evaluation_loss=1.0),
        Note(text="stays"),
        Started(from_step=4, total_steps=30, epochs=1.5),
    )
    assert [e.step for e in history.steps] == [1, 2, 3, 4]
    assert [e.step for e in history.evaluations] == [4]
    assert [e.step for e in history.checkpoints] == [4]
    assert [n.text for n in history.notes] == ["stays"]
    assert (history.step, history.total_steps) == (4, 30)
    history.add(step(5))
    assert [e.step for e in history.steps] == [1, 2, 3, 4, 5]


def test_beginning_anew_forgets_all_steps() -> None:
    history = history_of(
        Started(from_step=0, total_steps=9, epochs=1), step(1), Started(from_step=0, total_steps=9, epochs=1)
    )
    assert history.steps == []


def test_rows_prepared_so_far() -> None:
    history = history_of(Preparing(records=500), Preparing(records=1500))
    assert history.records_prepared == 1500 and history.progress == 0
    copy = history.copy()
    history.add(Preparing(records=2000))
    assert copy.records_prepared == 1500


def test_smoothing_by_hand() -> None:
    # 0.5 * 0 + 0.5 * 4 = 2, over 1 - 0.5; then 0.5 * 2 + 0.5 * 8 = 5, over 1 - 0.25; then 0.5 * 5 + 0.5 * 2, over 0.875
    assert smoothed([4.0, 8.0, 2.0], weight=0.5) == pytest.approx([4.0, 5 / 0.75, 3.5 / 0.875])
    assert smoothed([]) == []
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    assert smoothed([1.0, 5.0, 2.0], weight=0) == [1.0, 5.0, 2.0]
