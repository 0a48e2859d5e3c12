"""Finds the tokens that make a span of a text, and proves it: they write the span, and nothing beside it.

For a tokenizer that changes letters the proof is what the tokens decode to, but for white space around.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from training.answers import Rendered
from training.chat_rendering import Span
from training.formats import RowError

# What a piece of a text is put behind to be tokenized: nothing, or what keeps a space from being put before it.
_BEFORE = ("", "\n", "x", ".")
_MOST_TAILS = 10_000
_JOINED = "the tokenizer joins an answer with what stands around it: choose another chat template"


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
        self._tails: dict[str, list[int]] = {}  # the tokens of what prompts end with
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
        """The text with these ids, its spans of characters as spans of tokens; or why they cannot be.

        Where a token reaches over a border, or would not stand so behind the prompt alone, the text is tokenized in
        pieces, which is how a model that answers comes to it.
        """
        tokens = list(map(self._bytes.__getitem__, ids))
        written, content = b"".join(tokens), rendered.text.encode()
        if written == content or written == b" " + content:  # sentencepiece puts a space before every text
            trained = _by_bytes(rendered, tokens, len(written) - len(content))
        else:
            trained = self._by_offsets(rendered, ids)
        if trained and all(map(self._as_asked, repeat(rendered.text), rendered.trained, repeat(ids), trained)):
            return Encoded(rendered.text, ids, trained)
        return self._in_pieces(rendered, written)

    def _as_asked(self, text: str, characters: Span, ids: list[int], tokens: Span) -> bool:
        """Whether the tokens before an answer are those of the prompt alone.

        What follows can change no token that ends before it, but where several characters of white space end the
        prompt: many tokenizers leave the last of them to the next word.
        """
        start, first = characters[0], tokens[0]
        if not (text[max(0, start - 2) : start].isspace() and start > 1):
            return True
        words = text[:start].rstrip()
        tail = text[max(words.rfind(" "), words.rfind("\n"), 0) : start]
        if tail not in self._tails:
            if len(self._tails) >= _MOST_TAILS:
                self._tails.clear()
            self._tails[tail] = self.ids([tail])[0]
        alone = self._tails[tail]
        return ids[max(0, first - len(alone)) : first] == alone

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
            and _within(encoding, first, last, range(start, end))
        ]
        return spans if self._proved(rendered, ids, spans) else None

    def _in_pieces(self, rendered: Rendered, written: bytes) -> Encoded | RowError:
        """The text cut at its spans' borders, in tokens that together write what those of the whole text write."""
        ids: list[int] = []
        trained: list[Span] = []
        position, done = 0, b""
        for start, end in [*rendered.trained, (len(rendered.text), len(rendered.text))]:
            for piece, is_answer in ((rendered.text[position:start], False), (rendered.text[start:end], True)):
                more = self._continued(piece, written[len(done) :], is_first=not ids)
                if more is None:
                    return RowError(_JOINED)
                if is_answer and more:
                    trained.append((len(ids), len(ids) + len(more)))
                ids += more
                done += self._written(more)
            position = end
        if done != written or not self._proved(rendered, ids, trained):
            return RowError(_JOINED)
        return Encoded(rendered.text, ids, trained)

    def _continued(self, piece: str, written: bytes, *, is_first: bool) -> list[int] | None:
        """The tokens of a piece of a text that write what comes next; nothing where there are no such tokens."""
        for before in ("",) if is_first else _BEFORE:
            lead, ids = self.ids([before, before + piece])
            if ids[: len(lead)] == lead and written.startswith(self._written(ids[len(lead) :])):
                return ids[len(lead) :]
        return None

    def _written(self, ids: list[int]) -> bytes:
        return b"".join(map(self._bytes.__getitem__, ids))

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


def _by_bytes(rendered: Rendered, tokens: list[bytes], lead: int) -> list[Span] | None:
    """The spans counted out in bytes, `lead` of them before the text; nothing where no token begins at a border."""
    ends = [0, *accumulate(map(len, tokens))]
    is_ascii = rendered.text.isascii()
    spans = []
    for span in rendered.trained:
        # Of plain ASCII each character is a byte.
        borders = [border if is_ascii else len(rendered.text[:border].encode()) for border in span]
        start, end = (border + lead if border else 0 for border in borders)
        first, last = bisect_left(ends, start), bisect_left(ends, end)
        if ends[first] != start or ends[last] != end:
            return None
        spans.append((first, last))
    return spans


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


def _within(encoding: Encoding, first: int, last: int, characters: range) -> bool:
    """Whether the tokens from `first` to `last` stand for these characters and no other."""
    begin, end = encoding.token_to_chars(first), encoding.token_to_chars(last - 1)
    return begin is not None and end is not None and begin[0] >= characters.start and end[1] <= characters.stop


def _token_behind(encoding: Encoding, characters: range) -> int | None:
    """One more than the last token of these characters; a character may be several tokens."""
    last = _token_at(encoding, characters[::-1])
    if last is None:
        return None
    place = encoding.token_to_chars(last)
    while last + 1 < len(encoding) and encoding.token_to_chars(last + 1) == place:
        last += 1
    return last + 1
