"""The live training chart: turns a run's history into curves and draws them in the browser with Plotly.

`gr.Plot` would build the chart anew each second and lose the reader's zoom; this component sends the data only, and
`static/chart.js` hands it to `Plotly.react`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from training.history import History, smoothed

EMPTY_TEXT = "The loss curve appears here when a training runs."
_FIRST_STEP_TEXT = "The loss curve begins with the first step."
_STATIC = Path(__file__).parent / "static"
_PLOTLY = Path(plotly.__file__).resolve().parent / "package_data" / "plotly.min.js"
_MOST_POINTS = 1000  # about one a pixel: more would cost traffic each second and show nothing


def static_paths() -> list[Path]:
    """The files that the page must let Gradio serve: call `gr.set_static_paths(static_paths())` before `launch()`.

    Nothing else is needed: the component loads Plotly by itself, once a page, and asks no other host for anything.
    """
    return [_PLOTLY]


def live_chart(text: str = EMPTY_TEXT) -> gr.HTML:
    """The chart as a component; give it `chart_value` or `empty_chart` as its value, with `show_progress="hidden"`.

    A click on a checkpoint's marker fires its `click` event; `gr.EventData` then carries that checkpoint's `step`.
    """
    return gr.HTML(
        value=empty_chart(text),
        # No ${value} here: the data goes to the script alone, so nothing in it can become markup.
        html_template=(_STATIC / "chart.html").read_text(encoding="utf-8"),
        css_template=(_STATIC / "chart.css").read_text(encoding="utf-8"),
        js_on_load=(_STATIC / "chart.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        # The version keeps a browser from using the copy of an older Plotly after an update.
        plotly_url=f"/gradio_api/file={_PLOTLY.as_posix()}?v={plotly.__version__}",
    )


def empty_chart(text: str = EMPTY_TEXT) -> dict[str, Any]:
    """A value that shows `text` in place of the curves."""
    return {"text": text}


def chart_value(run_name: str, history: History) -> dict[str, Any]:
    """The curves of `run_name` as plain JSON: losses in nats a token, numbers rounded to six digits, gaps as null.

    A long run is thinned to about a thousand points a curve that still hold its first, last, lowest and highest loss.
    Zoom and hidden curves stay for as long as `run_name` stays the same.
    """
    if not history.steps and not history.evaluations:
        return empty_chart(_FIRST_STEP_TEXT)
    smooth = _smoothed_over_gaps([event.loss for event in history.steps])
    return {
        "run": run_name,
        "step": history.step,
        "total": max(history.total_steps, history.step, 1),
        "training": _training(history, smooth),
        "evaluation": _evaluation(history),
        "checkpoints": _checkpoints(history, smooth),
    }


def _training(history: History, smooth: list[float | None]) -> dict[str, Any]:
    kept = set(_thinned([event.loss for event in history.steps]))
    # The hover text lists all curves at one step, so the steps that carry a marker are kept as well.
    marked = {e.step for e in history.evaluations} | {e.step for e in history.checkpoints}
    if len(marked) <= _MOST_POINTS // 4:
        kept |= {index for index, event in enumerate(history.steps) if event.step in marked}
    steps = [(history.steps[index], smooth[index]) for index in sorted(kept)]
    return {
        "step": [event.step for event, _ in steps],
        "loss": [_short(event.loss) for event, _ in steps],
        "smoothed": [_short(value) for _, value in steps],
        "rate": [_short(event.learning_rate) for event, _ in steps],
    }


def _evaluation(history: History) -> dict[str, Any]:
    events = [history.evaluations[index] for index in _thinned([event.loss for event in history.evaluations])]
    return {"step": [event.step for event in events], "loss": [_short(event.loss) for event in events]}


def _checkpoints(history: History, smooth: list[float | None]) -> dict[str, Any]:
    """Each checkpoint with its height in the chart: the smoothed curve where it was saved, else its own loss."""
    done = [event.step for event in history.steps]
    heights = []
    for event in history.checkpoints:
        before = bisect_right(done, event.step)
        height = smooth[before - 1] if before else None
        heights.append(_short(event.loss if height is None else height))
    return {
        "step": [event.step for event in history.checkpoints],
        "height": heights,
        "loss": [_short(event.loss) for event in history.checkpoints],
        "evaluation": [_short(event.evaluation_loss) for event in history.checkpoints],
    }


def _smoothed_over_gaps(losses: list[float]) -> list[float | None]:
    """The moving average of the finite losses, with gaps for the others: one NaN would swallow all that follow."""
    averages = iter(smoothed([loss for loss in losses if math.isfinite(loss)]))
    return [next(averages) if math.isfinite(loss) else None for loss in losses]


def _thinned(values: list[float], limit: int = _MOST_POINTS) -> list[int]:
    """The positions of at most `limit` values: the first, the last, and each bucket's lowest and highest.

    NaN and infinity count as the highest of all, so that a loss that broke is never thinned away.
    """
    count = len(values)
    if count <= limit:
        return list(range(count))

    def rank(index: int) -> tuple[bool, float]:
        finite = math.isfinite(values[index])
        return (not finite, values[index] if finite else 0.0)

    buckets = (limit - 2) // 2
    kept = {0, count - 1}
    for bucket in range(buckets):
        inside = range(count * bucket // buckets, count * (bucket + 1) // buckets)
        kept |= {min(inside, key=rank), max(inside, key=rank)}
    return sorted(kept)


def _short(value: float | None) -> float | None:
    """Six significant digits, more than any screen shows; None for what JSON cannot say."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
