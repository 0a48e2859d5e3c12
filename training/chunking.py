"""Turns documents into overlapping chunks of tokens, in a stream: no file is too long for it."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from training.documents import Part
from training.encoding import text_borders
from training.settings import Settings

_UNIT = 50_000  # characters tokenized at once
_CALL = 1_000_000  # characters given to the tokenizer in one call, which shares them among the cores
_CONTEXT = 200  # characters before a unit that its tokens may depend on
# Where a text can be parted so that no tokenizer in use would have joined the two sides: before a line's first letter,
# or else before the space of a word. Behind an empty line some would have parted the white space otherwise.
_LINE = re.compile(r"\S\n(?=\S)")
_WORD = re.compile(r"\S(?= \S)")
_PARAGRAPH = re.compile(r"\n(?=\S)")
_WIDE_STOPS = "\u3002\uff01\uff1f"  # of scripts without spaces
_SENTENCE = re.compile("[.!?\u2026\u3002\uff01\uff1f][\"'\u201d\u2019\u00bb)\\]]*\\s*$")


@dataclass(frozen=True)
class Chunk:
    """Tokens that follow each other in a document; `character` is where they begin in the file."""

    document: int
    character: int
    text: str
    input_ids: list[int]
    held_out: bool
    is_whole: bool  # the document has no other


@dataclass(frozen=True)
class _Unit:
    """A stretch of one part, with what stands before it."""

    part: Part
    character: int
    context: str
    text: str
    first: bool
    last: bool
    opens: bool  # the part has the document's beginning


def make_chunks(tokenizer: PreTrainedTokenizerBase, parts: Iterable[Part], settings: Settings) -> Iterator[Chunk]:
    """The parts' tokens in chunks of at most the cutoff length that repeat the overlap.

    A document's first chunk has the tokenizer's start token, its last the end token. No token is lost.
    """
    start, end = text_borders(tokenizer)
    chunker = _Chunker(settings, start, end)
    for units in _calls(_units(parts)):
        for unit, (ids, places) in zip(units, _tokenize(tokenizer, units), strict=True):
            yield from chunker.feed(unit, ids, places)


def _units(parts: Iterable[Part]) -> Iterator[_Unit]:
    """The parts in stretches that can be tokenized each by itself."""
    pending, character, context, first, opens = "", 0, "", True, True
    for part in parts:
        if part.first:
            pending, character, context, first, opens = "", part.character, "", True, part.opens
        pending += part.text
        while len(pending) > 2 * _UNIT or (part.last and len(pending) > _UNIT):
            cut = _safe_cut(pending)
            yield _Unit(part, character, context, pending[:cut], first, last=False, opens=opens)
            context, first = pending[max(0, cut - _CONTEXT) : cut], False
            pending, character = pending[cut:], character + cut
        if part.last:
            yield _Unit(part, character, context, pending, first, last=True, opens=opens)


def _safe_cut(text: str) -> int:
    """Where to part a text of more than a unit's length."""
    for border in (_LINE, _WORD, _PARAGRAPH):
        for found in reversed(list(border.finditer(text, _UNIT // 2, _UNIT))):
            return found.end()
    return _UNIT


def _calls(units: Iterable[_Unit]) -> Iterator[list[_Unit]]:
    """Units in groups of about the size of a call."""
    group: list[_Unit] = []
    size = 0
    for unit in units:
        group.append(unit)
        size += len(unit.text)
        if size >= _CALL:
            yield group
            group, size = [], 0
    if group:
        yield group


def _tokenize(tokenizer: PreTrainedTokenizerBase, units: list[_Unit]) -> Iterator[tuple[list[int], list[int]]]:
    """For each unit its ids, and at which character of the file each begins."""
    if not tokenizer.is_fast:
        for unit in units:
            ids = tokenizer(unit.text, add_special_tokens=False, verbose=False)["input_ids"]
            yield ids, _decoded_places(tokenizer, unit, ids)
        return
    texts = [unit.context + unit.text for unit in units]
    batch = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    for number, unit in enumerate(units):
        starts = [start for start, _ in batch.encodings[number].offsets]
        ids, context = batch["input_ids"][number], len(unit.context)
        behind = bisect_left(starts, context)
        if context and starts[behind : behind + 1] != [context]:
            # A token reaches over the border: better two shorter ones than a lost letter.
            alone = tokenizer(unit.text, add_special_tokens=False, verbose=False)
            yield alone["input_ids"], [unit.character + start for start, _ in alone.encodings[0].offsets]
        else:
            yield ids[behind:], [unit.character + start - context for start in starts[behind:]]


def _decoded_places(tokenizer: PreTrainedTokenizerBase, unit: _Unit, ids: list[int]) -> list[int]:
    """The same for a tokenizer that knows no places: by what each token decodes to, if together that is the text."""
    pieces = tokenizer.decode([[token] for token in ids], clean_up_tokenization_spaces=False) if ids else []
    if "".join(pieces) != unit.text:
        return [unit.character] * len(ids)
    return list(itertools.accumulate(map(len, pieces), initial=unit.character))[:-1]


@dataclass
class _Chunker:
    """Collects the tokens of a part and cuts chunks off them."""

    settings: Settings
    start: list[int]
    end: list[int]
    ids: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # the character of the file at which each token begins
    text: str = ""  # from the first token's character on
    text_character: int = 0
    made: int = 0  # chunks of this part

    def feed(self, unit: _Unit, ids: list[int], places: list[int]) -> Iterator[Chunk]:
        """Take the next tokens; yields the chunks that are full, and at the part's end the rest."""
        if unit.first:
            opening = self.start if unit.opens else []
            self.ids, self.places = list(opening), [unit.character] * len(opening)
            self.text, self.text_character, self.made = "", unit.character, 0
        self.ids += ids
        self.places += places
        self.text += unit.text
        if unit.last and unit.part.closes:
            self.ids += self.end
            self.places += [unit.character + len(unit.text)] * len(self.end)
        yield from self._full_chunks(unit)
        if unit.last and self.ids:
            is_whole = self.made == 0 and unit.opens and unit.part.closes
            yield self._chunk(unit.part, 0, len(self.ids), is_whole=is_whole)

    def _full_chunks(self, unit: _Unit) -> Iterator[Chunk]:
        cutoff, overlap, begin = self.settings.cutoff_length, self.settings.overlap_length, 0
        # While more may come, two tokens are kept back: of one alone, nothing is learnt.
        while len(self.ids) - begin > cutoff + (0 if unit.last else 1):
            end = self._cut(begin)
            if overlap == 0 and len(self.ids) - end == 1:
                end -= 1
            yield self._chunk(unit.part, begin, end, is_whole=False)
            self.made += 1
            begin = end - overlap
        if begin:
            character = self.places[begin]
            self.text, self.text_character = self.text[character - self.text_character :], character
            del self.ids[:begin], self.places[:begin]

    def _cut(self, begin: int) -> int:
        """Where the chunk from `begin` ends: at a line's end if one is near, else at a sentence's, else when full."""
        end = begin + self.settings.cutoff_length
        earliest = max(end - self.settings.prefer_line_cut, begin + max(self.settings.overlap_length, 1) + 1)
        reach = range(end, earliest - 1, -1) if self.settings.prefer_line_cut else range(0)
        # Several tokens of one character have one place.
        near = [cut for cut in reach if self.places[cut] != self.places[cut - 1]]
        ends_line = (cut for cut in near if self._before(cut).rstrip(" \t").endswith("\n"))
        ends_sentence = (cut for cut in near if _SENTENCE.search(self._before(cut)) and self._new_word(cut))
        return next(itertools.chain(ends_line, ends_sentence), end)

    def _before(self, cut: int) -> str:
        place = self.places[cut] - self.text_character
        return self.text[max(0, place - 10) : place]

    def _new_word(self, cut: int) -> bool:
        """Whether a space, or a script that needs none, parts the token from what stands before it."""
        place = self.places[cut] - self.text_character
        around = self.text[max(0, place - 1) : place + 1]
        return any(c.isspace() or c in _WIDE_STOPS for c in around)

    def _chunk(self, part: Part, begin: int, end: int, *, is_whole: bool) -> Chunk:
        first = self.places[begin]
        behind = self.places[end] if end < len(self.places) else self.text_character + len(self.text)
        text = self.text[first - self.text_character : behind - self.text_character]
        return Chunk(part.document, first, text, self.ids[begin:end], part.held_out, is_whole)
