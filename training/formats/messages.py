"""OpenAI's shape: messages of role and content, with tool calls, reasoning and tools."""

from __future__ import annotations

from training.formats.base import Conversation, Format, Row
from training.formats.turns import MESSAGES, conversation, read_turns, row_system
from training.formats.values import find_key, is_missing, shown


def turns_format(name: str, about: str, *columns: str) -> Format:
    """A format whose rows hold their turns under one of `columns`."""

    def detect(row: Row) -> bool:
        key = find_key(row, *columns)
        return key is not None and not is_missing(row[key])

    def convert(row: Row) -> Conversation:
        key = find_key(row, *columns) or columns[0]
        return conversation(read_turns(row.get(key), shown(key)), row, row_system(row))

    return Format(name, about, detect, convert)


FORMAT = turns_format("messages", "messages: a list of role and content", *MESSAGES)
