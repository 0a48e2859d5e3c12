"""What the chart is sent: honest curves that fit through JSON."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

import pytest

from training.curve import MOST_POINTS
from training.events import CheckpointSaved, Evaluation, Started, Step
from training.history import History
from ui.chart import Curves, LiveCurves, curves_update, empty_chart, live_chart, no_curves, static_paths

ALL = range(10**9)  # steps: no checkpoint is deleted


def _step(number: int, loss: float) -> Step:
    return Step(
        step=number, epoch=number / 10, loss=loss, learning_rate=2e-4, grad_norm=1.0, tokens=9, seconds=0.1, memory=1
    )


def _history(losses: list[float], total: int = 0) -> History:
    history = History()
    history.add(Started(from_step=0, total_steps=total or len(losses), epochs=1))
    for number, loss in enumerate(losses, start=1):
        history.add(_step(number, loss))
    return history


def joined(curves: Curves, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What static/chart.js makes of the two parts."""
    body, end = body or curves.body, curves.end
    value = {part: end[part] for part in end if part not in ("from", "version")}
    for name in ("training", "evaluation"):
        before = sum(step < end["from"] for step in body[name]["step"])
        value[name] = {column: body[name][column][:before] + end[name][column] for column in body[name]}
    return value


def chart_value(run: str, history: History) -> dict[str, Any]:
    return joined(LiveCurves(run).update(history, ALL))


def test_a_short_run_is_sent_whole() -> None:
    losses = [3.0, 2.5, 2.25, 2.0]
    history = _history(losses, total=9)
    value = chart_value("first", history)
    assert (value["run"], value["step"], value["total"]) == ("first", 4, 9)
    assert value["training"]["step"] == [1, 2, 3, 4]
    assert value["training"]["loss"] == losses
    assert value["training"]["smoothed"] == pytest.approx([t.smoothed for t in history.training.points], rel=1e-5)
    assert value["training"]["rate"] == [2e-4] * 4


def test_numbers_are_rounded_to_six_digits() -> None:
    assert chart_value("run", _history([1.23456789]))["training"]["loss"] == [1.23457]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_loss_is_a_gap_and_spoils_nothing_after_it(broken: float) -> None:
    history = _history([2.0, broken, 1.0])
    history.add(Evaluation(step=3, loss=broken))
    history.add(CheckpointSaved(step=2, loss=broken, evaluation_loss=broken))
    value = chart_value("run", history)
    json.dumps(value, allow_nan=False)
    assert value["training"]["loss"] == [2.0, None, 1.0]
    assert value["training"]["smoothed"][:2] == [2.0, None]
    assert value["training"]["smoothed"][2] == pytest.approx((0.9 * 0.2 + 0.1) / 0.19, rel=1e-5)
    assert value["evaluation"] == {"step": [3], "loss": [None]}
    assert value["checkpoints"] == {"step": [2], "height": [None], "loss": [None], "evaluation": [None]}


def test_a_long_run_is_thinned_and_keeps_its_extremes() -> None:
    losses = [2.0 + math.sin(number) / 10 for number in range(50_000)]
    losses[12_345], losses[23_456] = 9.0, 0.5
    training = chart_value("run", _history(losses))["training"]
    kept = dict(zip(training["step"], training["loss"], strict=True))
    assert len(kept) <= MOST_POINTS
    assert list(kept) == sorted(kept)
    assert {1, 50_000} <= set(kept)
    assert (kept[12_346], kept[23_457]) == (9.0, 0.5)
    assert {len(training[name]) for name in training} == {len(kept)}


def test_a_broken_loss_is_never_thinned_away() -> None:
    losses = [1.0] * 20_000
    losses[7_777] = math.nan
    training = chart_value("run", _history(losses))["training"]
    assert training["loss"][training["step"].index(7_778)] is None


def test_steps_with_a_marker_are_kept() -> None:
    history = History()
    marked = range(997, 20_000, 997)
    for number in range(1, 20_001):
        history.add(_step(number, 2.0))
        if number in marked:
            history.add(Evaluation(step=number, loss=2.0))
    assert set(marked) <= set(chart_value("run", history)["training"]["step"])


