"""Check memory: measures what a training of these settings needs, and offers the largest micro-batch that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from training.errors import UserError
from training.memory_checks import CheckProgress, MemoryChecks, Report
from training.parsing import parse_runnable
from training.paths import Folders
from training.settings import Settings
from ui.events import QUIET
from ui.messages import note_html, problems_html

STYLE = Path(__file__).parent / "static" / "memory.css"
_TICK = 0.5  # seconds
_ANY_NAME = "check"  # what is checked needs no name
Values = Callable[..., dict[str, Any]]


class MemoryBox:
    """The button and what it finds. The check is the server's: a page that is opened anew shows it going on."""

    def __init__(self, folders: Folders) -> None:
        self._checks = MemoryChecks(folders)

    def build_button(self) -> None:
        """Place the button."""
        self.start = gr.Button("Check memory", size="lg", scale=1, min_width=170, elem_id="check-memory")

    def build_result(self) -> None:
        """Place what is shown of a check while it runs and when it has ended; before the first, that is nothing."""
        self._result = gr.HTML(padding=False, visible=False, elem_id="memory-result")
        with gr.Row(visible=False, elem_id="memory-actions") as self._actions:
            self._use = gr.Button("Use it", size="sm", min_width=100, visible=False, elem_id="memory-use")
            self._cancel = gr.Button("Cancel", size="sm", min_width=100, visible=False, elem_id="memory-cancel")
        self._timer = gr.Timer(_TICK, active=False)

    def wire(self, page: gr.Blocks, inputs: Sequence[Component], values: Values, micro_batch: Component) -> None:
        """Connect the box; call once, inside the page.

        `values` makes the settings' values by name of those of `inputs`; `micro_batch` is where a better size goes.
        """
        offered = gr.State(0)
        shown = {self._result, self._actions, self._use, self._cancel, self.start, self._timer, offered}

        def look(*, opened: bool = False) -> dict[Component, Any]:
            check = self._checks.latest
            if check is None or (opened and not check.running):
                return {self._timer: gr.Timer(active=False)}
            progress = check.progress()
            running, size = progress.state == "running", better_size(progress)
            return {
                self._result: gr.update(value=check_html(progress), visible=True),
                self._actions: gr.update(visible=running or size is not None),
                self._use: gr.update(value=f"Use micro-batch {size}", visible=size is not None),
                self._cancel: gr.update(visible=running),
                self.start: gr.update(interactive=not running),
                self._timer: gr.Timer(active=running),
                offered: size or 0,
            }

        def begin(*given: Any) -> dict[Component, Any]:
            try:
                self._checks.start(parse_runnable(values(*given) | {"name": _ANY_NAME}))
            except UserError as error:
                said = gr.update(value=problems_html(str(error).splitlines()), visible=True)
                return {self._result: said, self._actions: gr.update(visible=False)}
            return look()

        self.start.click(begin, list(inputs), shown, **QUIET)
        self._timer.tick(look, None, shown, **QUIET)
        page.load(lambda: look(opened=True), None, shown, **QUIET)
        self._cancel.click(self.stop, None, None, **QUIET).then(look, None, shown, **QUIET)
        taken = self._use.click(lambda size: size, offered, micro_batch, **QUIET)
        taken.then(lambda: gr.update(visible=False), None, self._actions, **QUIET)

    def stop(self) -> None:
        """End the check that is going on, if one is: what starts now needs the memory."""
        self._checks.stop()


def check_html(progress: CheckProgress) -> str:
    """A check as it goes on, or what it has found."""
    report = progress.report
    if progress.state == "running":
        found = "".join(f"{t.micro_batch_size} needs {_gb(t.peak)}; " for t in report.tried if t.peak)
        doing = f"{found}{report.doing} ..."
        return f'<div class="graft-note" role="status">Checking memory: {escape(doing)}</div>'
    if progress.state == "failed":
        return problems_html([progress.message])
    if progress.state == "cancelled":
        return note_html(progress.message)
    level = "info" if _fits(report) else "warning" if report.largest else "error"
    under = f'<span class="memory-with">{escape(_measured_with(progress.settings, report))}</span>'
    said = f"{escape(found_text(report))}{under}"
    return f'<div class="graft-note graft-note-{level}" role="status">{said}</div>'


def better_size(progress: CheckProgress) -> int | None:
    """The micro-batch size to offer: the largest that fits, where that is another than the one asked for."""
    largest = progress.report.largest
    if progress.state != "done" or largest is None or largest.micro_batch_size == progress.report.asked:
        return None
    return largest.micro_batch_size


def found_text(report: Report) -> str:
    """What a check that came to its end has found, in sentences."""
    free = f"the {_gb(report.free)} that are free {'on the GPU' if report.on_gpu else 'in main memory'}"
    largest, asked = report.largest, report.of(report.asked)
    if largest is None:
        recompute = "" if report.gradient_checkpointing else ", set gradient checkpointing to always"
        return (
            f"Not even one example at a time fits in {free}: lower the cutoff length{recompute} or load the model in "
            "4-bit."
        )
    speed = f"; {report.tokens_per_second:,.0f} tokens a second; {_about(report.total_seconds)} in all"
    speed = speed if report.timed_at else ""
    size, needed = largest.micro_batch_size, _gb(largest.peak)
    if asked is None or not asked.fits:
        return f"Micro-batch {report.asked} does not fit in {free}. The largest that fits is {size} ({needed}){speed}."
    said = f"Micro-batch {report.asked} needs {_gb(asked.peak)} of {free}{speed}."
    if size == report.asked:
        return f"{said} Micro-batch {report.too_large} does not fit." if report.too_large else said
    if report.too_large:
        return f"{said} The largest micro-batch that fits is {size} ({needed}); {report.too_large} does not fit."
    return f"{said} The whole batch of {size} fits at once, too ({needed})."


def _fits(report: Report) -> bool:
    asked = report.of(report.asked)
    return asked is not None and asked.fits


def _measured_with(settings: Settings, report: Report) -> str:
    checkpointing = "gradient checkpointing, " if report.gradient_checkpointing else ""
    return (
        f"Measured with {settings.base_model} in {settings.precision}, {settings.method}, {checkpointing}and examples "
        f"of up to {report.longest:,} tokens."
    )


def _gb(size: int | None) -> str:
    """Bytes in the units in which memory is sold."""
    return f"{(size or 0) / 2**30:.1f} GB"


def _about(seconds: float) -> str:
    """A time that was reckoned, no more exact than it is."""
    if seconds < 60:
        return "less than a minute"
    if seconds < 90 * 60:
        minutes = round(seconds / 60)
        return "about a minute" if minutes == 1 else f"about {minutes} minutes"
    return f"about {round(seconds / 3600)} hours"
