"""What the events of a run add up to."""

from __future__ import annotations

import math
import random

import pytest
from pydantic import TypeAdapter

from training.curve import MOST_POINTS
from training.events import CheckpointSaved, Evaluation, Event, Note, Preparing, Started, Step
from training.history import MOST_NOTES, History


def smoothed(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with the bias of its first values corrected (Kingma and Ba, 2015, section 3)."""
    average, result = 0.0, []
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        result.append(average / (1 - weight**count))
    return result


def step(number: int, tokens: int = 100, seconds: float = 0.5, loss: float = 1.0) -> Step:
    return Step(
        step=number,
        epoch=number / 10,
        loss=loss,
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


def losses_of(count: int, seed: int = 0) -> list[float]:
    rnd = random.Random(seed)
    return [rnd.choice([math.nan, math.inf]) if rnd.random() < 0.01 else rnd.uniform(1, 3) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 50, 1200, 20_000])
def test_smoothing_and_time_are_those_of_all_steps(count: int) -> None:
    losses = losses_of(count)
    history = history_of(*(step(n, loss=loss) for n, loss in enumerate(losses, start=1)))
    averages = iter(smoothed([loss for loss in losses if math.isfinite(loss)]))
    plain = [next(averages) if math.isfinite(loss) else None for loss in losses]
    shown = history.training.points
    assert [trained.smoothed for trained in shown] == pytest.approx([plain[trained.step - 1] for trained in shown])
    assert len(shown) == count or count > 1200
    assert history.seconds == pytest.approx(0.5 * count)


def test_smoothing_by_hand() -> None:
    history = history_of(*(step(n, loss=loss) for n, loss in ((1, 4.0), (2, 8.0), (3, 2.0))))
    # 0.1 * 4 = 0.4, over 1 - 0.9; 0.9 * 0.4 + 0.1 * 8 = 1.16, over 1 - 0.81; 0.9 * 1.16 + 0.1 * 2 = 1.244, over 0.271
    wanted = [4.0, 1.16 / 0.19, 1.244 / 0.271]
    assert [trained.smoothed for trained in history.training.points] == pytest.approx(wanted)


def test_going_on_from_a_checkpoint_of_a_long_run_goes_on_with_what_had_added_up_by_then() -> None:
    losses = losses_of(9000)
    first = [step(n, loss=loss) for n, loss in enumerate(losses, start=1)]
    saved = CheckpointSaved(step=6001, loss=1.0, evaluation_loss=None)  # it is written while the training goes on
    again = [step(n, loss=loss) for n, loss in enumerate(losses_of(500, seed=1), start=6002)]
    start = Started(from_step=6001, total_steps=9000, epochs=1)
    history = history_of(*first[:6050], saved, *first[6050:], start)
    assert history.step == 6001 and history.seconds == pytest.approx(0.5 * 6001)
    assert history.tokens_per_second == pytest.approx(200)
    for event in again:
        history.add(event)
    plain = history_of(*first[:6001], *again)
    assert history.seconds == pytest.approx(plain.seconds)
    assert history.training.points[-1].smoothed == pytest.approx(plain.training.points[-1].smoothed)
    assert {e.step for e in history.steps if e.step > 6001} <= {e.step for e in again}


def test_a_long_story_stays_of_one_size() -> None:
    history = History()
    for n in range(1, 30_001):
        history.add(step(n, loss=1 + math.sin(n)))
        history.add(Evaluation(step=n, loss=1.0))
        history.add(CheckpointSaved(step=n, loss=1.0, evaluation_loss=None))
        history.add(Note(text=f"Step {n} was odd."))
    assert max(len(history.steps), len(history.evaluations)) <= MOST_POINTS
    assert [event.step for event in history.checkpoints] == list(range(29_001, 30_001))
    assert [note.text for note in history.notes] == [f"Step {n} was odd." for n in range(30_001 - MOST_NOTES, 30_001)]
    assert len(TypeAdapter(History).dump_json(history)) < 2**20


def test_a_note_that_is_said_again_and_a_checkpoint_saved_again_count_once() -> None:
    twice = [Note(text="a"), CheckpointSaved(step=5, loss=2.0, evaluation_loss=None)]
    history = history_of(*twice, *twice, CheckpointSaved(step=5, loss=1.0, evaluation_loss=None))
    assert [note.text for note in history.notes] == ["a"]
    assert [event.loss for event in history.checkpoints] == [1.0]