def test_many_evaluations_are_thinned_too() -> None:
    history = _history([2.0] * 5_000)
    for number in range(1, 5_001):
        history.add(Evaluation(step=number, loss=2.0))
    value = chart_value("run", history)
    assert len(value["evaluation"]["step"]) <= MOST_POINTS
    assert len(value["training"]["step"]) <= MOST_POINTS


def test_checkpoints_sit_on_the_smoothed_curve() -> None:
    losses = [3.0, 1.0, 2.0, 1.5]
    history = _history(losses)
    history.add(CheckpointSaved(step=2, loss=1.0, evaluation_loss=1.75))
    checkpoints = chart_value("run", history)["checkpoints"]
    assert checkpoints["step"] == [2]
    assert checkpoints["height"] == pytest.approx([0.37 / 0.19], rel=1e-5)  # 0.9 * 0.3 + 0.1 * 1
    assert (checkpoints["loss"], checkpoints["evaluation"]) == ([1.0], [1.75])


def test_before_the_first_step_there_is_a_text() -> None:
    assert no_curves("Nothing yet.").body == empty_chart("Nothing yet.") == {"text": "Nothing yet."}


def test_an_evaluation_before_the_first_step_is_drawn() -> None:
    history = _history([], total=5)
    history.add(Evaluation(step=0, loss=3.0))
    history.add(CheckpointSaved(step=0, loss=None, evaluation_loss=3.0))
    value = chart_value("run", history)
    assert value["evaluation"] == {"step": [0], "loss": [3.0]}
    assert value["checkpoints"]["height"] == [None]
    assert value["training"]["step"] == []


def test_a_change_sends_the_end_of_the_curves_only() -> None:
    """At any moment the body that a page has and the newest end make the whole."""
    live, history, shown = LiveCurves("run"), _history([]), 0
    page: dict[str, Any] = {}
    sizes, bodies = [], 0
    for number in range(1, 6001):
        history.add(_step(number, 2 + math.sin(number)))
        if number % 10 == 0:
            history.add(Evaluation(step=number, loss=2.0))
        if number % 500 == 7:
            history.add(CheckpointSaved(step=number - 7, loss=2.0, evaluation_loss=None))
        if number == 4000:
            history.add(Started(from_step=3500, total_steps=9000, epochs=1))
        if number % 5:
            continue
        curves = live.update(history, ALL)
        update = curves_update(curves, shown)
        page, shown = page | update, curves.version
        sizes.append(len(json.dumps(update)))
        bodies += "body" in update
        whole = joined(Curves(shown, page["body"], page["end"]))
        assert whole == joined(LiveCurves("run").update(history, ALL))
    assert statistics.mean(sizes) < 10_000 < max(sizes) < 100_000
    assert bodies < len(sizes) / 10


def test_a_page_that_missed_a_body_draws_no_step_twice() -> None:
    live, history = LiveCurves("run"), _history([2.0] * 300)
    missed = live.update(history, ALL).body
    history.add(Started(from_step=150, total_steps=400, epochs=1))
    for number in range(151, 153):
        history.add(_step(number, 1.0))
    curves = live.update(history, ALL)
    steps = joined(curves, missed)["training"]["step"]
    assert steps == sorted(set(steps)) and steps[-1] == 152


def test_a_deleted_checkpoint_has_no_marker() -> None:
    history = _history([2.0] * 30)
    for number in (10, 20, 30):
        history.add(CheckpointSaved(step=number, loss=2.0, evaluation_loss=None))
    assert LiveCurves("run").update(history, {20, 30}).end["checkpoints"]["step"] == [20, 30]


def test_the_component_puts_no_data_into_markup() -> None:
    chart = live_chart("<b>text</b>")
    assert chart.props["body"] == {"text": "<b>text</b>"}
    for template in (chart.html_template, chart.css_template):
        assert not any(mark in template for mark in ("${", "{{", "}}", "`"))


def test_what_is_served_is_plotly_alone() -> None:
    (served,) = static_paths()
    assert served.name == "plotly.min.js"
    assert served.is_file()
