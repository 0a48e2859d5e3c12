"""The monitor: shows one run as it stands in its folder, in any number of pages, and what can be done with it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import gradio as gr

from training.history import History
from training.paths import Folders
from training.runs import Run
from training.supervisor import Supervisor
from ui.chart import chart_value, empty_chart, live_chart
from ui.events import QUIET
from ui.failure_box import FailureBox
from ui.lookout import LATEST, Lookout, Overview, Seen
from ui.method_box import start_label
from ui.monitor import Histories, checkpoints_html, queue_html, status_html
from ui.run_actions import RunActions
from ui.trash_box import TrashBox

_LOG_LINES, _MOST_LOG_LINES = 10, 30
_NO_RUN = (
    '<p class="graft-quiet" id="no-run">No training yet. Fill in the form and click <b>Start LoRA Training</b>.</p>'
)


class Shown(NamedTuple):
    """What a page shows already, so that a tick sends only what has changed."""

    choices: tuple[tuple[str, str], ...] = ()
    waiting: tuple[str, ...] = ()
    failed_before: str = ""
    trash: tuple[str, ...] = ()
    start: str = ""  # what stands on the button
    name: str = ""
    state: str = ""
    status: str = ""
    events_size: int = 0  # bytes
    log_size: int = 0  # bytes
    failed: bool = False
    period: int = 1  # seconds between ticks


class MonitorPanel:
    """The monitor's components and the events between them."""

    def __init__(self, folders: Folders, supervisor: Supervisor) -> None:
        self._folders = folders
        self._histories = Histories()
        self.lookout = Lookout(folders, supervisor.queue)
        self.run_choice = gr.Dropdown(
            choices=[*self.lookout.overview().choices],
            value=LATEST,
            label="Run",
            elem_id="monitor-run",
            interactive=True,
        )
        self.status = gr.HTML(_NO_RUN, elem_id="monitor-status")
        self.failure = FailureBox(folders)
        self.actions = RunActions(folders, supervisor, self.lookout)
        self.queue = gr.HTML(elem_id="monitor-queue", padding=False)
        self.chart = live_chart()
        self.checkpoints = gr.HTML(elem_id="monitor-checkpoints")
        with gr.Accordion("Log", open=False, elem_id="monitor-log-box") as self._log_box:
            self.log = gr.Textbox(
                show_label=False,
                lines=_LOG_LINES,
                max_lines=_LOG_LINES,
                interactive=False,
                elem_id="monitor-log",
                container=False,
            )
        with gr.Accordion("Receipt: exactly what ran", open=False):
            self.receipt = gr.JSON(show_label=False, elem_id="monitor-receipt")
        self._trash = TrashBox(folders, self.lookout)
        self.starts = gr.State(0)  # trainings started from this page
        self.name = gr.State("")  # the run on display
        self._shown = gr.State(Shown())
        self._timer = gr.Timer(Shown().period)

    def wire(self, page: gr.Blocks, start: gr.Button, copy_from: gr.Dropdown, method: Any) -> None:
        """Keep the panel, what `start` says (by `method`) and the runs in `copy_from` in step with the folders."""
        self._start, self._copy_from, self._method = start, copy_from, method
        quiet = QUIET | {"queue": False}
        changes = [self._timer.tick, self.run_choice.change, self.starts.change, method.change]
        gr.on(changes, self.refresh, self._inputs, self.outputs, **quiet)
        # A page that was just loaded shows nothing yet, whatever its state says.
        page.load(
            lambda choice, method: self.refresh(choice, Shown(), method),
            [self.run_choice, method],
            self.outputs,
            **quiet,
        )
        self.failure.wire()
        self.actions.wire(self.name, self.look_after)
        self._trash.wire(self.look_after)

    def look_after(self, event: Any) -> None:
        """Show at once what an event has changed, not with the next tick."""
        event.then(self.refresh, self._inputs, self.outputs, concurrency_limit=None, **QUIET)

    @property
    def _inputs(self) -> list[Any]:
        return [self.run_choice, self._shown, self._method]

    @property
    def outputs(self) -> list[Any]:
        """The components that `refresh` updates."""
        own = [self.run_choice, self.status, self.queue, self.chart, self.checkpoints, self._log_box, self.log]
        own += [self.receipt, self.name, self._shown, self._timer, self._start, self._copy_from]
        return [*own, *self.failure.outputs, *self.actions.outputs, *self._trash.outputs]

    def refresh(self, choice: str, shown: Shown, method: str) -> Any:
        """Updates by component for what has changed since `shown`."""
        overview = self.lookout.overview()
        seen = overview.find(choice)
        if seen and not seen.run.folder.is_dir():  # moved away since the look
            self.lookout.forget()
            return gr.skip()
        now = _now(overview, seen, method)._replace(period=self.lookout.pace(shown.period))
        if now == shown != Shown():
            return gr.skip()
        updates: dict[Any, Any] = {self._shown: now, self._start: now.start}
        if now.period != shown.period:
            updates[self._timer] = gr.Timer(now.period)
        if now.choices != shown.choices:
            gone = choice != LATEST and seen is None
            updates[self.run_choice] = gr.update(choices=[*now.choices], value=LATEST if gone else choice)
            updates[self._copy_from] = gr.update(choices=[name for _, name in now.choices if name != LATEST])
        if (now.waiting, now.failed_before) != (shown.waiting, shown.failed_before):
            updates[self.queue] = queue_html(overview)
        if now.trash != shown.trash:
            updates |= self._trash.updates(overview.trash)
        if seen:
            return updates | self._run_updates(seen, now, shown)
        return updates | self._empty()

    def _empty(self) -> dict[Any, Any]:
        """Updates of a monitor that has nothing to show."""
        own = {
            self.status: _NO_RUN,
            self.chart: empty_chart(),
            self.checkpoints: "",
            self.log: "",
            self.receipt: None,
            self.name: "",
        }
        return own | self.actions.updates(None, other_run=True) | self.failure.updates(None)

    def _run_updates(self, seen: Seen, now: Shown, shown: Shown) -> dict[Any, Any]:
        """Updates of the parts of the monitor that are about the run, each drawn once for all pages."""
        updates: dict[Any, Any] = {}
        run, name = seen.run, seen.run.name
        other_run = now.name != shown.name
        if other_run or now.state != shown.state:
            updates |= self.actions.updates(seen, other_run=other_run)
            updates |= self.failure.updates(seen)
            receipt = self.lookout.drawn("receipt", name, now.state, lambda: _read_receipt(run))
            updates |= {self.name: name, self.receipt: receipt}
        if now.failed != shown.failed:
            updates[self._log_box] = gr.update(open=now.failed)
        if other_run or (now.status, now.events_size) != (shown.status, shown.events_size):
            updates[self.status] = self.lookout.drawn(
                "status", name, (now.status, now.events_size), lambda: status_html(seen, self._histories.read(run))
            )
        if other_run or (now.state, now.events_size) != (shown.state, shown.events_size):
            updates[self.chart], updates[self.checkpoints] = self.lookout.drawn(
                "history", name, (now.state, now.events_size), lambda: self._drawn_history(seen)
            )
        if other_run or (now.failed, now.log_size) != (shown.failed, shown.log_size):
            # A box that has only just opened shows the first of its lines: of a failure the last ones count.
            lines = _LOG_LINES if now.failed else _MOST_LOG_LINES
            key = now.state, now.log_size
            updates[self.log] = self.lookout.drawn("log", name, key, lambda: run.log_tail(lines))
        return updates

    def _drawn_history(self, seen: Seen) -> tuple[dict[str, Any], str]:
        history = self._histories.read(seen.run)
        ended = seen.state.status.ended
        return _chart(seen.run, history, ended=ended), checkpoints_html(seen.run, history, not ended)


def _now(overview: Overview, seen: Seen | None, method: str) -> Shown:
    """What a page shows after this look."""
    common = Shown(
        choices=overview.choices,
        waiting=overview.waiting,
        failed_before=overview.failed_before,
        trash=tuple(trashed.folder.name for trashed in overview.trash),
        start="Add to the queue" if overview.busy else start_label(method),
    )
    if seen is None:
        return common
    return common._replace(
        name=seen.run.name,
        state=seen.key,
        status=f"{seen.key} {seen.ended_in}",
        events_size=seen.events_size,
        log_size=seen.log_size,
        failed=seen.failed,
    )


def _chart(run: Run, history: History, *, ended: bool) -> dict[str, Any]:
    """The curves, with markers for the checkpoints that are still on the disk."""
    if not history.steps and ended:
        return empty_chart("There is no loss curve: this training ended before its first step.")
    on_disk = {checkpoint.step for checkpoint in run.checkpoints()}
    history.checkpoints = [event for event in history.checkpoints if event.step in on_disk]
    return chart_value(run.name, history)


def _read_receipt(run: Run) -> Any:
    try:
        return json.loads(run.receipt_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
