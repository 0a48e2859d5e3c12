"""Reads the user's data files: rows of a .json or .jsonl dataset, or a text file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.errors import UserError
from training.formats import Format, Row, RowError, choose_format


def read_rows(path: Path) -> list[Row]:
    """All rows of a dataset; raises UserError naming the line or row that is wrong."""
    text = read_text(path)
    values = _json_lines(text, path.name) if path.suffix.lower() == ".jsonl" else _json_list(text, path.name)
    for number, row in enumerate(values, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{path.name}, row {number}: it is {_kind(row)} and not an object with keys such as 'instruction'."
            )
    if not values:
        raise UserError(f"{path.name} holds no rows: add some, or choose another file.")
    return values


def check_rows(path: Path, data_format: str) -> Format:
    """Read a dataset as training will; raises UserError unless a format fits and at least one row can be used."""
    rows = read_rows(path)
    try:
        chosen = choose_format(rows, data_format)
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from None
    first_problem = ""
    for number, row in enumerate(rows, start=1):
        try:
            chosen.convert(row)
            return chosen
        except RowError as error:
            first_problem = first_problem or f"row {number}: {error}"
    raise UserError(f"No row of {path.name} can be read as {chosen.name}; {first_problem}.")


def read_text(path: Path) -> str:
    """The file as text; raises UserError when it is empty or not UTF-8."""
    try:
        # utf-8-sig drops the mark that some Windows programs put first.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path.name} is not UTF-8 text (byte {error.start + 1:,}): save it as UTF-8 and upload it again."
        ) from None
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror}).") from error
    if not text.strip():
        raise UserError(f"{path.name} is empty: choose another file.")
    return text


def _json_list(text: str, file_name: str) -> list[Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:
            return _json_lines(text, file_name)  # a row a line, as many files are that are called .json
        raise UserError(
            f"{file_name} is not valid JSON: {error.msg} at line {error.lineno:,}, column {error.colno:,}."
        ) from None
    except RecursionError:
        raise UserError(f"{file_name} is nested too deeply to be a dataset.") from None
    except ValueError:
        raise UserError(f"{file_name} holds a number too long to be read: write it as text, in quotes.") from None
    if isinstance(data, dict):
        # Some datasets wrap their rows in an object, beside a version or a name.
        lists = [value for value in data.values() if isinstance(value, list)]
        data = lists[0] if len(lists) == 1 else data
    if not isinstance(data, list):
        raise UserError(f"{file_name} holds {_kind(data)}; a dataset is a list of rows: [ {{...}}, {{...}} ].")
    return data


def _json_lines(text: str, file_name: str) -> list[Any]:
    rows = []
    # Only \n ends a line: other separators may stand inside a JSON string.
    for number, line in _numbered_lines(text.split("\n")):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{file_name}, line {number:,} is not valid JSON: {error.msg} at column {error.colno:,}."
            ) from None
        except RecursionError:
            raise UserError(f"{file_name}, line {number:,} is nested too deeply to be a row.") from None
        except ValueError:
            raise UserError(
                f"{file_name}, line {number:,} holds a number too long to be read: write it as text, in quotes."
            ) from None
    return rows


def _numbered_lines(lines: Iterable[str]) -> Iterable[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "nothing (null)")
