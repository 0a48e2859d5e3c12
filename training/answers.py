"""Renders conversations in a chat template and finds the assistant's answers in the text, proved and never guessed.

The real text has to be its layout with each sentinel replaced by its text, letter for letter; where it is not, the
conversation is refused. Layouts are kept by the conversation's shape, so that most rows need one rendering only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from training.chat_rendering import ChatRenderer, Span
from training.formats import Conversation, Message, RowError
from training.layouts import Layout, make_layout, sentinel
from training.settings import TrainOn

_MOST_LAYOUTS = 2_000  # rows with tool calls have nearly each a shape of their own
_PLAIN = 2  # fields of a message: role and content
_HIDDEN = "\0"  # stands in a shape for a text
_THOUGHT = re.compile(r"(\s*<think>\s*)(.*?)(\s*</think>\s*)(.*)", re.DOTALL)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and where in it the tokens to be trained stand, in characters."""

    text: str
    trained: list[Span]


class _Slot(NamedTuple):
    """One text of the conversation that a sentinel stands for."""

    message: int
    is_thought: bool
    text: str


class AnswerFinder:
    """Renders conversations in one tokenizer's chat template and says which parts are to be trained."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._renderer = ChatRenderer(tokenizer)
        self._layouts: dict[Hashable, Layout] = {}

    def render_all(self, conversations: Sequence[Conversation], train_on: TrainOn) -> list[Rendered | RowError]:
        """Each conversation's text and its trained parts; or why they cannot be told for certain."""
        results: list[Rendered | RowError] = []
        for one, text in zip(conversations, self._renderer.texts(conversations), strict=True):
            try:
                results.append(text if isinstance(text, RowError) else self._rendered(one, text, train_on))
            except RowError as error:
                results.append(error)
        return results

    def _rendered(self, conversation: Conversation, text: str, train_on: TrainOn) -> Rendered:
        answering = [number for number, m in enumerate(conversation.messages) if m["role"] == "assistant"]
        if not answering and train_on != "everything":
            raise RowError("no turn is the assistant's, so there is no answer to learn")
        wanted = answering[-1:] if train_on == "last answer" else answering
        slots, shape = _slots(conversation)
        layout, places = self._placed(conversation, slots, shape, text)
        if places is None and train_on != "everything":
            raise RowError(
                "the chat template changes the texts, which hides where the answers are: choose another chat template, "
                "or train on everything"
            )
        if places is not None:
            _refuse_losses(layout, slots, conversation.messages, wanted)
        if places is None or train_on == "everything":
            return Rendered(text, [(0, len(text))])
        return Rendered(text, [_located(layout, places, number) for number in wanted])

    def _placed(
        self, conversation: Conversation, slots: list[_Slot], shape: Hashable, text: str
    ) -> tuple[Layout, list[Span] | None]:
        """The conversation's layout, and where in the rendered text its texts stand, if that can be proved."""
        layout = self._layouts.get(shape)
        if layout is not None and (places := _match(layout, slots, text)) is not None:
            return layout, places
        # New, or of an earlier minute: a template may write the time of day.
        owners = [slot.message for slot in slots]
        layout = make_layout(self._renderer, _with_sentinels(conversation.messages, slots), owners, conversation.tools)
        if len(self._layouts) >= _MOST_LAYOUTS:
            del self._layouts[next(iter(self._layouts))]
        self._layouts[shape] = layout
        return layout, _match(layout, slots, text)


def _slots(conversation: Conversation) -> tuple[list[_Slot], Hashable]:
    """The texts that sentinels stand for, and the shape: equal for conversations that differ in these texts only."""
    slots: list[_Slot] = []
    shape: list[Hashable] = []

    def add(text: str, message: int, *, is_thought: bool = False) -> str:
        """What of the text belongs to the shape; a blank one stays, because templates ask for it."""
        if not text or text.isspace():
            return text
        slots.append(_Slot(message, is_thought, text))
        return _HIDDEN

    for number, message in enumerate(conversation.messages):
        if "reasoning_content" in message:
            shape.append(add(message["reasoning_content"], number, is_thought=True))
        if message["role"] == "assistant" and (thought := _thought(message)):
            before, inner, after, answer = thought.groups()
            shape += [before, add(inner, number, is_thought=True), after, add(answer, number)]
        else:
            shape += [message["role"], add(message["content"], number)]
        if len(message) > _PLAIN:
            shape.append(json.dumps({k: v for k, v in message.items() if k not in ("content", "reasoning_content")}))
    return slots, (*shape, json.dumps(conversation.tools) if conversation.tools else "")


def _with_sentinels(messages: list[Message], slots: list[_Slot]) -> list[Message]:
    """The messages with a sentinel in the place of each of their slots, which are in the order `_slots` gives."""
    numbers = iter(range(len(slots)))

    def hidden(text: str) -> str:
        return sentinel(next(numbers)) if text.strip() else text

    result: list[Message] = []
    for message in messages:
        copy = message.copy()
        if "reasoning_content" in message:
            copy["reasoning_content"] = hidden(message["reasoning_content"])
        if message["role"] == "assistant" and (thought := _thought(message)):
            before, inner, after, answer = thought.groups()
            copy["content"] = before + hidden(inner) + after + hidden(answer)
        else:
            copy["content"] = hidden(message["content"])
        result.append(copy)
    return result


def _thought(message: Message) -> re.Match[str] | None:
    return _THOUGHT.fullmatch(message["content"]) if "</think>" in message["content"] else None


def _match(layout: Layout, slots: list[_Slot], text: str) -> list[Span] | None:
    """Where the layout's slots stand in the text, if it is the layout filled with their texts; else nothing."""
    if not text.startswith(layout.literals[0]):
        return None
    places: list[Span] = []
    position = len(layout.literals[0])
    for number, following in zip(layout.slots, layout.literals[1:], strict=True):
        for candidate in _as_templates_write(slots[number].text):
            end = position + len(candidate)
            if text.startswith(candidate, position) and text.startswith(following, end):
                places.append((position, end))
                position = end + len(following)
                break
        else:
            return None
    return places if position == len(text) else None


def _as_templates_write(text: str) -> Iterator[str]:
    """The text, and what is left of it by what templates are known to do."""
    yield text
    yield text.strip()
    yield text.rstrip()
    yield text.lstrip()
    yield json.dumps(text, ensure_ascii=False)[1:-1]  # tool results, as one of JSON's strings
    yield text.strip("\n")
    yield text.lstrip("\n")


def _refuse_losses(layout: Layout, slots: list[_Slot], messages: list[Message], wanted: list[int]) -> None:
    """Raises RowError when the template leaves out something that is to be learnt or to be read."""
    for number, slot in enumerate(slots):
        if number in layout.slots:
            continue
        if slot.is_thought:
            if slot.message in wanted:
                raise RowError(
                    f"the chat template leaves out the thoughts of turn {slot.message + 1}: train on the last answer "
                    "only, choose another chat template, or take the thoughts out"
                )
        else:
            role = messages[slot.message]["role"]
            raise RowError(
                f"the chat template leaves out turn {slot.message + 1} ({role}): choose another chat template"
            )


def _located(layout: Layout, places: list[Span], message: int) -> Span:
    """The answer's borders in the real text."""
    borders = layout.answers[message]
    if isinstance(borders, str):
        raise RowError(borders)
    start, end = (b.literal_characters + sum(e - s for s, e in places[: b.slots]) for b in borders)
    return start, end
