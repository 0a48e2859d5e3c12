"""What to do about a run that failed: what would make it fit into memory, a gentler learning rate, and a report."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import gradio as gr

from training.errors import UserError
from training.model_facts import size_text
from training.paths import Folders
from training.post_mortem import report
from training.remedies import Remedy, remedies
from training.run_state import Reason
from training.runs import find_run
from ui.events import QUIET
from ui.lookout import Seen
from ui.messages import note_html, quiet_html

_MOST_OFFERED = 8
_WITH_REPORT = (Reason.UNKNOWN, Reason.CRASHED)
_SEARCHING = "Looking for what would make it fit ..."
_LOWER_RATE = 0.5
_SOON = 0.1  # seconds
_MOST_KEPT = 32  # failures whose remedies are in memory


class Failure(NamedTuple):
    """A failure on display: which run, when it failed, and what kind it was."""

    name: str = ""
    changed: float = 0.0
    reason: Reason | None = None


class FailureBox:
    """The buttons and the report under the cause of a failure; in view only where there is something to offer."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._searching = threading.Lock()
        self._known: dict[Failure, list[Remedy]] = {}
        self._failure = gr.State(Failure())
        # Runs once for a failure that comes into view. Not the state's own event: Gradio triggers that only from
        # what goes through its queue, and ticks of the monitor do not.
        self._due = gr.Timer(_SOON, active=False)
        self.found = gr.State([])
        with gr.Column(visible=False, elem_id="monitor-remedies", elem_classes="graft-remedies") as self._box:
            self._about = gr.HTML(padding=False, elem_id="monitor-remedies-about")
            self.remedies = [
                gr.Button(visible=False, size="sm", elem_id=f"monitor-remedy-{number}")
                for number in range(_MOST_OFFERED)
            ]
            self.slower = gr.Button(
                "Continue at half the learning rate",
                visible=False,
                variant="primary",
                size="md",
                elem_id="monitor-slower",
            )
        with gr.Accordion(
            "Report: what to send to whoever looks into it", open=False, visible=False, elem_id="monitor-report-box"
        ) as self._report_box:
            self._report = gr.Textbox(
                label="Without tokens, passwords and the name of your home folder",
                lines=12,
                max_lines=12,
                interactive=False,
                buttons=["copy"],
                autoscroll=False,
                elem_id="monitor-report",
            )

    def wire(self) -> None:
        """Look into each failure that comes into view."""
        shown = [self._about, *self.remedies, self.found, self._report]
        due = self._due.tick(lambda: gr.Timer(active=False), None, self._due, queue=False, **QUIET)
        due.then(self._look_into, self._failure, shown, **QUIET)

    @property
    def outputs(self) -> list[Any]:
        """The components that `updates` updates."""
        return [
            self._failure,
            self._due,
            self.found,
            self._box,
            self._about,
            *self.remedies,
            self.slower,
            self._report_box,
        ]

    def updates(self, seen: Seen | None) -> dict[Any, Any]:
        """Updates that show the box for this run, at first without what takes a while to find out."""
        failed = seen is not None and seen.failed
        reason = seen.state.reason if seen and failed else None
        hidden = {button: gr.update(visible=False) for button in self.remedies}
        diverged = bool(seen and reason is Reason.DIVERGED and seen.run.checkpoints())
        return hidden | {
            self._failure: Failure(seen.run.name, seen.state.changed, reason) if seen and failed else Failure(),
            self._due: gr.Timer(active=reason in (Reason.MEMORY, *_WITH_REPORT)),
            self.found: [],
            self._box: gr.update(visible=reason is Reason.MEMORY or diverged),
            self._about: quiet_html(_SEARCHING) if reason is Reason.MEMORY else "",
            self.slower: gr.update(visible=diverged),
            self._report_box: gr.update(visible=reason in _WITH_REPORT),
        }

    def _look_into(self, failure: Failure) -> dict[Any, Any]:
        try:
            if failure.reason is Reason.MEMORY:
                return self._offered(self._remedies(failure))
            if failure.reason in _WITH_REPORT:
                return {self._report: report(find_run(self._folders, failure.name))}
        except UserError as error:  # the run, its model or its data is gone meanwhile
            return {self._about: note_html(str(error), "warning"), self.found: []}
        return {self.found: []}

    def _remedies(self, failure: Failure) -> list[Remedy]:
        """Looked for once, however many pages show the run: this loads torch."""
        with self._searching:
            if failure not in self._known:
                found = remedies(find_run(self._folders, failure.name), self._folders)
                if len(self._known) >= _MOST_KEPT:
                    self._known.clear()
                self._known[failure] = found[:_MOST_OFFERED]
            return self._known[failure]

    def _offered(self, found: list[Remedy]) -> dict[Any, Any]:
        about = "What would make it fit, the largest gain first:"
        if not found:
            about = "No change of the settings is known that would make it fit: choose a smaller base model."
        updates: dict[Any, Any] = {self._about: quiet_html(about), self.found: found}
        for button, remedy in zip(self.remedies, found, strict=False):
            updates[button] = gr.update(visible=True, value=_label(remedy))
        return updates


def halved_rate(name: str, folders: Folders) -> dict[str, Any]:
    """The change of settings that lets a run whose loss broke go on more gently."""
    return {"learning_rate": find_run(folders, name).settings().learning_rate * _LOWER_RATE}


def _label(remedy: Remedy) -> str:
    then = "" if remedy.continues else " (a new training)"
    return f"{remedy.label}: about {size_text(remedy.saves)} less{then}"
