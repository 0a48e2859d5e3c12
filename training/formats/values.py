"""Reads single values of a row: whatever a file may hold becomes text or a reason in words."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

from training.formats.base import Row, RowError

_MAX_DEPTH = 100  # far beyond real tool calls, far below where templates fail
_MAX_SHOWN = 60


def shown(value: object) -> str:
    """`value` in a message: text in quotes, shortened and with odd characters escaped; anything else as its kind."""
    if not isinstance(value, str):
        return kind(value)
    return repr(value if len(value) <= _MAX_SHOWN else value[:_MAX_SHOWN] + "…")


def kind(value: object) -> str:
    """What a value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), f"a value of the type {type(value).__name__}")


def is_missing(value: object) -> bool:
    """Whether a file means by this value that there is none."""
    return value is None or (isinstance(value, float) and math.isnan(value))  # NaN is how pandas writes it


@lru_cache(maxsize=4096)
def _found(keys: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    # Of two keys that differ in case only the first stands.
    folded = {key.strip().casefold(): key for key in reversed(keys)}
    return next((folded[name] for name in names if name in folded), None)


def find_key(row: Row, *names: str) -> str | None:
    """The row's own spelling of the first of `names` that it has; upper and lower case are the same."""
    return _found(tuple(row), names)  # most rows of a file have the same keys


def as_text(value: object, where: str) -> str:
    """`value` as text, empty when it is missing; numbers become text, anything else is refused."""
    if is_missing(value):
        return ""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            # JSON can write half of a character that takes two of its escapes; no tokenizer reads that.
            raise RowError(f"{where} has half a character (a lone surrogate)") from None
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) and math.isinf(value):
            raise RowError(f"{where} holds an infinite number")
        try:
            return str(value)
        except ValueError:  # Python's bound on the digits of a number
            raise RowError(f"{where} holds a number too long to be read") from None
    raise RowError(f"{where} holds {kind(value)} and not text")


def optional_text(row: Row, key: str | None) -> str:
    """The row's text under `key`, empty where there is none."""
    return "" if key is None else as_text(row.get(key), shown(key))


def needed_text(row: Row, key: str, error: type[RowError] = RowError) -> str:
    """The row's text under `key`; raises `error` when it is missing or only white space."""
    text = optional_text(row, key)
    if not text:
        raise error(f"{shown(key)} is missing or empty")
    if not text.strip():
        raise error(f"{shown(key)} is empty")
    return text


def from_json(text: str, where: str) -> Any:
    """The value written in JSON inside a text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowError(f"{where} is not valid JSON") from None


def check_plain(value: object, where: str) -> None:
    """Raise RowError unless `value` can be written as JSON, in whole characters and nested to a sane depth."""
    waiting: list[tuple[object, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise RowError(f"{where} is nested too deeply")
        if isinstance(item, dict):
            waiting += ((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list):
            waiting += ((part, depth + 1) for part in item)
        elif not isinstance(item, bool):
            as_text(item, where)
