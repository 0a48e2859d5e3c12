"""What happens in the Chat tab, without Gradio: the conversation as the chat component holds it, and its next answer.

The component takes every text for HTML, so texts are escaped on their way in and restored on their way out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape, unescape
from typing import Any

from training.chat import Chat, ChatModel, Reply
from training.errors import UserError
from training.formats import Message
from training.paths import Folders, list_models, quoted
from training.runs import Run, find_run, list_runs
from training.sampling import Sampling, describe_sampling, make_sampling
from training.settings import Precision

logger = logging.getLogger(__name__)

NO_ADAPTER = ""
FINAL = "final"
Log = list[dict[str, Any]]
Choices = list[tuple[str, str]]


@dataclass(frozen=True)
class Choice:
    """What the controls of the tab say; the sampling values in the order of `describe_sampling`."""

    base_model: str | None
    adapter: str | None
    checkpoint: str | None
    precision: Precision
    compare: bool
    system_prompt: str
    sampling_values: tuple[Any, ...]

    @property
    def compares(self) -> bool:
        """Whether both sides answer: without a LoRA there is nothing to compare."""
        return self.compare and bool(self.adapter)

    def what(self) -> ChatModel:
        """The model to load; raises UserError when none is chosen."""
        if not self.base_model:
            raise UserError("Base model: choose one.")
        if not self.adapter:
            return ChatModel(self.base_model, precision=self.precision)
        return ChatModel(self.base_model, self.adapter, step_of(self.checkpoint), self.precision)

    def sampling(self) -> Sampling:
        """How to answer, with its seed drawn; raises UserError."""
        return make_sampling(dict(zip(describe_sampling(), self.sampling_values, strict=True))).settled()


@dataclass(frozen=True)
class View:
    """What the tab shows: both conversations, and a line about what is going on or what went wrong."""

    log: Log
    base_log: Log
    status: str = ""
    failed: bool = False
    running: bool = True


def answer(chat: Chat, choice: Choice, question: str, log: Log, base_log: Log, stop: threading.Event) -> Iterator[View]:
    """The tab while `question` is answered, by the base model first where both answer; the last view is not running.

    Whatever goes wrong is said in the last view, and the question stays in the log.
    """
    if not question.strip():
        yield View(log, base_log, "The message is empty: type something to say.", failed=True, running=False)
        return
    asked = entry("user", question)
    view = View([*log, asked], [*base_log, asked] if choice.compares else base_log)
    yield view
    try:
        for newer in _exchange(chat, choice, view, stop):
            view = newer
            yield view
    except UserError as error:
        view = replace(view, status=str(error), failed=True)
    except Exception as error:
        logger.exception("the chat failed")
        fault = f"The answer failed because of a fault in Graft ({type(error).__name__}: {error}). The log says more."
        view = replace(view, status=fault, failed=True)
    yield replace(view, running=False)


def _exchange(chat: Chat, choice: Choice, view: View, stop: threading.Event) -> Iterator[View]:
    """The growing view while the one or the two models answer the last question of its logs."""
    what, sampling = choice.what(), choice.sampling()
    said = ""  # what there was to say about the base model's answer
    if choice.compares:
        asked = view.base_log
        for reply in _replies(chat, choice, what, asked, sampling, stop, with_adapter=False):
            view = replace(view, base_log=_answered(asked, reply), status=f"Base model: {reply.status}")
            yield view
        said = f"{view.status} LoRA: "
    if stop.is_set():
        return
    asked = view.log
    for reply in _replies(chat, choice, what, asked, sampling, stop, with_adapter=True):
        view = replace(view, log=_answered(asked, reply), status=said + reply.status)
        yield view


def _replies(
    chat: Chat,
    choice: Choice,
    what: ChatModel,
    asked: Log,
    sampling: Sampling,
    stop: threading.Event,
    *,
    with_adapter: bool,
) -> Iterator[Reply]:
    messages = conversation(asked, choice.system_prompt)
    return chat.reply(what, messages, sampling, with_adapter=with_adapter, stop_event=stop)


def _answered(asked: Log, reply: Reply) -> Log:
    return [*asked, entry("assistant", reply.text)] if reply.text else asked


def entry(role: str, text: str) -> dict[str, Any]:
    """A message of the log. As a part of type text it is kept as it is; a bare string would lose its indentation."""
    return {"role": role, "content": [{"type": "text", "text": escape(text, quote=False)}]}


def text_of(message: dict[str, Any]) -> str:
    """The text that `entry` was given."""
    return unescape("".join(part["text"] for part in message["content"] if part["type"] == "text"))


def conversation(log: Log, system_prompt: str) -> list[Message]:
    """The log as the model reads it."""
    system: list[Message] = [{"role": "system", "content": system_prompt.strip()}] if system_prompt.strip() else []
    return [*system, *(Message(role=message["role"], content=text_of(message)) for message in log)]


def take_back(log: Log) -> tuple[Log, str]:
    """The log before its last question, and that question; an empty one where none was asked."""
    for position in range(len(log) - 1, -1, -1):
        if log[position]["role"] == "user":
            return log[:position], text_of(log[position])
    return [], ""


def step_of(checkpoint: str | None) -> int | None:
    """The step in the checkpoint control's value; None is the final adapter. Raises UserError for any other text."""
    if not checkpoint or checkpoint == FINAL:
        return None
    if not checkpoint.isdecimal():
        raise UserError(f"There is no checkpoint called {quoted(checkpoint)}: choose one from the list.")
    return int(checkpoint)


def base_choices(folders: Folders, chosen: str | None) -> list[str]:
    """The models on disk, and the one that was typed."""
    models = list_models(folders)
    return models if not chosen or chosen in models else [*models, chosen]


def adapter_choices(folders: Folders) -> Choices:
    """The LoRAs that can answer, newest first; one that is still being trained can through its checkpoints."""
    runs = (run for run in list_runs(folders) if run.has_result() or run.checkpoints())
    return [("None", NO_ADAPTER), *((run.name, run.name) for run in runs)]


def checkpoint_choices(folders: Folders, adapter: str | None) -> Choices:
    """The final adapter where there is one, then the checkpoints, newest first."""
    if not adapter:
        return [("Final", FINAL)]
    try:
        run: Run = find_run(folders, adapter)
    except UserError:
        return [("Final", FINAL)]
    steps = [(f"Step {c.step}", str(c.step)) for c in reversed(run.checkpoints())]
    return [("Final", FINAL), *steps] if run.has_result() or not steps else steps


def kept(choices: Choices, chosen: str | None) -> str:
    """The value chosen before if it is still to be had, else the first."""
    values = [value for _, value in choices]
    return chosen if chosen in values else values[0]


def titles(base_model: str | None, adapter: str | None, checkpoint: str | None) -> tuple[str, str]:
    """What stands over the base model's answers and over those of the chosen model."""
    base = f"Base model: {base_model or 'none'}"
    step = step_of(checkpoint)
    lora = f"LoRA: {adapter}" + (f", step {step}" if step else "")
    return base, lora if adapter else base
