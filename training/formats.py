"""The registry of dataset formats: each knows its rows when it sees them and turns one into messages or text.

A new format is one `Format` in `FORMATS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from training.errors import UserError

AUTO = "auto"
Row = dict[str, Any]
# JSON can write half of a character that takes two of its escapes; no tokenizer reads that.
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class Message(TypedDict):
    """One turn of a conversation; role is system, user or assistant."""

    role: str
    content: str


class RowError(UserError):
    """Why one row cannot be used; the caller adds its number."""


@dataclass(frozen=True)
class Format:
    """How rows of one shape are recognised and read. `convert` gives a conversation, or plain text to continue."""

    name: str
    about: str
    detect: Callable[[Row], bool]
    convert: Callable[[Row], list[Message] | str]


def _text(row: Row, key: str, *, may_be_empty: bool = False) -> str:
    """The row's value under `key` as text; numbers become text, nested values are refused."""
    value = row.get(key)
    if isinstance(value, float) and math.isnan(value):
        value = None  # how pandas writes a missing value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        if may_be_empty:
            return ""
        raise RowError(f"'{key}' is missing or empty")
    if not isinstance(value, str):
        raise RowError(f"'{key}' holds {type(value).__name__} and not text")
    if not value.strip() and not may_be_empty:
        raise RowError(f"'{key}' is empty")
    if _HALF_CHARACTER.search(value):
        raise RowError(f"'{key}' has half a character (a lone surrogate)")
    return value


def _alpaca(row: Row) -> list[Message]:
    question = _text(row, "instruction")
    if extra := _text(row, "input", may_be_empty=True):
        question = f"{question}\n{extra}"
    return _with_system(row, [_user(question), _assistant(_text(row, "output"))])


def _pair(question_key: str, answer_key: str) -> Callable[[Row], list[Message]]:
    def convert(row: Row) -> list[Message]:
        return _with_system(row, [_user(_text(row, question_key)), _assistant(_text(row, answer_key))])

    return convert


def _with_system(row: Row, turns: list[Message]) -> list[Message]:
    system = _text(row, "system", may_be_empty=True)
    return [Message(role="system", content=system), *turns] if system else turns


def _user(content: str) -> Message:
    return Message(role="user", content=content)


def _assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


def _conversation(list_key: str, role_key: str, text_key: str, roles: dict[str, str]) -> Callable[[Row], list[Message]]:
    """Reads a list of turns, whose role names are translated by `roles`."""

    def convert(row: Row) -> list[Message]:
        turns = row.get(list_key)
        if not isinstance(turns, list) or not turns:
            raise RowError(f"'{list_key}' is empty or not a list")
        messages: list[Message] = []
        for number, turn in enumerate(turns, start=1):
            if not isinstance(turn, dict):
                raise RowError(f"turn {number} is not an object")
            role = roles.get(str(turn.get(role_key)))
            if role is None:
                raise RowError(f"turn {number} has the unknown role {turn.get(role_key)!r}")
            messages.append(Message(role=role, content=_text(turn, text_key, may_be_empty=role != "assistant")))
        if not any(m["role"] == "assistant" for m in messages):
            raise RowError("no turn is the assistant's, so there is no answer to learn")
        return messages

    return convert


def _keys(*keys: str) -> Callable[[Row], bool]:
    return lambda row: all(key in row for key in keys)


FORMATS = (
    Format("alpaca", "instruction, input (may be empty), output", _keys("instruction", "output"), _alpaca),
    Format(
        "messages",
        "messages: a list of role and content",
        _keys("messages"),
        _conversation("messages", "role", "content", {"system": "system", "user": "user", "assistant": "assistant"}),
    ),
    Format(
        "sharegpt",
        "conversations: a list of from (human, gpt) and value",
        _keys("conversations"),
        _conversation(
            "conversations",
            "from",
            "value",
            {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
        ),
    ),
    Format("question-answer", "question, answer", _keys("question", "answer"), _pair("question", "answer")),
    Format("prompt-completion", "prompt, completion", _keys("prompt", "completion"), _pair("prompt", "completion")),
    Format("text", "text: plain text to continue", _keys("text"), lambda row: _text(row, "text")),
)
BY_NAME = {f.name: f for f in FORMATS}
NAMES = (AUTO, *BY_NAME)


def choose_format(rows: Sequence[Row], name: str = AUTO) -> Format:
    """The format called `name`, or with auto the one that fits most rows; raises UserError when none fits any row."""
    if name != AUTO:
        return BY_NAME[name]
    fitting = {f.name: sum(map(f.detect, rows)) for f in FORMATS}
    best = max(fitting, key=lambda key: fitting[key])
    if fitting[best] == 0:
        keys = ", ".join(map(repr, rows[0])) or "nothing"
        known = "; ".join(f.about for f in FORMATS)
        raise UserError(f"No row has the keys of a known format. Row 1 has {keys}. Rename its keys to one of: {known}.")
    return BY_NAME[best]
