"""The layout of a conversation: its chat template's own text, with the borders of each answer.

It is read off a rendering in which a sentinel stands for every text, where the answers' borders are plain to see.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from training.chat_rendering import ChatRenderer, Span
from training.formats import Message, RowError

# Letters of the private use area: no template looks for them, and trimming leaves them alone.
SENTINEL = re.compile("\ue0f0(\\d+)\ue0f1")
_NO_END = (
    "the chat template writes nothing that ends an answer, so the model would never learn to stop: choose another "
    "chat template"
)
_LEFT_OUT = "the chat template leaves an answer out: choose another chat template"
_REWRITTEN = (
    "the chat template writes earlier answers in another way than the last, so it cannot be told for certain which "
    "tokens are answers: train on the last answer only, or choose another chat template"
)


def sentinel(number: int) -> str:
    """What stands for the text with this number."""
    return f"\ue0f0{number}\ue0f1"


class Border(NamedTuple):
    """A place in a layout: how many characters of its literals and how many of its slots stand before it."""

    literal_characters: int
    slots: int


@dataclass(frozen=True)
class Layout:
    """A conversation of one shape: the literals around its texts, and each answer's borders or why it has none.

    `slots` are the numbers of the sentinels in the order of the text; there is one literal more than slots. `answers`
    is by message.
    """

    literals: list[str]
    slots: list[int]
    answers: dict[int, tuple[Border, Border] | str]


def make_layout(
    renderer: ChatRenderer, messages: Sequence[Message], owners: list[int], tools: list[dict[str, Any]] | None
) -> Layout:
    """The layout of messages whose texts are sentinels; `owners` names each sentinel's message. Raises RowError."""
    text, marked = renderer.marked_text(messages, tools)
    if tools and _same_without_tools(renderer, messages, text):
        raise RowError("the chat template leaves out the tools: choose another chat template")
    answering = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    answers: dict[int, tuple[Border, Border] | str] = {}
    for position, number in enumerate(answering):
        turn = _Answer(renderer, messages, tools, number, text, owners)
        if not turn.calls_are_shown():
            raise RowError(f"the chat template leaves out the tool calls of turn {number + 1}: choose another one")
        borders = turn.borders(marked[position] if len(marked) == len(answering) else None)
        answers[number] = (
            borders if isinstance(borders, str) else (_border(text, borders[0]), _border(text, borders[1]))
        )
    parts = SENTINEL.split(text)
    return Layout(parts[::2], [int(number) for number in parts[1::2]], answers)


