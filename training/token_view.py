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
_WINDOW = 6
_HALF_LETTER = "\ufffd"
_MOST_IN_A_LETTER = 8


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
    tokens = []
    begin = 0
    while begin < len(ids):
        end = begin + 1
        text = _text(tokenizer, ids, begin, end)
        while text.endswith(_HALF_LETTER) and end < min(len(ids), begin + _MOST_IN_A_LETTER):
            end += 1
            text = _text(tokenizer, ids, begin, end)
        kind = TokenKind.TRAINED if begin in trained else TokenKind.CONTEXT
        if begin >= kept:
            kind = TokenKind.CUT_OFF
        tokens.append(Token(text, tuple(ids[begin:end]), kind))
        begin = end
    return tokens


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int], begin: int, end: int) -> str:
    """What the tokens from `begin` to `end` add to the text of those before."""
    window = max(0, begin - _WINDOW)
    before = str(tokenizer.decode(ids[window:begin], clean_up_tokenization_spaces=False))
    through = str(tokenizer.decode(ids[window:end], clean_up_tokenization_spaces=False))
    return through[len(before) :] if through.startswith(before) else str(tokenizer.decode(ids[begin:end]))
