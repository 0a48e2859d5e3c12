"""The Chat tab: talk to a base model, to a LoRA, or to both side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from training.adapters import base_of
from training.chat import PUT_AWAY, Chat
from training.errors import UserError
from training.paths import Folders, list_models
from training.runs import find_run
from training.sampling import describe_sampling
from training.settings import Precision, Settings
from ui.chat_log import (
    FINAL,
    NO_ADAPTER,
    Choice,
    Log,
    View,
    adapter_choices,
    answer,
    base_choices,
    checkpoint_choices,
    kept,
    take_back,
    titles,
)
from ui.disk_choice import DiskChoice
from ui.events import QUIET

EXAMPLES = (
    "Hello, I would like to speak to you about your car's extended warranty",
    "Hello! Who are you?",
    "Tell me about the sea.",
)
_PLACEHOLDER = "### Say something\nThe model is loaded with your first message and stays ready for the next."
_BASE_PLACEHOLDER = "The base model answers here, so that you see what the LoRA has changed."
STYLE = Path(__file__).parent / "static" / "chat.css"  # the page gives it to `launch`
_UNCHANGED = [gr.skip()] * 7  # what `_shown` gives, when there is nothing to show


class ChatTab:
    """The tab's components and the events between them."""

    def __init__(self, folders: Folders, chat: Chat) -> None:
        self._folders = folders
        self._chat = chat
        self._stops: dict[str, threading.Event] = {}  # by browser session, while it waits for an answer
        self._build_choice()
        with gr.Row(equal_height=True):
            self.base_log = self._chatbot("chat-log-base", _BASE_PLACEHOLDER, visible=False)
            self.log = self._chatbot("chat-log", _PLACEHOLDER, examples=[{"text": text} for text in EXAMPLES])
        self._build_message()
        self._build_settings()
        self._form = [
            self.base,
            self.adapter,
            self.checkpoint,
            self.precision,
            self.compare,
            self.system_prompt,
            *self.sampling,
        ]
        self._wire_choice()
        self._wire_answers()

    def _build_choice(self) -> None:
        models = list_models(self._folders)
        default = Settings.model_fields["base_model"].default
        precision = Settings.model_fields["precision"]
        base = default if default in models else next(iter(models), None)
        with gr.Row():
            self.base = gr.Dropdown(
                base_choices(self._folders, base),
                value=base,
                allow_custom_value=True,
                label="Base model",
                info="A folder in models/ or a Hub name.",
                elem_id="chat-base",
            )
            self.adapter = DiskChoice(
                adapter_choices(self._folders),
                value=NO_ADAPTER,
                label="LoRA",
                info="None: the base model alone.",
                elem_id="chat-adapter",
            )
            self.checkpoint = DiskChoice(
                checkpoint_choices(self._folders, None),
                value=FINAL,
                interactive=False,
                label="Checkpoint",
                info="The LoRA as it was at a step.",
                elem_id="chat-checkpoint",
            )
            self.precision = gr.Dropdown(
                list(get_args(Precision)),
                value=precision.default,
                label=str(precision.title),
                info="4-bit takes the least memory.",
                elem_id="chat-precision",
            )
        self.compare = gr.Checkbox(
            label="Compare with the base model",
            info="Both answer every message, with the same seed. Needs a LoRA.",
            interactive=False,
            container=False,
            elem_id="chat-compare",
        )

    @staticmethod
    def _chatbot(elem_id: str, placeholder: str, **options: Any) -> gr.Chatbot:
        return gr.Chatbot(
            label=elem_id,
            elem_id=elem_id,
            elem_classes="chat-log",
            placeholder=placeholder,
            height="42vh",
            min_height=320,
            min_width=300,
            render_markdown=False,
            latex_delimiters=[],
            allow_tags=False,
            buttons=[],
            layout="bubble",
            **options,
        )

    def _build_message(self) -> None:
        self.status = gr.HTML(_status_html(""), elem_id="chat-status", padding=False)
        with gr.Row(equal_height=True):
            self.message = gr.Textbox(
                "",
                placeholder="Type a message; Enter sends it, Shift+Enter begins a new line.",
                show_label=False,
                label="Message",
                lines=1,
                max_lines=8,
                scale=8,
                min_width=300,
                elem_id="chat-message",
            )
            self.send = gr.Button("Send", variant="primary", scale=1, min_width=90, elem_id="chat-send")
            self.stop = gr.Button("Stop", variant="stop", scale=1, min_width=90, interactive=False, elem_id="chat-stop")
        with gr.Row(elem_id="chat-actions"):
            self.regenerate = gr.Button("Answer again", size="sm", min_width=120, elem_id="chat-regenerate")
            self.clear = gr.Button("Clear the conversation", size="sm", min_width=120, elem_id="chat-clear")
            self.unload = gr.Button("Free the memory", size="sm", min_width=120, elem_id="chat-unload")

    def _build_settings(self) -> None:
        with gr.Accordion("Answer settings", open=False, elem_id="chat-settings"):
            self.system_prompt = gr.Textbox(
                "",
                label="System prompt",
                info="Tells the model how to behave, before the conversation. Empty: none, as in most training data.",
                lines=2,
                elem_id="chat-system",
            )
            with gr.Row():
                self.sampling = [_control(name, told) for name, told in describe_sampling().items()]

    def _wire_choice(self) -> None:
        current = [self.base, self.adapter, self.checkpoint, self.compare]
        self.adapter.input(self._choose, current, self.choice_outputs, **QUIET)
        gr.on(
            [self.base.change, self.checkpoint.change, self.compare.change],
            self._titles,
            current,
            [self.log, self.base_log],
            **QUIET,
        )

    def _wire_answers(self) -> None:
        # No limit: those who have to wait are told so by the chat itself.
        answering: dict[str, Any] = {**QUIET, "concurrency_limit": None}
        shown = [self.log, self.base_log, self.status, self.send, self.stop, self.regenerate, self.clear]
        asking = [self.message, self.log, self.base_log, *self._form]
        gr.on([self.send.click, self.message.submit], self._answer, asking, [*shown, self.message], **answering)
        self.log.example_select(self._example, None, self.message, **QUIET).then(
            self._answer, asking, [*shown, self.message], **answering
        )
        self.regenerate.click(self._answer_again, asking[1:], shown, **answering)
        self.stop.click(self._stop, None, [self.send, self.stop, self.regenerate, self.clear], queue=False, **QUIET)
        self.clear.click(lambda: ([], [], _status_html("")), None, [self.log, self.base_log, self.status], **QUIET)
        self.unload.click(self._unload, None, self.status, **QUIET)

    @property
    def choice_outputs(self) -> list[Any]:
        """The components that `updates` updates."""
        return [
            self.base,
            self.adapter,
            self.checkpoint,
            self.compare,
            self.log,
            self.base_log,
            self.status,
            self.precision,
        ]

    def refresh_on(self, *triggers: Any) -> None:
        """Look for new models and LoRAs at each of these events, such as `tab.select` and `page.load`."""
        current = [self.base, self.adapter, self.checkpoint, self.compare]
        gr.on(triggers, self.updates, current, self.choice_outputs, **QUIET)

    def open_on(self, event: Any, adapter: Any, step: Any) -> Any:
        """After `event` (`button.click`, or `then` of another) choose the LoRA and step that these components hold."""
        return event(self._choose, [self.base, adapter, step, self.compare], self.choice_outputs, **QUIET)

    def updates(self, base: str | None, adapter: str | None, checkpoint: Any, compare: bool) -> list[Any]:
        """Updates for `choice_outputs`: what there is to choose now, and these values as far as they can be had."""
        adapters = adapter_choices(self._folders)
        adapter = kept(adapters, adapter)
        checkpoints = checkpoint_choices(self._folders, adapter)
        checkpoint = kept(checkpoints, str(checkpoint))
        return [
            gr.update(choices=base_choices(self._folders, base), value=base),
            gr.update(choices=adapters, value=adapter),
            gr.update(choices=checkpoints, value=checkpoint, interactive=bool(adapter)),
            gr.update(interactive=bool(adapter)),
            *self._titles(base, adapter, checkpoint, compare),
            _status_html(PUT_AWAY) if self._chat.put_away else gr.skip(),
            gr.skip(),
        ]

    def _choose(self, base: str | None, adapter: str | None, checkpoint: Any, compare: bool) -> list[Any]:
        """Updates for a LoRA that was just chosen, with its base model in the precision it was trained in."""
        problem, precision = _status_html(PUT_AWAY if self._chat.put_away else ""), gr.skip()
        if adapter:
            try:
                run = find_run(self._folders, adapter)
                base = base_of(self._folders, run)
                precision = run.settings().precision if run.is_graft() else gr.skip()
            except UserError as error:
                problem = _status_html(str(error), failed=True)
        return [*self.updates(base, adapter, checkpoint, compare)[:-2], problem, precision]

    @staticmethod
    def _titles(base: str | None, adapter: str | None, checkpoint: str | None, compare: bool) -> list[Any]:
        base_title, title = titles(base, adapter, checkpoint)
        return [gr.update(label=title), gr.update(label=base_title, visible=compare and bool(adapter))]

    def _answer(self, request: gr.Request, question: str, log: Log, base_log: Log, *form: Any) -> Iterator[list[Any]]:
        """The updates while a message is answered; an empty message box at once, so that the next can be typed."""
        for number, update in enumerate(self._views(request, question, log, base_log, form)):
            taken = number == 0 and question.strip() and update is not _UNCHANGED
            yield [*update, "" if taken else gr.skip()]

    def _answer_again(self, request: gr.Request, log: Log, base_log: Log, *form: Any) -> Iterator[list[Any]]:
        """The updates while the last message is answered anew, on both sides if both were asked it."""
        before, question = take_back(log)
        if not question:
            yield _shown(View(log, base_log, "There is no answer yet that could be given again.", running=False))
            return
        base_before, base_question = take_back(base_log)
        if base_question != question:
            base_before = base_log
        yield from self._views(request, question, before, base_before, form)

    def _views(
        self, request: gr.Request, question: str, log: Log, base_log: Log, form: tuple[Any, ...]
    ) -> Iterator[list[Any]]:
        session, stop = str(request.session_hash), threading.Event()
        if self._stops.setdefault(session, stop) is not stop:
            yield _UNCHANGED  # Enter was pressed while the last message is still being answered
            return
        base, adapter, checkpoint, precision, compare, system_prompt, *sampling = form
        choice = Choice(base, adapter, checkpoint, precision, compare, system_prompt, tuple(sampling))
        try:
            for view in answer(self._chat, choice, question, log, base_log, stop):
                yield _shown(view)
        finally:
            self._stops.pop(session, None)

    def _stop(self, request: gr.Request) -> list[Any]:
        """Ask the answer to end, which then frees the buttons; with none under way they are freed here."""
        if stop := self._stops.get(str(request.session_hash)):
            stop.set()
            return [gr.skip(), gr.update(interactive=False), gr.skip(), gr.skip()]
        return _buttons(running=False)

    def _unload(self) -> str:
        self._chat.unload()
        return _status_html("The model is out of memory now; the next message loads it again.")

    @staticmethod
    def _example(event: gr.SelectData) -> str:
        return str(event.value["text"])


def build_chat_tab(folders: Folders, chat: Chat) -> ChatTab:
    """Build the tab in the Gradio context at hand. The page then calls `refresh_on(tab.select, page.load)`."""
    return ChatTab(folders, chat)


def _control(name: str, told: dict[str, Any]) -> gr.Slider | gr.Number:
    """A slider where the setting has steps, else a box for a number."""
    common = {"value": told["default"], "label": told["title"], "info": told["description"], "elem_id": f"chat-{name}"}
    if "step" in told:
        return gr.Slider(told["minimum"], told["maximum"], step=told["step"], min_width=300, buttons=[], **common)
    return gr.Number(minimum=told["minimum"], maximum=told["maximum"], precision=0, min_width=300, **common)


def _shown(view: View) -> list[Any]:
    return [view.log, view.base_log, _status_html(view.status, failed=view.failed), *_buttons(running=view.running)]


def _buttons(*, running: bool) -> list[Any]:
    """Send, Stop, Answer again, Clear."""
    idle = gr.update(interactive=not running)
    return [idle, gr.update(interactive=running), idle, idle]


def _status_html(text: str, *, failed: bool = False) -> str:
    return f'<div role="status" class="{"chat-problem" if failed else "chat-news"}">{escape(text)}</div>'