@dataclass(frozen=True)
class _Answer:
    """The answer that is message `number`, in the layout's text."""

    renderer: ChatRenderer
    messages: Sequence[Message]
    tools: list[dict[str, Any]] | None
    number: int
    text: str
    owners: list[int]

    def borders(self, marked: Span | None) -> Span | str:
        """Where the answer begins and where its end-of-turn token ends; or why that cannot be told."""
        own = self._slots(own=True)
        if not own and not self._calls:
            return _LEFT_OUT
        ending = self._ending()
        if not ending.strip():
            return _NO_END
        start = self._start(marked, own)
        end = None if start is None else self._end(start, marked, own, ending)
        if start is None or end is None:
            return _REWRITTEN
        if not all(start <= slot[0] and slot[1] <= end for slot in own):
            return _REWRITTEN
        if any(slot[0] < end and start < slot[1] for slot in self._slots(own=False)):
            return _REWRITTEN
        return start, end

    @property
    def _calls(self) -> list[dict[str, Any]]:
        return self.messages[self.number].get("tool_calls") or []

    def _slots(self, *, own: bool) -> list[Span]:
        """Where the sentinels of this message stand in the text, or those of all others."""
        found = SENTINEL.finditer(self.text)
        return [m.span() for m in found if (self.owners[int(m[1])] == self.number) == own]

    def calls_are_shown(self) -> bool:
        """Whether the template writes the turn's tool calls where the turn stands; many templates know of none."""
        slots = list(SENTINEL.finditer(self.text))
        begin = max((m.end() for m in slots if self.owners[int(m[1])] < self.number), default=0)
        end = min((m.start() for m in slots if self.owners[int(m[1])] > self.number), default=len(self.text))
        turn = self.text[begin:end]
        names = [str(call["function"]["name"]) for call in self._calls]
        return all(turn.count(name) >= names.count(name) for name in names) and all(
            any(form in turn for form in forms)
            for call in self._calls
            for forms in _leaves(call["function"]["arguments"])
        )

    def _ending(self) -> str:
        """What ends the answer: the special token behind it, or else what it is followed by as the last turn."""
        last = self.messages[self.number]
        if self._calls:
            # Behind a call it cannot be told from the call: the turn ends as a plain answer does.
            last = Message(role="assistant", content=sentinel(len(self.owners)))
        alone = self._try([*self.messages[: self.number], last]) or ""
        ending = alone[max((m.end() for m in SENTINEL.finditer(alone)), default=len(alone)) :].rstrip()
        if not ending:  # a token behind it would begin the next turn
            return ""
        here = self.text[max(end for _, end in self._slots(own=True)) :] if not self._calls else ending
        token = self.renderer.special_token.match(here)
        if token and (ending.startswith(token[0]) or not self._begins_turns(token[0].strip())):
            return token[0]
        return ending

    def _begins_turns(self, token: str) -> bool:
        """Whether the template begins a turn with this token, which then ends none."""
        question = [Message(role="user", content=sentinel(0))]
        before, _, behind, *_ = *SENTINEL.split(self._try(question, prompt_answer=True) or ""), "", ""
        header = [found.strip() for found in self.renderer.special_token.findall(before)][-1:]
        # Where nothing ends a question either, what follows it is the answer's header.
        header += [found.strip() for found in self.renderer.special_token.findall(self._prompt() or behind)]
        return token in header

    def _start(self, marked: Span | None, own: list[Span]) -> int | None:
        """Behind the words that prompt an answer, wherever they stand before it, or else where its text begins."""
        first = own[0][0] if own else len(self.text)
        prompt = self._prompt()
        previous = max((end for _, end in self._slots(own=False) if end <= first), default=0)
        found = self.text.rfind(prompt, previous, first) if prompt and own else -1
        prompted = found + len(prompt) if found >= 0 else None
        before = self._try(self.messages[: self.number], prompt_answer=True)
        if marked:
            return max(marked[0], prompted or 0)
        if before is not None and self.text.startswith(before):
            return max(len(before), prompted or 0)
        return prompted or (first if own else None)

    def _prompt(self) -> str:
        """What the template writes after a question to prompt its answer; empty where that is nothing of its own."""
        question = [Message(role="user", content=sentinel(0))]
        without, prompting = self._try(question), self._try(question, prompt_answer=True)
        fits = without is not None and prompting is not None and prompting.startswith(without)
        return prompting[len(without) :] if fits and prompting and without else ""

    def _end(self, start: int, marked: Span | None, own: list[Span], ending: str) -> int | None:
        """Behind the end-of-turn token."""
        if not self._calls:
            return own[-1][1] + len(ending) if own and self.text.startswith(ending, own[-1][1]) else None
        # Behind a call: once, before whatever somebody else says next.
        following = min((begin for begin, _ in self._slots(own=False) if begin >= start), default=len(self.text))
        found = [m.end() for m in re.finditer(re.escape(ending), self.text[:following]) if m.start() >= start]
        return found[0] if len(found) == 1 else None

    def _try(self, messages: Sequence[Message], *, prompt_answer: bool = False) -> str | None:
        """The text, or nothing where the template refuses this part of the conversation."""
        try:
            return self.renderer.text(messages, self.tools, prompt_answer=prompt_answer)
        except RowError:
            return None


def _same_without_tools(renderer: ChatRenderer, messages: Sequence[Message], text: str) -> bool:
    try:
        return renderer.text(messages) == text
    except RowError:
        return False


def _leaves(value: Any) -> Iterator[tuple[str, ...]]:
    """The keys and values in nested lists and objects, each in the forms that templates write it in."""
    if isinstance(value, dict | list):
        for inner in [part for pair in value.items() for part in pair] if isinstance(value, dict) else value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value, json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(value)[1:-1]
    else:
        yield json.dumps(value), str(value)


def _border(text: str, position: int) -> Border:
    """The position in a text with sentinels, none of which it cuts, as a place in its layout."""
    before, slots = SENTINEL.subn("", text[:position])
    return Border(len(before), slots)
