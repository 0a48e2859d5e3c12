"""The monitor: shows one run as it stands in its folder, in any number of pages, and what can be done with it."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NamedTuple

import gradio as gr

from training.history import History
from training.paths import Folders
from training.runs import Run
from training.supervisor import Supervisor
from ui.chart import EMPTY_TEXT, FIRST_STEP_TEXT, Curves, LiveCurves, curves_update, live_chart, no_curves
from ui.disk_choice import DiskChoice
from ui.events import QUIET
from ui.failure_box import FailureBox
from ui.lookout import LATEST, Lookout, Overview, Seen
from ui.method_box import start_label
from ui.monitor import Histories, checkpoints_html, queue_html, status_html
from ui.run_actions import RunActions
from ui.trash_box import TrashBox

_LOG_LINES, _MOST_LOG_LINES = 10, 30
_SOON = 0.1  # seconds
_NO_RUN = (
    '<p class="graft-quiet" id="no-run">No training yet. Fill in the form and click <b>Start LoRA Training</b>.</p>'
)


class Around(NamedTuple):
    """What a page shows beside what a training changes with every step."""

    choices: tuple[tuple[str, str], ...] = ()
    waiting: tuple[str, ...] = ()
    failed_before: str = ""
    trash: tuple[str, ...] = ()
    start: str = ""  # what stands on the button
    name: str = ""
    state: str = ""
    failed: bool = False


class Shown(NamedTuple):
    """What a page shows already, so that a tick sends only what has changed."""

    around: Around = Around()
    name: str = ""
    state: str = ""
    status: str = ""
    events_read: int = 0  # bytes
    log_size: int = 0  # bytes
    curves: int = 0  # the version of their body
    checkpoints: int = 0  # the hash of their table
    period: int = 1  # seconds between ticks


class MonitorPanel:
    """The monitor's components and the events between them."""

    def __init__(self, folders: Folders, supervisor: Supervisor) -> None:
        self._folders = folders
        self._histories = Histories()
        self.lookout = Lookout(folders, supervisor.queue)
        self.run_choice = DiskChoice(
            choices=[*self.lookout.overview().choices],
            value=LATEST,
            label="Run",
            elem_id="monitor-run",
            interactive=True,
        )
        self.status = gr.HTML(_NO_RUN, elem_id="monitor-status")
        self.failure = FailureBox(folders)
        self.actions = RunActions(folders, supervisor, self.lookout)
        self._trash = TrashBox(folders, self.lookout)  # up here, where Undo is seen after a click on Delete
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
        self.starts = gr.State(0)  # trainings started from this page
        self.name = gr.State("")  # the run on display
        self._shown = gr.State(Shown())
        self._due = gr.Timer(_SOON, active=False)  # runs when more than a tick sends has to be sent
        self._timer = gr.Timer(Shown().period)

    def wire(self, page: gr.Blocks, start: gr.Button, copy_from: gr.Dropdown, method: Any) -> None:
        """Keep the panel, what `start` says (by `method`) and the runs in `copy_from` in step with the folders."""
        self._start, self._copy_from, self._method = start, copy_from, method
        quiet = QUIET | {"queue": False}
        # Gradio computes for each output of an event, sent or not: a tick has only those that a step changes.
        self._timer.tick(self.tick, self._inputs, [*self._moving, self._due], **quiet)
        self._due.tick(self._catch_up, self._inputs, [*self.outputs, self._due], **quiet)
        changes = [self.run_choice.change, self.starts.change, method.change]
        gr.on(changes, self.refresh, self._inputs, self.outputs, **quiet)
        # A page that was just loaded shows nothing yet, whatever its state says; one with a stale chart gets all anew.
        for shows_nothing in (page.load, self.chart.stale):
            shows_nothing(
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
    def _moving(self) -> list[Any]:
        """The components that a step of the training changes."""
        return [self.status, self.chart, self.checkpoints, self.log, self._shown, self._timer]

    @property
    def outputs(self) -> list[Any]:
        """The components that `refresh` updates."""
        own = [self.run_choice, self.queue, self._log_box, self.receipt, self.name, self._start, self._copy_from]
        return [*self._moving, *own, *self.failure.outputs, *self.actions.outputs, *self._trash.outputs]

    def tick(self, choice: str, shown: Shown, method: str) -> Any:
        """Updates by component for what a step has changed since `shown`; all else is left to `refresh`."""
        overview, seen = self._look(choice)
        now = self._now(seen, shown)._replace(period=self.lookout.pace(shown.period))
        updates = self._moved(seen, now, shown)
        if _around(overview, seen, method) != shown.around:
            updates[self._due] = gr.Timer(active=True)
        return updates or gr.skip()

    def refresh(self, choice: str, shown: Shown, method: str) -> Any:
        """Updates by component for all that has changed since `shown`."""
        return self._all_updates(choice, shown, method) or gr.skip()

    def _catch_up(self, choice: str, shown: Shown, method: str) -> dict[Any, Any]:
        """What `refresh` sends, once."""
        return self._all_updates(choice, shown, method) | {self._due: gr.Timer(active=False)}

    def _all_updates(self, choice: str, shown: Shown, method: str) -> dict[Any, Any]:
        overview, seen = self._look(choice)
        now = self._now(seen, shown)._replace(around=_around(overview, seen, method))
        return self._moved(seen, now, shown) | self._around_updates(choice, overview, seen, now.around, shown.around)

    def _look(self, choice: str) -> tuple[Overview, Seen | None]:
        """All runs, and the one on display."""
        overview = self.lookout.overview()
        seen = overview.find(choice)
        if seen and not seen.run.folder.is_dir():  # moved away since the look
            self.lookout.forget()
            overview = self.lookout.overview()
            seen = overview.find(choice)
        return overview, seen

    def _now(self, seen: Seen | None, shown: Shown) -> Shown:
        """What a page shows of the run after this look; what it shows around it stays for now."""
        kept = Shown(around=shown.around, period=shown.period)
        if seen is None:
            return kept
        return kept._replace(
            name=seen.run.name,
            state=seen.key,
            status=f"{seen.key} {seen.ended_in}",
            events_read=self._histories.look(seen.run, seen.events_size),
            log_size=seen.log_size,
            curves=shown.curves,
            checkpoints=shown.checkpoints,
        )

    def _moved(self, seen: Seen | None, now: Shown, shown: Shown) -> dict[Any, Any]:
        """Updates of what a step of the training changes, each drawn once for all pages."""
        updates: dict[Any, Any] = {}
        if seen is None:
            if shown.name or shown == Shown():
                updates = {
                    self.status: _NO_RUN,
                    self.chart: curves_update(no_curves(EMPTY_TEXT), 0),
                    self.checkpoints: "",
                    self.log: "",
                }
        else:
            now = self._drawn(seen, now, shown, updates)
        if now.period != shown.period:
            updates[self._timer] = gr.Timer(now.period)
        if now != shown:
            updates[self._shown] = now
        return updates

    def _drawn(self, seen: Seen, now: Shown, shown: Shown, updates: dict[Any, Any]) -> Shown:
        """Add the updates of what is drawn of a run; returns what is shown then."""
        run, name, other_run = seen.run, now.name, now.name != shown.name
        if other_run or (now.status, now.events_read) != (shown.status, shown.events_read):
            unread = seen.events_size - now.events_read
            updates[self.status] = self.lookout.drawn(
                "status",
                name,
                (now.status, now.events_read),
                lambda: self._histories.draw(run, lambda history, _: status_html(seen, history, unread)),
            )
        if other_run or (now.state, now.events_read) != (shown.state, shown.events_read):
            curves, checkpoints = self.lookout.drawn(
                "history", name, (now.state, now.events_read), lambda: self._drawn_history(seen)
            )
            updates[self.chart] = curves_update(curves, shown.curves)
            now = now._replace(curves=curves.version, checkpoints=hash(checkpoints))
            if other_run or now.checkpoints != shown.checkpoints:
                updates[self.checkpoints] = checkpoints
        if other_run or (seen.failed, now.log_size) != (shown.around.failed, shown.log_size):
            # A box that has only just opened shows the first of its lines: of a failure the last ones count.
            lines = _LOG_LINES if seen.failed else _MOST_LOG_LINES
            key = now.state, now.log_size
            updates[self.log] = self.lookout.drawn("log", name, key, lambda: run.log_tail(lines))
        return now

    def _around_updates(
        self, choice: str, overview: Overview, seen: Seen | None, now: Around, shown: Around
    ) -> dict[Any, Any]:
        """Updates of all else."""
        updates: dict[Any, Any] = {}
        if now.start != shown.start:
            updates[self._start] = now.start
        if now.choices != shown.choices:
            gone = choice != LATEST and seen is None
            updates[self.run_choice] = gr.update(choices=[*now.choices], **({"value": LATEST} if gone else {}))
            updates[self._copy_from] = gr.update(choices=[name for _, name in now.choices if name != LATEST])
        if (now.waiting, now.failed_before) != (shown.waiting, shown.failed_before):
            updates[self.queue] = queue_html(overview)
        if now.trash != shown.trash:
            updates |= self._trash.updates(overview.trash)
        if now.failed != shown.failed:
            updates[self._log_box] = gr.update(open=now.failed)
        other_run = now.name != shown.name
        if other_run or now.state != shown.state:
            updates |= self.actions.updates(seen, other_run=other_run)
            updates |= self.failure.updates(seen)
            receipt = (
                self.lookout.drawn("receipt", now.name, now.state, lambda: _read_receipt(seen.run)) if seen else None
            )
            updates |= {self.name: now.name, self.receipt: receipt}
        return updates

    def _drawn_history(self, seen: Seen) -> tuple[Curves, str]:
        """The chart with markers for the checkpoints that are still on the disk, and the table of these."""
        on_disk = {checkpoint.step for checkpoint in seen.run.checkpoints()}
        ended = seen.state.status.ended
        return self._histories.draw(
            seen.run,
            lambda history, curves: (
                _chart(curves, history, on_disk, ended),
                checkpoints_html(on_disk, history, not ended),
            ),
        )


def _around(overview: Overview, seen: Seen | None, method: str) -> Around:
    """What a page shows beside what moves, after this look."""
    common = Around(
        choices=overview.choices,
        waiting=overview.waiting,
        failed_before=overview.failed_before,
        trash=tuple(trashed.folder.name for trashed in overview.trash),
        start="Add to the queue" if overview.busy else start_label(method),
    )
    return common._replace(name=seen.run.name, state=seen.key, failed=seen.failed) if seen else common


def _chart(curves: LiveCurves, history: History, on_disk: Collection[int], ended: bool) -> Curves:
    """The curves, or what stands in their place."""
    if history.training or history.evaluation:
        return curves.update(history, on_disk)
    return no_curves("There is no loss curve: this training ended before its first step." if ended else FIRST_STEP_TEXT)


def _read_receipt(run: Run) -> Any:
    try:
        return json.loads(run.receipt_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
