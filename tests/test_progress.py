"""What ends a training early: a loss that explodes, one that is low enough, evaluations without a gain."""

from __future__ import annotations

import pytest

from tests.tiny import make_settings
from training.errors import Diverged
from training.progress import ALL_STEPS, EARLY, LOW_LOSS, Progress


def after(losses: list[float]) -> Progress:
    progress = Progress()
    for loss in losses:
        progress.took_step(loss)
        progress.check_course()
    return progress


def evaluated(losses: list[float]) -> Progress:
    progress = Progress()
    for loss in losses:
        progress.took_step(1.0)
        progress.evaluated(loss, counts=True)
    return progress


def test_loss_far_above_the_first_for_ten_steps_ends_the_training() -> None:
    usual = [1.0] * 10  # so that above 3 is too high
    assert after([*usual, *[9.0] * 9]).in_trouble
    with pytest.raises(Diverged, match=r"above 3.00 for 10 steps on end up to step 20, far more than"):
        after([*usual, *[3.1] * 10])
    assert not after([*usual, *[3.0] * 50]).in_trouble
    assert not after([*usual, *([9.0] * 9 + [2.0]) * 5]).in_trouble  # never ten on end
    assert not after([9.0] * 10).in_trouble  # what is usual is high


def test_trouble_begins_with_the_weights_that_met_it() -> None:
    # The loss of step 12 is that of the weights after step 11: the last good ones are those after step 10.
    assert after([*[1.0] * 11, *[9.0] * 3]).last_good_step == 10
    # No number at step 12, at which `step` is still 11: those after step 11 gave it.
    assert after([1.0] * 11).last_good_step == 10


def test_evaluations_without_a_gain_end_it() -> None:
    settings = make_settings(patience=2)
    assert evaluated([3.0, 2.0, 2.5]).ended_by(settings, 100) == ""
    assert evaluated([3.0, 2.0, 2.0, 1.9, 2.0]).ended_by(settings, 100) == ""
    by = evaluated([3.0, 2.0, 2.0, 2.1]).ended_by(settings, 100)
    assert by == f"{EARLY}: 2 evaluations on end without a lower loss than 2.0000"
    assert evaluated([1.0, 2.0, 3.0, 4.0]).ended_by(make_settings(patience=0), 100) == ""
    assert evaluated([1.0, 2.0, 3.0]).ended_by(settings, 3) == ALL_STEPS


def test_evaluation_that_was_not_due_counts_for_nothing_but_itself() -> None:
    progress = evaluated([3.0, 2.0])
    progress.took_step(1.0)
    progress.evaluated(1.0, counts=False)
    assert (progress.lowest, progress.without_gain, progress.evaluation_loss) == (2.0, 0, 1.0)
    assert progress.evaluations == {1: 3.0, 2: 2.0, 3: 1.0}
    start = Progress()
    start.evaluated(0.5, counts=False)
    assert start.evaluations == {} and start.lowest is None


def test_new_best_is_told_at_its_step_only() -> None:
    progress = evaluated([3.0, 2.0])
    assert progress.is_new_best
    progress.took_step(1.0)
    assert not progress.is_new_best
    assert not evaluated([3.0, 3.0]).is_new_best


def test_low_loss_ends_it_and_going_further_forgets_it() -> None:
    settings = make_settings(stop_at_loss=0.5, patience=1)
    progress = after([1.0, 0.5])
    assert progress.ended_by(settings, 100) == LOW_LOSS
    assert progress.ended_by(make_settings(), 100) == ""
    progress.without_gain = 1
    progress.go_further()
    assert progress.ended_by(settings, 100) == ""


def test_it_comes_back_from_its_file_as_it_was() -> None:
    progress = evaluated([3.0, 2.0, 2.5])
    progress.evaluation_owed, progress.skipped_in_a_row = True, 3
    assert Progress.from_json(progress.to_json()) == progress
    for damaged in ("", "[]", "{", '{"other": 1}', "null", '{"evaluations": {"x": 1}}'):
        with pytest.raises((ValueError, TypeError, AttributeError)):
            Progress.from_json(damaged)
