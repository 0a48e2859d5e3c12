"""The registry of dataset formats: each knows its rows when it sees them and turns one into a conversation or text.

A new format is one small module and its entry in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Iterable

from training.errors import UserError
from training.formats import alpaca, messages, pairs, sharegpt, text
from training.formats.base import Conversation, EmptyAnswer, Format, Message, Row, RowError, Text
from training.formats.columns import (
    COLUMNS,
    Columns,
    columns_file,
    columns_format,
    load_columns,
    parse_columns,
    save_columns,
)
from training.formats.values import shown
from training.formats.webui import FORMAT_FILE_SUFFIX, chat_template_of, is_format_file, load_format_file

__all__ = [
    "AUTO",
    "BY_NAME",
    "COLUMNS",
    "FORMATS",
    "FORMAT_FILE_SUFFIX",
    "NAMES",
    "Columns",
    "Conversation",
    "EmptyAnswer",
    "Format",
    "Message",
    "NoFormat",
    "Row",
    "RowError",
    "Text",
    "chat_template_of",
    "choose_format",
    "columns_file",
    "columns_format",
    "is_format_file",
    "load_columns",
    "load_format_file",
    "parse_columns",
    "save_columns",
]

AUTO = "auto"
_SHOWN_KEYS = 12
# Of formats that fit equally many rows the first is taken, so richer shapes stand before simpler ones.
FORMATS = (alpaca.FORMAT, messages.FORMAT, sharegpt.FORMAT, *pairs.FORMATS, text.FORMAT)
BY_NAME = {f.name: f for f in FORMATS}
NAMES = (AUTO, *BY_NAME)


class NoFormat(UserError):  # noqa: N818 - says what became of the choice
    """No row that was looked at has the columns of the format."""


def choose_format(rows: Iterable[Row], name: str = AUTO) -> Format:
    """The format called `name`, or with auto the one that fits most rows, which are gone through once.

    Raises NoFormat when none fits any row, and UserError when there is none of that name.
    """
    if name != AUTO:
        if name not in BY_NAME:
            raise UserError(f"There is no data format {shown(name)}: choose one of {', '.join(NAMES)}.")
        return BY_NAME[name]
    fitting = dict.fromkeys(BY_NAME, 0)
    first: Row = {}
    for number, row in enumerate(rows):
        first = row if number == 0 else first
        for known in FORMATS:
            fitting[known.name] += known.detect(row)
    best = max(fitting, key=lambda key: fitting[key])
    if fitting[best] == 0:
        keys = ", ".join(map(shown, list(first)[:_SHOWN_KEYS])) or "nothing"
        keys += ", …" if len(first) > _SHOWN_KEYS else ""
        about = "; ".join(f.about for f in FORMATS)
        raise NoFormat(
            f"No row has the columns of a known format: row 1 has {keys}. Assign the columns on the Datasets tab, "
            f"or rename them to one of: {about}."
        )
    return BY_NAME[best]
