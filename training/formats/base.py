"""What every dataset format speaks: rows, conversations, texts, and why a row cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from training.errors import UserError

Row = dict[str, Any]


class Message(TypedDict):
    """One turn; role is system, user, assistant or tool.

    A tool call is `{"type": "function", "id": ..., "function": {"name": ..., "arguments": {...}}}`, without an id
    where the data gives none.
    """

    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


@dataclass(frozen=True)
class Conversation:
    """Turns with at least one of the assistant's, and the tools it may call."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Text:
    """Text that is trained as it stands; `answers` are character spans (start, end), and without any all is learnt."""

    text: str
    answers: tuple[tuple[int, int], ...] = ()


class RowError(UserError):
    """Why one row cannot be used; the caller adds its number."""


class EmptyAnswer(RowError):  # noqa: N818 - says what the row has, as the count of them does
    """The row has no answer to learn; its own class so that such rows can be counted."""


@dataclass(frozen=True)
class Format:
    """How rows of one shape are recognised and read; `convert` raises RowError and nothing else, `detect` never."""

    name: str
    about: str
    detect: Callable[[Row], bool]
    convert: Callable[[Row], Conversation | Text]
