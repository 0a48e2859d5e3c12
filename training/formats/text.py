"""Rows of plain text, which the model learns to continue."""

from __future__ import annotations

from training.formats.base import Format, Row, Text
from training.formats.values import find_key, is_missing, needed_text


def _detect(row: Row) -> bool:
    key = find_key(row, "text")
    return key is not None and not is_missing(row[key])


def _convert(row: Row) -> Text:
    return Text(needed_text(row, find_key(row, "text") or "text"))


FORMAT = Format("text", "text: plain text to continue", _detect, _convert)
