"""The buttons under a run: those that make sense in its state, with a question before what cannot be taken back."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from training.errors import UserError
from training.paths import Folders
from training.run_state import Reason, Status
from training.run_store import extended
from training.runs import Run, find_run
from training.supervisor import Supervisor
from ui.events import QUIET
from ui.lookout import Lookout, Seen
from ui.question import Question

EPOCHS, STEPS = "epochs", "steps"


class RunActions:
    """The buttons and what they do to the run on display."""

    def __init__(self, folders: Folders, supervisor: Supervisor, lookout: Lookout) -> None:
        self._folders = folders
        self._supervisor = supervisor
        self._lookout = lookout
        with gr.Row(elem_classes="graft-actions", elem_id="monitor-actions"):
            self.stop = _button("Stop and save", "stop", variant="stop")
            self.save = _button("Save now", "save", min_width=215)  # it says more while it saves
            self.cancel = _button("Cancel", "cancel")
            self.up = _button("Move up", "up")
            self.down = _button("Move down", "down")
            self.take_out = _button("Take out of the queue", "take-out", min_width=200)
            self.chat = _button("Chat with it", "chat", variant="primary")
            self.go_on = _button("Continue", "continue")
            self.extend = _button("Extend", "extend")
            self.delete = _button("Delete", "delete")
        self._ask_cancel = Question("Yes, cancel it", "Keep training", "monitor-ask-cancel")
        self._ask_delete = Question("Delete it", "Keep it", "monitor-ask-delete")
        with gr.Row(visible=False, elem_id="monitor-extension", elem_classes="graft-actions") as self._extension:
            self._amount = gr.Number(1, label="Train it longer by", min_width=120, elem_id="monitor-amount")
            self._unit = gr.Dropdown(
                [EPOCHS, STEPS], value=EPOCHS, label="Counted in", min_width=120, elem_id="monitor-unit"
            )
            self._extend = gr.Button("Go on", variant="primary", min_width=100, elem_id="monitor-extend-go")

    def wire(self, name: gr.State, look_after: Callable[..., None]) -> None:
        """Connect the buttons; `name` holds the run on display, `look_after` shows what an event has changed."""
        queue = self._supervisor.queue
        for button, title, action in (
            (self.stop, "Not stopped", lambda run: run.request_stop()),
            (self.save, "Not saved", lambda run: run.request_save()),
            (self.up, "Not moved", lambda run: queue.move(run.name, -1)),
            (self.down, "Not moved", lambda run: queue.move(run.name, 1)),
            (self.take_out, "Not taken out", lambda run: queue.remove(run.name)),
            (self.go_on, "Not continued", lambda run: self._supervisor.go_on(run)),
            (self._ask_cancel.yes, "Not cancelled", lambda run: run.request_cancel()),
            (self._ask_delete.yes, "Not deleted", self._supervisor.delete),
        ):
            look_after(button.click(self._doing(action, title), name, None, concurrency_limit=None, **QUIET))
        # On a narrow page the monitor goes below the form with the last run.
        self._ask_delete.yes.click(None, js="() => graftShow('#trash', 'nearest')")
        go = self._extend.click(self._go_on_longer, [name, self._amount, self._unit], None, **QUIET)
        look_after(go)
        self.cancel.click(self._about_cancelling, name, self._ask_cancel.outputs, **QUIET)
        self.delete.click(
            lambda shown: self._ask_delete.asked(
                f"Delete '{shown}'? It goes to the trash, from where it can be brought back."
            ),
            name,
            self._ask_delete.outputs,
            **QUIET,
        )
        self.extend.click(lambda: gr.update(visible=True), None, self._extension, **QUIET)

    @property
    def outputs(self) -> list[Any]:
        """The components that `updates` updates."""
        buttons = [self.stop, self.save, self.cancel, self.up, self.down, self.take_out]
        buttons += [self.chat, self.go_on, self.extend, self.delete]
        return [*buttons, *self._ask_cancel.outputs, *self._ask_delete.outputs, self._extension]

    def updates(self, seen: Seen | None, *, other_run: bool) -> dict[Any, Any]:
        """Updates that offer what can be done with this run; what was being asked is asked no more.

        A question about a run that is still there and still active, though, stays.
        """
        shown = self._offered(seen) if seen else {}
        buttons = self.outputs[:10]
        updates = {button: shown.get(button, gr.update(visible=False)) for button in buttons}
        active = bool(seen and seen.state.status.active)
        if other_run or not active:
            updates |= self._ask_cancel.hidden()
        if other_run or not (seen and seen.state.status.ended):
            updates |= self._ask_delete.hidden() | {self._extension: gr.update(visible=False)}
        return updates

    def _offered(self, seen: Seen) -> dict[Any, Any]:
        status, run = seen.state.status, seen.run
        if status.active:
            save = "Saving after this step" if seen.saving else "Save now"
            can_save = status is not Status.PREPARING and not seen.stopping
            return {
                self.stop: gr.update(visible=True, interactive=not seen.stopping and not seen.cancelling),
                self.save: gr.update(visible=can_save, value=save, interactive=not seen.saving),
                self.cancel: gr.update(visible=True, interactive=not seen.cancelling),
            }
        if status is Status.QUEUED:
            return {
                self.up: gr.update(visible=seen.waiting > 1, interactive=seen.place > 1),
                self.down: gr.update(visible=seen.waiting > 1, interactive=seen.place < seen.waiting),
                self.take_out: gr.update(visible=True),
            }
        has_result, can_go_on = run.has_result(), bool(run.checkpoints())
        offered = {self.delete: gr.update(visible=True)}
        if has_result:
            offered[self.chat] = gr.update(visible=True)
        if run.is_graft() and status is Status.DONE and can_go_on:
            offered[self.extend] = gr.update(visible=True)
        elif run.is_graft() and status is not Status.DONE and _may_go_on_as_it_is(seen, has_result):
            offered[self.go_on] = gr.update(visible=True, value="Continue" if can_go_on else "Start again")
        return offered

    def _about_cancelling(self, name: str) -> dict[Any, Any]:
        checkpoints = self._found(name, "Not cancelled").checkpoints()
        lost = f"What was learnt since step {checkpoints[-1].step:,} is lost; checkpoints stay." if checkpoints else ""
        return self._ask_cancel.asked(
            f"Cancel the training? {lost or 'Nothing of it was saved yet: all of it is lost.'}"
        )

    def _go_on_longer(self, name: str, amount: float | None, unit: Any) -> None:
        self._doing(lambda run: self._supervisor.go_on(run, **extended(run, amount or 0, unit)), "Not extended")(name)

    def _found(self, name: str, title: str) -> Run:
        try:
            return find_run(self._folders, name)
        except UserError as error:
            raise refusal(title, str(error)) from error

    def _doing(self, action: Callable[[Run], object], title: str) -> Callable[[str], None]:
        """Do something with the run of a name, and say in a sentence when that cannot be."""

        def act(name: str) -> None:
            try:
                action(find_run(self._folders, name))
            except UserError as error:
                raise refusal(title, str(error)) from error
            except OSError as error:
                raise refusal(title, f"The folder of '{name}' cannot be written ({error.strerror}).") from error
            finally:
                self._lookout.forget()

        return act


def _may_go_on_as_it_is(seen: Seen, has_result: bool) -> bool:
    """Whether it makes sense to go on without a change; a loss that broke would break again at the same step."""
    if seen.run.checkpoints():
        return seen.state.reason is not Reason.DIVERGED
    return not has_result


def refusal(title: str, sentence: str) -> gr.Error:
    """The message that says why something was not done."""
    return gr.Error(escape(sentence, quote=False), title=title, print_exception=False)  # Gradio reads it as HTML


def _button(label: str, elem_id: str, **look: Any) -> gr.Button:
    return gr.Button(label, visible=False, size="md", elem_id=f"monitor-{elem_id}", **{"min_width": 120} | look)
