"""The monitor: shows one run as it stands in its folder, in any number of pages, and can stop or continue it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import gradio as gr

from training import supervisor
from training.errors import UserError
from training.history import History
from training.paths import Folders
from training.runs import Run, State, Status, find_run, list_runs
from ui.chart import chart_value, empty_chart, live_chart
from ui.events import QUIET
from ui.monitor import Histories, checkpoints_html, status_html

LATEST = ""  # the choice that follows whatever was started last
_TICK = 1.0  # seconds
_NO_RUN = (
    '<p class="graft-quiet" id="no-run">No training yet. Fill in the form and click <b>Start LoRA Training</b>.</p>'
)


class Shown(NamedTuple):
    """What a page shows already, so that a tick sends only what has changed."""

    names: tuple[str, ...] = ()
    training: bool = False  # whether any run is being trained
    name: str = ""
    state: str = ""
    events_size: int = 0  # bytes
    log_size: int = 0  # bytes


class MonitorPanel:
    """The monitor's components and the events between them."""

    def __init__(self, folders: Folders, histories: Histories) -> None:
        self._folders = folders
        self._histories = histories
        self.run_choice = gr.Dropdown(
            choices=self._choices(()), value=LATEST, label="Run", elem_id="monitor-run", interactive=True
        )
        self.status = gr.HTML(_NO_RUN, elem_id="monitor-status")
        with gr.Row(elem_classes="graft-actions"):
            self.stop = gr.Button("Stop and save", variant="stop", visible=False, elem_id="monitor-stop")
            self.go_on = gr.Button("Continue", visible=False, elem_id="monitor-continue")
            self.chat = gr.Button("Chat with it", variant="primary", visible=False, elem_id="monitor-chat")
        self.chart = live_chart()
        self.checkpoints = gr.HTML(elem_id="monitor-checkpoints")
        with gr.Accordion("Log", open=False, elem_id="monitor-log-box"):
            self.log = gr.Textbox(
                show_label=False, lines=10, max_lines=10, interactive=False, elem_id="monitor-log", container=False
            )
        with gr.Accordion("Receipt: exactly what ran", open=False):
            self.receipt = gr.JSON(show_label=False, elem_id="monitor-receipt")
        self.starts = gr.State(0)  # trainings started or continued from this page
        self._shown = gr.State(Shown())
        self._timer = gr.Timer(_TICK)

    def wire(self, page: gr.Blocks, start: gr.Button, copy_from: gr.Dropdown) -> None:
        """Keep the panel, whether `start` can be clicked, and the runs in `copy_from` in step with the run folders."""
        self._start, self._copy_from = start, copy_from
        outputs = [
            self.run_choice,
            self.status,
            self.stop,
            self.go_on,
            self.chat,
            self.chart,
            self.checkpoints,
            self.log,
            self.receipt,
            self._shown,
            start,
            copy_from,
        ]
        quiet = QUIET | {"concurrency_limit": None}
        gr.on(
            [self._timer.tick, self.run_choice.change], self.refresh, [self.run_choice, self._shown], outputs, **quiet
        )
        # A page that was just loaded shows nothing yet, whatever its state says.
        page.load(lambda choice: self.refresh(choice, Shown()), self.run_choice, outputs, **quiet)
        self.stop.click(self._ask_to_stop, self.run_choice, None, **quiet)
        self.go_on.click(self._continue, [self.run_choice, self.starts], self.starts, **quiet)

    def refresh(self, choice: str, shown: Shown) -> Any:
        """Updates by component for what has changed since `shown`."""
        runs = list_runs(self._folders)
        run = _find(runs, choice)
        state = run.state() if run else None
        now = Shown(
            names=tuple(r.name for r in runs),
            training=any(r.state().status.active for r in runs),
            name=run.name if run else "",
            state=f"{state.status} {state.changed} {run.stop_requested()}" if run and state else "",
            events_size=_size(run.events_file) if run else 0,
            log_size=_size(run.log_file) if run else 0,
        )
        if now == shown != Shown():
            return gr.skip()
        updates: dict[Any, Any] = {self._shown: now, self._start: gr.update(interactive=not now.training)}
        if now.names != shown.names:
            gone = choice != LATEST and run is None
            updates[self.run_choice] = gr.update(choices=self._choices(now.names), value=LATEST if gone else choice)
            updates[self._copy_from] = gr.update(choices=list(now.names))
        if run and state:
            return updates | self._run_updates(run, state, now, shown)
        return updates | self._empty()

    def _empty(self) -> dict[Any, Any]:
        """Updates of a monitor that has nothing to show."""
        hidden = gr.update(visible=False)
        return {
            self.status: _NO_RUN,
            self.stop: hidden,
            self.go_on: hidden,
            self.chat: hidden,
            self.chart: empty_chart(),
            self.checkpoints: "",
            self.log: "",
            self.receipt: None,
        }

    def _run_updates(self, run: Run, state: State, now: Shown, shown: Shown) -> dict[Any, Any]:
        """Updates of the parts of the monitor that are about the run."""
        updates: dict[Any, Any] = {}
        active, stopping = state.status.active, run.stop_requested()
        other_run = now.name != shown.name
        if other_run or (now.state, now.training) != (shown.state, shown.training):
            can_continue = not active and state.status is not Status.DONE and bool(run.checkpoints())
            updates[self.stop] = gr.update(visible=active, interactive=not stopping)
            updates[self.go_on] = gr.update(visible=can_continue, interactive=not now.training)
            updates[self.chat] = gr.update(visible=not active and run.has_result())
            updates[self.receipt] = _read_receipt(run)
        if other_run or (now.state, now.events_size) != (shown.state, shown.events_size):
            history = self._histories.read(run)
            updates[self.status] = status_html(run, state, history, stopping)
            updates[self.chart] = _chart(run, state, history)
            updates[self.checkpoints] = checkpoints_html(run, history, active)
        if other_run or now.log_size != shown.log_size:
            updates[self.log] = run.log_tail()
        return updates

    def _ask_to_stop(self, choice: str) -> None:
        if run := _find(list_runs(self._folders), choice):
            run.request_stop()

    def _continue(self, choice: str, starts: int) -> int:
        try:
            run = find_run(self._folders, self.shown_run_name(choice))
            supervisor.start(run.settings().model_copy(update={"if_exists": "continue"}), self._folders)
        except UserError as error:
            raise gr.Error(str(error), title="Not continued", print_exception=False) from error
        return starts + 1

    def shown_run_name(self, choice: str) -> str:
        """The name of the run on display; empty when there is none."""
        run = _find(list_runs(self._folders), choice)
        return run.name if run else ""

    @staticmethod
    def _choices(names: tuple[str, ...]) -> list[tuple[str, str]]:
        return [("The latest", LATEST), *((name, name) for name in names)]


def _find(runs: list[Run], choice: str) -> Run | None:
    """The run chosen; for the latest the one that is training, else the newest."""
    if choice != LATEST:
        return next((run for run in runs if run.name == choice), None)
    return next((run for run in runs if run.state().status.active), runs[0] if runs else None)


def _chart(run: Run, state: State, history: History) -> dict[str, Any]:
    """The curves, with markers for the checkpoints that are still on the disk."""
    if not history.steps and not state.status.active:
        return empty_chart("There is no loss curve: this training ended before its first step.")
    on_disk = {checkpoint.step for checkpoint in run.checkpoints()}
    history.checkpoints = [event for event in history.checkpoints if event.step in on_disk]
    return chart_value(run.name, history)


def _size(path: Any) -> int:
    return path.stat().st_size if path.is_file() else 0


def _read_receipt(run: Run) -> Any:
    try:
        return json.loads(run.receipt_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
