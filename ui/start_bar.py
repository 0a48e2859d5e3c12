"""The bar under the form, in view wherever the reader has scrolled to: check, start, and what there is to say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from training.errors import UserError
from training.parsing import parse_runnable
from training.run_state import Status
from training.run_store import NameInUse
from training.runs import Run
from training.supervisor import Supervisor
from ui.events import QUIET
from ui.lookout import LATEST
from ui.memory_box import MemoryBox
from ui.messages import news_html, problems_html
from ui.method_box import start_label
from ui.monitor_panel import MonitorPanel
from ui.name_box import NameBox

_ASK = "ask"


class StartBar:
    """The bar's buttons, the message over them, and what the start button does."""

    def __init__(self, supervisor: Supervisor, memory_box: MemoryBox) -> None:
        self._supervisor = supervisor
        self._memory_box = memory_box

    def build(self, method: str, message: str) -> None:
        """Place the bar, with the button named after the method."""
        with gr.Column(elem_id="start-bar"):
            self.message = gr.HTML(message, elem_id="form-message")
            self._name_box = NameBox()
            self._memory_box.build_result()
            with gr.Row():
                self.check = gr.Button("Check data", size="lg", scale=1, min_width=120, elem_id="check")
                self._memory_box.build_button()
                self.start = gr.Button(start_label(method), variant="primary", size="lg", scale=3, elem_id="start")

    def wire(
        self, inputs: Sequence[Any], values: Callable[..., dict[str, Any]], name: Any, monitor: MonitorPanel
    ) -> None:
        """Start what `values` makes of the `inputs`; `name` is the control whose name may be taken."""
        box = self._name_box
        given = [monitor.starts, box.asked_about, *inputs]
        outputs = [self.message, monitor.run_choice, monitor.starts, *box.outputs]

        def start_as(if_exists: str) -> Callable[..., dict[Any, Any]]:
            def start(starts: int, asked_about: str, *form: Any) -> dict[Any, Any]:
                wanted = values(*form)
                if if_exists:
                    # A name that was changed after the question was put is asked about anew.
                    wanted["if_exists"] = if_exists if wanted["name"].strip() == asked_about else _ASK
                try:
                    run = self._supervisor.submit(parse_runnable(wanted))
                except NameInUse as question:
                    return {self.message: ""} | box.asked(question.run)
                except UserError as error:
                    return {self.message: problems_html(str(error).splitlines())}
                finally:
                    monitor.lookout.forget()
                started = {monitor.run_choice: LATEST, monitor.starts: starts + 1}
                return box.hidden() | started | {self.message: news_html(self._news(run, wanted["name"].strip()))}

            return start

        for button, if_exists in ((self.start, ""), *box.answers):
            button.click(start_as(if_exists), given, outputs, **QUIET)
        box.wire(name)

    def _news(self, run: Run, asked: str) -> list[str]:
        """What became of a start that went well."""
        waiting = [other.name for other in self._supervisor.queue.runs()]
        queued = run.stored_state().status is Status.QUEUED and run.name in waiting
        place = f"waits in the queue, place {waiting.index(run.name) + 1}" if queued else "has started"
        said = [f"'{run.name}' {place}." if queued else f"Training '{run.name}' {place}."]
        return [*said, f"The name '{asked}' was taken."] if run.name != asked else said
