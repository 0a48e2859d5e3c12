"""The live training chart: turns a run's history into curves and draws them in the browser with Plotly.

`gr.Plot` would build the chart anew each second and lose the reader's zoom; this component sends the data only, and
`static/chart.js` hands it to `Plotly.react`.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from training.events import CheckpointSaved, Evaluation
from training.history import History, Trained

EMPTY_TEXT = "The loss curve appears here when a training runs."
FIRST_STEP_TEXT = "The loss curve begins with the first step."
_STATIC = Path(__file__).parent / "static"
_PLOTLY = Path(plotly.__file__).resolve().parent / "package_data" / "plotly.min.js"
# The version keeps a browser from using the copy of an older Plotly after an update.
_PLOTLY_URL = f"/gradio_api/file={_PLOTLY.as_posix()}?v={plotly.__version__}"
_LONGEST_END = 100  # points: so few are sent each time, and all of them once so many are new


def static_paths() -> list[Path]:
    """The files that the page must let Gradio serve: call `gr.set_static_paths(static_paths())` before `launch()`.

    Nothing else is needed: the component loads Plotly by itself, once a page, and asks no other host for anything.
    """
    return [_PLOTLY]


def live_chart(text: str = EMPTY_TEXT) -> gr.HTML:
    """The chart as a component; update it with `curves_update`, with `show_progress="hidden"`.

    A click on a checkpoint's marker fires its `click` event; `gr.EventData` then carries that checkpoint's `step`. Its
    `stale` event says that the browser lacks the body of the curves: send it everything.
    """
    return gr.HTML(
        # No ${body} here: the data goes to the script alone, so nothing in it can become markup.
        html_template=(_STATIC / "chart.html").read_text(encoding="utf-8"),
        css_template=(_STATIC / "chart.css").read_text(encoding="utf-8"),
        js_on_load=(_STATIC / "chart.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        # Not the value, which a browser never takes from an update that came before the chart was on its page.
        body=empty_chart(text),
        end={},
        plotly_url=_PLOTLY_URL,
    )


def empty_chart(text: str = EMPTY_TEXT) -> dict[str, Any]:
    """A body that shows `text` in place of the curves."""
    return {"text": text}


_versions = itertools.count(1)


@dataclass(frozen=True)
class Curves:
    """What a page is sent of a run's curves: the body seldom, and the end of them with each change."""

    version: int  # of the body; no two of this server are the same
    body: dict[str, Any]
    end: dict[str, Any]


def curves_update(curves: Curves, shown: int) -> dict[str, Any]:
    """The update for a page that shows this version of the body: with the whole body where it is another."""
    body = {} if curves.version == shown else {"body": curves.body}
    return gr.update(**body, end=curves.end, plotly_url=_PLOTLY_URL)  # a chart that is mounted anew has only these


def no_curves(text: str) -> Curves:
    """What a page is sent where `text` stands in place of the curves."""
    return Curves(next(_versions), empty_chart(text), {})


class LiveCurves:
    """The curves of one run as plain JSON: losses in nats a token, numbers rounded to six digits, gaps as null.

    The points from one step on are the end, which takes the place of all that a page has from that step on.
    """

    def __init__(self, run_name: str) -> None:
        self._run_name = run_name
        self._held: dict[str, list[Any]] = {}  # the points in the body
        self._from = 0  # the step that the end begins with
        self._version = 0
        self._body: dict[str, Any] = {}

    def update(self, history: History, on_disk: Container[int]) -> Curves:
        """The curves as they are now, with markers for the checkpoints `on_disk`.

        Zoom and hidden curves stay for as long as the run's name stays the same.
        """
        points: dict[str, list[Any]] = {"training": history.training.points, "evaluation": history.evaluations}
        settled = int(min(history.step + 1, history.training.settled, history.evaluation.settled))
        is_long = sum(point.step >= self._from for point in points["training"]) > _LONGEST_END
        if not self._body or (is_long and settled > self._from) or _before(self._from, points) != self._held:
            self._from, self._held = settled, _before(settled, points)
            self._version = next(_versions)
            self._body = {"version": self._version, "run": self._run_name} | _columns(self._held)
        end = {name: [point for point in curve if point.step >= self._from] for name, curve in points.items()}
        return Curves(
            self._version,
            self._body,
            {
                "version": self._version,
                "run": self._run_name,
                "from": self._from,
                "step": history.step,
                "total": max(history.total_steps, history.step, 1),
                "checkpoints": _checkpoints(history.checkpoints, on_disk, points["training"]),
            }
            | _columns(end),
        )


def _before(step: int, points: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [point for point in curve if point.step < step] for name, curve in points.items()}


def _columns(points: dict[str, list[Any]]) -> dict[str, Any]:
    training: list[Trained] = points["training"]
    evaluation: list[Evaluation] = points["evaluation"]
    return {
        "training": {
            "step": [point.step for point in training],
            "loss": [_short(point.loss) for point in training],
            "smoothed": [_short(point.smoothed) for point in training],
            "rate": [_short(point.event.learning_rate) for point in training],
        },
        "evaluation": {
            "step": [point.step for point in evaluation],
            "loss": [_short(point.loss) for point in evaluation],
        },
    }


def _checkpoints(
    events: list[CheckpointSaved], on_disk: Container[int], trained: list[Trained]
) -> dict[str, list[float | None]]:
    """Each checkpoint with its height in the chart: the smoothed curve where it was saved, else its own loss."""
    steps = [point.step for point in trained]
    saved = [event for event in events if event.step in on_disk]
    heights = []
    for event in saved:
        before = bisect_right(steps, event.step)
        height = trained[before - 1].smoothed if before else None
        heights.append(_short(event.loss if height is None else height))
    return {
        "step": [event.step for event in saved],
        "height": heights,
        "loss": [_short(event.loss) for event in saved],
        "evaluation": [_short(event.evaluation_loss) for event in saved],
    }


def _short(value: float | None) -> float | None:
    """Six significant digits, more than any screen shows; None for what JSON cannot say."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
