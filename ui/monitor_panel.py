"""The monitor: shows one run as it stands in its folder, in any number of pages, and can stop or continue it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import gradio as gr

from training import supervisor
from training.errors import UserError
from training.paths import Folders
from training.runs import Run, State, Status, list_runs
from ui.chart import chart_value, empty_chart, live_chart
from ui.monitor import Histories, checkpoints_html, status_html

LATEST = ""  # the choice that follows whatever was started last
_TICK = 1.0  # seconds
_NO_RUN = '<p class="graft-quiet">No training yet. Fill in the form and click <b>Start LoRA Training</b>.</p>'


class Shown(NamedTuple):
    """What a page shows already, so that a tick sends only what has changed."""

    names: tuple[str, ...] = ()
    name: str = ""
    state: str = ""
    events_size: int = -1
    log_size: int = -1


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
        self._shown = gr.State(Shown())
        self._timer = gr.Timer(_TICK)

    def wire(self, page: gr.Blocks, start: gr.Button) -> None:
        """Keep the panel, and whether `start` can be clicked, in step with the run folders."""
        outputs = [
            self.run_choice,
            self.status,
            self.stop,
            self.go_on,
            self.chat,
            start,
            self.chart,
            self.checkpoints,
            self.log,
            self.receipt,
            self._shown,
        ]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        inputs = [self.run_choice, self._shown]
        gr.on([self._timer.tick, self.run_choice.change], self.refresh, inputs, outputs, **quiet)
        # A page that was just loaded shows nothing yet, whatever its state says.
        page.load(lambda choice: self.refresh(choice, Shown()), self.run_choice, outputs, **quiet)
        self.stop.click(self._ask_to_stop, self.run_choice, None, **quiet)
        self.go_on.click(self._continue, self.run_choice, None, **quiet)

    def refresh(self, choice: str, shown: Shown) -> list[Any]:
        """Updates for all outputs of `wire`; unchanged parts are left alone."""
        runs = list_runs(self._folders)
        run = _find(runs, choice)
        names = tuple(r.name for r in runs)
        choices = gr.skip() if names == shown.names else gr.update(choices=self._choices(names))
        if run is None:
            now = Shown(names=names)
            if now == shown:
                return [gr.skip()] * 11
            hidden = gr.update(visible=False)
            return [
                choices,
                _NO_RUN,
                hidden,
                hidden,
                hidden,
                gr.update(interactive=True),
                empty_chart(),
                "",
                "",
                None,
                now,
            ]
        state = run.state()
        stopping = run.stop_requested()
        now = Shown(
            names, run.name, f"{state.status} {state.changed} {stopping}", _size(run.events_file), _size(run.log_file)
        )
        if now == shown:
            return [gr.skip()] * 11
        return [choices, *self._changed(run, state, stopping, runs, now, shown), now]

    def _changed(self, run: Run, state: State, stopping: bool, runs: list[Run], now: Shown, shown: Shown) -> list[Any]:
        """Updates for everything but the run's choice and the memory of what is shown."""
        other_run = now.name != shown.name
        new_state = other_run or now.state != shown.state
        new_events = new_state or now.events_size != shown.events_size
        history = self._histories.read(run)
        active = state.status.active
        can_continue = not active and state.status is not Status.DONE and bool(run.checkpoints())
        training = any(r.state().status.active for r in runs)
        return [
            status_html(run, state, history, stopping) if new_events else gr.skip(),
            gr.update(visible=active, interactive=not stopping) if new_state else gr.skip(),
            gr.update(visible=can_continue, interactive=not training) if new_state else gr.skip(),
            gr.update(visible=not active and run.has_adapter()) if new_state else gr.skip(),
            gr.update(interactive=not training),
            chart_value(run.name, history) if new_events else gr.skip(),
            checkpoints_html(run, history) if new_events else gr.skip(),
            run.log_tail() if other_run or now.log_size != shown.log_size else gr.skip(),
            _read_receipt(run) if new_state else gr.skip(),
        ]

    def _ask_to_stop(self, choice: str) -> None:
        if run := _find(list_runs(self._folders), choice):
            run.request_stop()

    def _continue(self, choice: str) -> None:
        run = _find(list_runs(self._folders), choice)
        if run is None:
            return
        try:
            supervisor.start(run.settings().model_copy(update={"if_exists": "continue"}), self._folders)
        except UserError as error:
            raise gr.Error(str(error), title="Not continued", print_exception=False) from error

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


def _size(path: Any) -> int:
    return path.stat().st_size if path.is_file() else 0


def _read_receipt(run: Run) -> Any:
    try:
        return json.loads(run.receipt_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
