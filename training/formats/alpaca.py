"""Alpaca's shape: an instruction, an input that may be missing, and an output; Dolly's names for them too."""

from __future__ import annotations

from training.formats.base import Conversation, EmptyAnswer, Format, Row
from training.formats.pairs import history, pair
from training.formats.turns import row_system, with_system
from training.formats.values import find_key, is_missing, needed_text, optional_text

_OUTPUTS = ("output", "response", "answer", "completion")
_INPUTS = ("input", "context")


def _detect(row: Row) -> bool:
    key = find_key(row, "instruction")
    return key is not None and not is_missing(row[key]) and find_key(row, *_OUTPUTS) is not None


def _convert(row: Row) -> Conversation:
    question = needed_text(row, find_key(row, "instruction") or "instruction")
    answer = needed_text(row, find_key(row, *_OUTPUTS) or _OUTPUTS[0], EmptyAnswer)
    extra = optional_text(row, find_key(row, *_INPUTS))
    return Conversation(with_system([*history(row), *pair(question, answer, extra)], row_system(row)))


FORMAT = Format("alpaca", "instruction, input (may be empty), output", _detect, _convert)
