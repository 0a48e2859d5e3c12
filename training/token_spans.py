"""Finds the tokens that make a span of a text, and proves it: they decode to the span, but for white space around."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from training.answers import Rendered
from training.chat_rendering import Span
from training.formats import RowError


@dataclass(frozen=True)
class Encoded:
    """A text as token ids; `trained` are the half open spans of tokens that count in the loss."""

    text: str
    input_ids: list[int]
    trained: list[Span]


class SpanTokenizer:
    """Tokenizes texts without any special token of its own, and keeps to the borders of their spans."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._bytes = _bytes_of_tokens(tokenizer)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The texts' ids. In one call, so that the library's Rust uses every core; other threads run meanwhile."""
        if self._backend is None:
            ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
            return ids
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encoded(self, rendered: Rendered, ids: list[int]) -> Encoded | RowError:
        """The text with these ids, its spans of characters as spans of tokens; or why they cannot be."""
        trained = self._by_bytes(rendered, ids) or self._by_offsets(rendered, ids)
        return Encoded(rendered.text, ids, trained) if trained else self._in_pieces(rendered, ids)

    def _by_bytes(self, rendered: Rendered, ids: list[int]) -> list[Span] | None:
        """The spans counted out in bytes, where the tokens are these bytes and a token begins at each border."""
        tokens = list(map(self._bytes.__getitem__, ids))
        content = rendered.text.encode()
        if b"".join(tokens) != content:
            return None
        ends = [0, *accumulate(map(len, tokens))]
        spans = []
        for span in rendered.trained:
            # Of plain ASCII each character is a byte.
            borders = span if len(content) == len(rendered.text) else [len(rendered.text[:b].encode()) for b in span]
            first, last = (bisect_left(ends, border) for border in borders)
            if ends[first] != borders[0] or ends[last] != borders[1]:
                return None
            spans.append((first, last))
        return spans

    def _by_offsets(self, rendered: Rendered, ids: list[int]) -> list[Span] | None:
        """The spans by what the tokenizer says of its tokens' places, where decoding them proves it."""
        if self._backend is None:
            return None
        encoding = self._backend.encode(rendered.text, add_special_tokens=False)
        spans = [
            (first, last)
            for start, end in rendered.trained
            if (first := _token_at(encoding, range(start, end))) is not None
            and (last := _token_behind(encoding, range(start, end)))
        ]
        return spans if self._proved(rendered, ids, spans) else None

    def _in_pieces(self, rendered: Rendered, whole: list[int]) -> Encoded | RowError:
        """The text cut at its spans' borders, where a token would reach over one: so does a model that answers."""
        ids: list[int] = []
        trained: list[Span] = []
        position = 0
        for start, end in [*rendered.trained, (len(rendered.text), len(rendered.text))]:
            before, answer = self.ids([rendered.text[position:start], rendered.text[start:end]])
            if answer:
                trained.append((len(ids) + len(before), len(ids) + len(before) + len(answer)))
            ids += before + answer
            position = end
        if self._decode([ids]) != self._decode([whole]) or not self._proved(rendered, ids, trained):
            return RowError("the tokenizer joins an answer with what stands around it: choose another chat template")
        return Encoded(rendered.text, ids, trained)

    def _proved(self, rendered: Rendered, ids: list[int], spans: list[Span]) -> bool:
        """Whether the tokens decode to what is to be trained, and nothing beside but how the tokenizer writes it."""
        wanted = [rendered.text[start:end] for start, end in rendered.trained]
        texts = self._decode([ids[start:end] for start, end in spans])
        if len(texts) != len(wanted):
            return False
        if texts == wanted:
            return True
        # White space around may be missing, and letters made alike; more than is wanted there may not be.
        as_decoded = self._decode(self.ids(wanted))
        return all(text.strip() == own.strip() and text in own for text, own in zip(texts, as_decoded, strict=True))

    def _decode(self, tokens: list[list[int]]) -> list[str]:
        return list(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False)) if tokens else []


def _bytes_of_tokens(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """By id, what each token most likely stands for; where that is wrong no text is equal to it, and it is not used."""
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    table = []
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    for number, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if number in added or token is None:
            table.append(added.get(number, "").encode())
        elif token.startswith("<0x") and token.endswith(">") and len(token) == 6:  # a byte, as sentencepiece writes it
            table.append(bytes([int(token[3:5], 16)]))
        elif all(letter in letters for letter in token):
            table.append(bytes(letters[letter] for letter in token))
        else:
            table.append(token.replace("\u2581", " ").encode())  # sentencepiece's space
    return table


def _token_at(encoding: Encoding, characters: range) -> int | None:
    return next((token for c in characters if (token := encoding.char_to_token(c)) is not None), None)


def _token_behind(encoding: Encoding, characters: range) -> int | None:
    """One more than the last token of these characters; a character may be several tokens."""
    last = _token_at(encoding, characters[::-1])
    if last is None:
        return None
    place = encoding.token_to_chars(last)
    while last + 1 < len(encoding) and encoding.token_to_chars(last + 1) == place:
        last += 1
    return last + 1
