"""The question what becomes of a LoRA whose name a new training was given."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import gradio as gr

from training.paths import free_path
from training.run_state import Status
from training.runs import Run
from ui.events import QUIET

# What each button means, as the setting `if_exists` says it.
NEW_VERSION, CONTINUE, OVERWRITE = "new version", "continue", "overwrite"
_IS = {
    Status.DONE: "is done",
    Status.STOPPED: "was stopped",
    Status.FAILED: "failed",
    Status.QUEUED: "waits in the queue",
}


class NameBox:
    """The question and its buttons; in view after a start on a taken name until it is answered."""

    def __init__(self) -> None:
        self.asked_about = gr.State("")  # the name that the question is about
        with gr.Column(visible=False, elem_id="name-box", elem_classes="graft-ask") as self._box:
            self._text = gr.HTML(padding=False)
            with gr.Row():
                self._new = gr.Button(variant="primary", size="sm", min_width=120, elem_id="name-new")
                self._continue = gr.Button("Continue it", size="sm", min_width=100, elem_id="name-continue")
                self._overwrite = gr.Button("Overwrite it", size="sm", min_width=100, elem_id="name-overwrite")
                self._not_now = gr.Button("Not now", size="sm", min_width=80, elem_id="name-not-now")

    def wire(self, name: Any) -> None:
        """Take the question away where it is declined or another name is typed into `name`."""
        gr.on([self._not_now.click, name.input], self.hidden, None, self.outputs, **QUIET)

    @property
    def answers(self) -> list[tuple[gr.Button, str]]:
        """The buttons that start the training, and the `if_exists` that each stands for."""
        return [(self._new, NEW_VERSION), (self._continue, CONTINUE), (self._overwrite, OVERWRITE)]

    @property
    def outputs(self) -> list[Any]:
        """The components that `asked` and `hidden` update."""
        return [self.asked_about, self._box, self._text, self._new, self._continue, self._overwrite]

    def asked(self, run: Run) -> dict[Any, Any]:
        """Updates that ask about the run that has the name."""
        ended = run.state().status.ended
        can_go_on = ended and bool(run.checkpoints())
        said = f"The name is taken: {_about(run)}" + (" Overwriting moves it to loras/.replaced/." if ended else "")
        return {
            self.asked_about: run.name,
            self._box: gr.update(visible=True),
            self._text: f'<div role="alert">{escape(said)}</div>',
            self._new: gr.update(value=f"Save as {free_path(run.folder).name}"),
            self._continue: gr.update(visible=can_go_on),
            self._overwrite: gr.update(visible=ended),
        }

    def hidden(self) -> dict[Any, Any]:
        """Updates that take the question away."""
        return {self._box: gr.update(visible=False), self.asked_about: ""}


def _about(run: Run) -> str:
    """What is there, in a sentence: "'my-lora' is done, 105 steps, 2 hours ago."."""
    state = run.state()
    parts = [f"'{run.name}' {_IS.get(state.status, 'is being trained')}"]
    if checkpoints := run.checkpoints():
        parts.append(f"{checkpoints[-1].step:,} steps")
    if state.status.ended and run.is_graft():
        parts.append(ago(time.time() - state.changed))
    return ", ".join(parts) + "."


def ago(seconds: float) -> str:
    """How long ago, no more exact than people say it."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
