"""Shows a record token by token, as the model reads it: what is trained, what is context, what is cut off."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from training.prepared import Record

# A token's text can depend on those before it, such as a space that only a text's first word goes without; and a letter
# can be several tokens, of which only the last makes it readable.
_BEFORE = 3
_MOST_IN_A_LETTER = 8
_HALF_LETTER = "\ufffd"


class Show(StrEnum):
    """Which records are paged through."""

    ALL = "all"
    USED = "used"
    DROPPED = "dropped"
    CUT = "cut"
    HELD_OUT = "held out"


class TokenKind(StrEnum):
    """What training does with a token."""

    TRAINED = "trained"
    CONTEXT = "context"
    CUT_OFF = "cut off"


@dataclass(frozen=True)
class Token:
    """A token's text, or that of several which only together make a letter."""

    text: str
    ids: tuple[int, ...]
    kind: TokenKind


def tokens_of(tokenizer: PreTrainedTokenizerBase, record: Record, cutoff: int) -> list[Token]:
    """The record's tokens in order; their texts together are what the ids decode to.

    Of one that was dropped they are shown as they would be trained were it not for the cutoff.
    """
    kept = record.kept or cutoff
    ids = list(record.input_ids)
    trained = {position for start, end in record.trained for position in range(start, end)}
    whole = _decoded(tokenizer, ids)
    tokens: list[Token] = []
    begin = shown = 0
    while begin < len(ids):
        # From the beginning of a letter: behind half a one, some tokenizers decode nothing right.
        window = begin - sum(len(token.ids) for token in tokens[-_BEFORE:])
        end, text = _next(tokenizer, ids[window : begin + _MOST_IN_A_LETTER], begin - window, whole, shown)
        end += window
        kind = TokenKind.TRAINED if begin in trained else TokenKind.CONTEXT
        if begin >= kept:
            kind = TokenKind.CUT_OFF
        tokens.append(Token(text, tuple(ids[begin:end]), kind))
        begin, shown = end, shown + len(text)
    return tokens


def _next(tokenizer: PreTrainedTokenizerBase, ids: list[int], begin: int, whole: str, shown: int) -> tuple[int, str]:
    """Where the token at `begin` ends, or those that make its letter, and their text, which `whole` has at `shown`."""
    before = _decoded(tokenizer, ids[:begin])
    end, text = len(ids), None
    for last in range(begin + 1, len(ids) + 1):
        through = _decoded(tokenizer, ids[:last])
        added = through[len(before) :] if through.startswith(before) else None
        if text is None and added is not None and whole.startswith(added, shown):
            end, text = last, added
        elif text is not None and added == text:
            end = last  # the sign for half a letter stands in the text itself, and this is the rest of it
        if text is not None and not text.endswith(_HALF_LETTER):
            break
    return end, text or ""


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
