"""A question that stands in the page until it is answered, before something that is not done by a slip of the hand."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from ui.events import QUIET


class Question:
    """The question and its two buttons; nothing of it is in view until it is asked."""

    def __init__(self, yes: str, no: str, elem_id: str) -> None:
        with gr.Column(visible=False, elem_id=elem_id, elem_classes="graft-ask") as self.box:
            self._text = gr.HTML(padding=False)
            with gr.Row():
                self.yes = gr.Button(yes, variant="stop", size="sm", min_width=120, elem_id=f"{elem_id}-yes")
                self._no = gr.Button(no, size="sm", min_width=120, elem_id=f"{elem_id}-no")
        self._no.click(self.hidden, None, self.outputs, **QUIET)
        # At once, so that nobody clicks twice.
        self.yes.click(self.hidden, None, self.outputs, **QUIET)

    @property
    def outputs(self) -> list[Any]:
        """The components that `asked` and `hidden` update."""
        return [self.box, self._text]

    def asked(self, text: str) -> dict[Any, Any]:
        """Updates that ask."""
        return {self.box: gr.update(visible=True), self._text: f'<div role="alert">{escape(text)}</div>'}

    def hidden(self) -> dict[Any, Any]:
        """Updates that take the question away."""
        return {self.box: gr.update(visible=False)}
