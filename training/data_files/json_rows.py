"""Rows of .json and .jsonl files, read piece by piece: no more than a row and a block is ever held.

A .json file holds a list of rows, an object with one such list, or rows one after the other; an object with the turns
of a conversation is a row. A constant that JSON does not know (NaN, Infinity) is taken as missing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from training.data_files.files import LONGEST_ROW, FileError, bounded_lines, too_long
from training.data_files.text_encoding import BLOCK, open_text
from training.formats.turns import has_turns
from training.formats.values import kind

# An object longer than this is taken for one that holds the list, not for the first of many rows.
_LONGEST_FIRST_ROW = 16 * BLOCK
# A mistake this close to the end of what was read may be the middle of a word, a number or an escape.
_MARGIN = 16
_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_SPACE = re.compile(r"[ \t\n\r]*")


class _DuplicateKeyError(Exception):
    """Carries the key in words."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _DuplicateKeyError(repr(counts.most_common(1)[0][0])[:80])
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=lambda _: None)


def read_json(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .json file in order; raises FileError naming the row, line and column that is wrong."""
    with open_text(path) as file:
        yield from _Window(path.name, file).rows()


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl file, one a line; raises FileError naming the line that is wrong."""
    with open_text(path) as file:
        number = 0
        for number, line in enumerate(bounded_lines(file, path.name), start=1):
            if not line.isspace():
                yield _line(line, f"{path.name}, line {number:,}")


def _line(line: str, place: str) -> dict[str, Any]:
    try:
        return _checked(_DECODER.decode(line), place)
    except json.JSONDecodeError as error:
        if _at_end(error, line.rstrip()):
            raise FileError(f"{place} ends in the middle of a row: mend or remove it.") from None
        raise FileError(f"{place} is not valid JSON: {error.msg} at column {error.colno:,}.") from None
    except (ValueError, RecursionError, _DuplicateKeyError) as error:
        raise _problem(error, place) from None


def _problem(error: Exception, place: str) -> FileError:
    """In words what makes a value unusable that may be valid JSON."""
    if isinstance(error, FileError):
        return error
    if isinstance(error, RecursionError):
        return FileError(f"{place} is nested too deeply to be a row: remove or flatten it.")
    if isinstance(error, _DuplicateKeyError):
        return FileError(f"{place} has the key {error} twice in one object: rename or remove one.")
    return FileError(f"{place} holds a number too long to be read: write it as text, in quotes.")


def _checked(row: object, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise FileError(f"{place}: it is {kind(row)} and not an object with keys such as 'instruction'.")
    return row


def _at_end(error: json.JSONDecodeError, text: str) -> bool:
    """Whether it is the end of the text that makes it invalid."""
    rest = text[error.pos :]
    escape = error.msg.startswith("Invalid \\u") and len(rest) < 6
    return error.msg.startswith("Unterminated") or escape or any(word.startswith(rest.strip()) for word in _WORDS)


class _Window:
    """The part of a .json file's text that is held; knows the line and column where it begins."""

    def __init__(self, name: str, file: TextIO) -> None:
        self._name, self._file = name, file
        self._text, self._at, self._ended = "", 0, False
        self._line, self._column = 1, 1
        self._row = 0  # the number of the row that is being read

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows; raises FileError."""
        first = self._next()
        if first == "[":
            yield from self._list()
        elif first == "{" and self._is_row():
            while self._next():
                yield self._read_row()
        elif first == "{":
            yield from self._only_list_of_object()
        elif first:
            self._refuse(self._value())
        if self._next():
            self._fail("Extra data", self._at)

    def _list(self) -> Iterator[dict[str, Any]]:
        """The items of the list that begins here; ends behind it."""
        self._row, separator = 0, ","
        self._at += 1
        if self._next() == "]":
            separator = "]"
            self._at += 1
        while separator == ",":
            yield self._read_row()
            separator = self._expect(",]", "',' or ']' after a row")

    def _only_list_of_object(self) -> Iterator[dict[str, Any]]:
        """The rows that an object holds beside a version or a name, whose size no longer matters this way."""
        keys: set[str] = set()
        lists, filled, separator = 0, 0, ","
        self._at += 1
        if self._next() == "}":
            self._refuse({})
        while separator == ",":
            self._row = 0
            if self._next() != '"':
                self._fail("Expecting a key in double quotes", self._at)
            key = self._value()
            if key in keys:
                raise _problem(_DuplicateKeyError(repr(key)[:80]), self._where())
            keys.add(key)
            self._expect(":", "':' after a key")
            if self._next() == "[":
                lists += 1
                yield from self._list()
                filled += self._row > 0
                if filled > 1:
                    raise FileError(f"{self._name} holds more than one list of rows: leave one, or make two files.")
            else:
                self._value()
            separator = self._expect(",}", "',' or '}' after a value")
        if lists != 1 and not filled:
            self._refuse({})

    def _is_row(self) -> bool:
        """Whether the object that begins here is a row: a conversation, or followed by one more; does not move."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._may_go_on(error):
                    return False
            except (ValueError, RecursionError, _DuplicateKeyError):
                return False  # told with its row when it is read as what it is then taken for
            else:
                if has_turns(value):
                    return True
                after = _SPACE.match(self._text, end)
                if after and after.end() < len(self._text):
                    return self._text[after.end()] == "{"
            if self._ended or len(self._text) - self._at > _LONGEST_FIRST_ROW:
                return False
            self._read_more()

    def _read_row(self) -> dict[str, Any]:
        self._row += 1
        self._next()
        return _checked(self._value(), f"{self._name}, row {self._row:,}")

    def _next(self) -> str:
        """Move to the next character that is no white space and return it; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_more()

    def _expect(self, characters: str, what: str) -> str:
        """Move behind the next character, which must be one of these."""
        found = self._next()
        if not found or found not in characters:
            self._fail(f"Expecting {what}", self._at, done="after")
        self._at += 1
        return found

    def _value(self) -> Any:
        """The value that begins here; ends behind it. What is held doubles until it is complete, so time is linear."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not self._may_go_on(error):
                    self._fail(error.msg, error.pos, cut=_at_end(error, self._text))
            except (ValueError, RecursionError, _DuplicateKeyError) as error:
                raise _problem(error, self._where()) from None
            else:
                # More digits may follow a number.
                if end - self._at > LONGEST_ROW:
                    raise too_long(self._where())
                if self._ended or isinstance(value, (dict, list, str)) or len(self._text) - end > _MARGIN:
                    self._at = end
                    return value
            if len(self._text) - self._at > LONGEST_ROW:
                raise too_long(self._where())
            self._read_more()

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _MARGIN

    def _read_more(self) -> None:
        """Forget what is done and read at least as much as is kept."""
        self._line, self._column = self._place(self._at)
        kept = self._text[self._at :]
        more = self._file.read(max(BLOCK, len(kept)))
        self._text, self._at, self._ended = kept + more, 0, not more

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column in the file, both from 1."""
        lines = self._text.count("\n", 0, position)
        if not lines:
            return self._line, self._column + position
        return self._line + lines, position - self._text.rfind("\n", 0, position)

    def _where(self) -> str:
        return f"{self._name}, row {self._row:,}" if self._row else self._name

    def _fail(self, message: str, position: int, *, cut: bool = False, done: str = "in the middle of") -> NoReturn:
        line, column = self._place(position)
        if cut or (self._ended and not self._text[position:].strip()):
            where = f"{done} row {self._row:,}" if self._row else "before its first row"
            raise FileError(f"{self._name} ends {where} (line {line:,}), it is not whole: copy or download it again.")
        row = f" (row {self._row:,})" if self._row else ""
        raise FileError(f"{self._name} is not valid JSON: {message} at line {line:,}, column {column:,}{row}.")

    def _refuse(self, value: object) -> NoReturn:
        raise FileError(f"{self._name} holds {kind(value)}; a dataset is a list of rows: [ {{...}}, {{...}} ].")
