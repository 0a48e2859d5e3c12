"""Chunks lose no token and double none, end where they should, and say where in the file they come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tests.tiny import KINDS, LetterTokenizer, make_settings, make_tokenizer, make_tokenizer_like, text_of
from training import chunking
from training.chunking import Chunk, make_chunks
from training.documents import HeldOut, find_documents, hold_out, parts, pieces

BYTES = make_tokenizer()  # a token a byte: places in tokens are places in characters
END = "<|im_end|>"
HARD_CUT = "----"
like = cache(make_tokenizer_like)


def chunks_of(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    held_out: HeldOut | None = None,
    size: int = 1_000_000,
    **changes: Any,
) -> list[Chunk]:
    """The chunks of a file's text that is read in blocks of `size` characters."""
    values = {"dataset": [], "raw_text": ["x.txt"], "cutoff_length": 10, "overlap_length": 3, "prefer_line_cut": 0}
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    divided = parts(0, pieces(blocks, HARD_CUT), held_out or HeldOut())
    return list(make_chunks(tokenizer, divided, make_settings(**(values | changes))))


def texts(chunks: list[Chunk]) -> list[str]:
    return [text_of(BYTES, chunk.input_ids) for chunk in chunks]


def test_chunks_overlap_and_only_the_last_ends() -> None:
    assert texts(chunks_of(BYTES, "abcdefghijklmnop")) == ["abcdefghij", "hijklmnop" + END]


def test_short_document_is_one_chunk() -> None:
    (chunk,) = chunks_of(BYTES, "abc")
    assert (texts([chunk]), chunk.is_whole, chunk.character) == (["abc" + END], True, 0)
    assert not any(chunk.is_whole for chunk in chunks_of(BYTES, "abcdefghijklmnop"))


def test_documents_never_share_a_chunk() -> None:
    chunks = chunks_of(BYTES, f"abc{HARD_CUT}de{HARD_CUT}fghijklmnopq")
    assert texts(chunks) == ["abc" + END, "de" + END, "fghijklmno", "mnopq" + END]
    assert [(c.document, c.character) for c in chunks] == [(1, 0), (2, 7), (3, 13), (3, 20)]


def test_line_is_preferred_within_reach() -> None:
    text = "abcdefg\nijklmnop"
    assert texts(chunks_of(BYTES, text, prefer_line_cut=2))[0] == "abcdefg\n"
    assert texts(chunks_of(BYTES, text, prefer_line_cut=1))[0] == "abcdefg\nij"
    assert texts(chunks_of(BYTES, "ab\nde\ngh\njk", prefer_line_cut=9))[0] == "ab\nde\ngh\n"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Yes. Then more words", "Yes. "),
        ("Yes! Then no. more words", "Yes! "),
        ('"Yes." Then more words', '"Yes." '),
        ("3.14159265358979", "3.14159265"),  # no sentence ends within a number
        ("a.b c\nmore. words", "a.b c\n"),  # a line is better than a sentence
        ("好。你好吗我很好", "好。"),
    ],
)
def test_sentence_is_preferred_where_no_line_ends(text: str, first: str) -> None:
    assert texts(chunks_of(BYTES, text, prefer_line_cut=9, overlap_length=1))[0] == first


def test_last_chunk_never_holds_one_token_only() -> None:
    assert texts(chunks_of(BYTES, "abcdefghij", overlap_length=0)) == ["abcdefghi", "j" + END]
    assert texts(chunks_of(BYTES, "abcdefghijk", overlap_length=0)) == ["abcdefghij", "k" + END]


# Any text, in any tokenizer

WORDS = st.sampled_from(
    ["the", "then", "hen", "an", "ate", "x", "é", "n\u0303", "你好", "that's", "12", "(an)", "\U0001f469"]
)
GAPS = st.just(" ") | st.sampled_from(
    [" ", " ", " ", "\n", "\n\n", ".\n", ", ", ".\n\n\n", "!\n", "  ", "\n  ", " \n", "\t", "--", HARD_CUT]
)
TEXTS = st.lists(st.tuples(WORDS, GAPS), min_size=1, max_size=60).map(lambda found: "".join(w + g for w, g in found))
LIMITS = st.tuples(st.integers(8, 40), st.integers(0, 39), st.integers(0, 40))


def by_side(chunks: list[Chunk]) -> dict[tuple[int, bool], list[Chunk]]:
    sides: dict[tuple[int, bool], list[Chunk]] = {}
    for chunk in chunks:
        sides.setdefault((chunk.document, chunk.held_out), []).append(chunk)
    return sides


def joined(chunks: list[Chunk], cutoff: int, overlap: int) -> list[int]:
    """The ids of one side of a document: each chunk repeats the end of the one before, and no more."""
    whole = list(chunks[0].input_ids)
    assert len(whole) <= cutoff
    for chunk in chunks[1:]:
        assert 2 <= len(chunk.input_ids) <= cutoff
        # Exactly the overlap is repeated, and something new follows it.
        assert len(chunk.input_ids) > overlap
        assert whole[len(whole) - overlap :] == chunk.input_ids[:overlap]
        whole += chunk.input_ids[overlap:]
    return whole


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    return monkeypatch


any_text = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", KINDS)
@any_text
@given(
    text=TEXTS,
    limits=LIMITS,
    unit=st.integers(60, 120),
    call=st.integers(1, 200),
    size=st.integers(1, 200),
    share=st.sampled_from([0, 0.1, 0.4]),
)
def test_chunks_hold_what_the_whole_document_holds(
    kind: str,
    small: pytest.MonkeyPatch,
    text: str,
    limits: tuple[int, int, int],
    unit: int,
    call: int,
    size: int,
    share: float,
) -> None:
    """Tokenized in stretches, the ids are those of each document tokenized at once."""
    # In half a unit there is a place at which the text can be parted; in a real one that is 25,000 characters.
    safe = [0, *(found.end() for found in re.finditer(r"\S(?:\n(?=\S)|(?= \S))|----", text)), len(text)]
    assume(max(b - a for a, b in pairwise(safe)) < 30)
    small.setattr(chunking, "_UNIT", unit)
    small.setattr(chunking, "_CALL", call)
    tokenizer = like(kind)
    cutoff, overlap, prefer = limits
    overlap = min(overlap, cutoff - 1)
    documents = [d for d in find_documents(0, pieces([text], HARD_CUT)) if not d.is_blank]
    held_out = hold_out(documents, share, 1) if share and documents else HeldOut()
    chunks = chunks_of(
        tokenizer,
        text,
        held_out,
        size,
        cutoff_length=cutoff,
        overlap_length=overlap,
        prefer_line_cut=prefer,
    )
    sides = by_side(chunks)
    start, end = chunking.text_borders(tokenizer)
    character = 0
    for number, content in enumerate(text.split(HARD_CUT), start=1):
        own = [(held, found) for (document, held), found in sides.items() if document == number]
        assert own
        borders = [character, *(found[0].character for _, found in own[1:]), character + len(content)]
        for place, ((held, found), (first, behind)) in enumerate(zip(own, pairwise(borders), strict=True)):
            plain = tokenizer(text[first:behind], add_special_tokens=False)["input_ids"]
            expected = [*(start if place == 0 else []), *plain, *(end if place == len(own) - 1 else [])]
            assert joined(found, cutoff, overlap) == expected
            assert held == (place == 1 or (0, number) in held_out.documents)
        character += len(content) + len(HARD_CUT)


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_not_parted_behind_an_empty_line(kind: str, small: pytest.MonkeyPatch) -> None:
    """There GPT-2 would have two tokens of new lines where the text goes on, and one where it ends."""
    small.setattr(chunking, "_UNIT", 60)
    tokenizer = like(kind)
    text = "the hen ate an ant and then an eel.\n\nThen the hen ate an ant and an eel, and then that."
    (chunk,) = chunks_of(tokenizer, text, cutoff_length=500)
    assert chunk.input_ids == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
@any_text
@given(st.text("ab é你\n.", min_size=1, max_size=150), LIMITS, st.integers(2, 40), st.integers(1, 90))
def test_no_letter_is_lost_where_a_text_has_no_good_place_to_part_it(
    kind: str, small: pytest.MonkeyPatch, text: str, limits: tuple[int, int, int], unit: int, call: int
) -> None:
    small.setattr(chunking, "_UNIT", unit)
    small.setattr(chunking, "_CALL", call)
    small.setattr(chunking, "_CONTEXT", 7)
    tokenizer = like(kind)
    cutoff, overlap, prefer = limits
    overlap = min(overlap, cutoff - 1)
    chunks = chunks_of(tokenizer, text, cutoff_length=cutoff, overlap_length=overlap, prefer_line_cut=prefer)
    ids = joined(chunks, cutoff, overlap)
    start, end = chunking.text_borders(tokenizer)
    assert text_of(tokenizer, ids[len(start) : len(ids) - len(end)]) == text
    assert not set(ids[len(start) : len(ids) - len(end)]) & {*start, *end}


@pytest.mark.parametrize("kind", KINDS)
@any_text
@given(text=TEXTS, limits=LIMITS, unit=st.integers(60, 120))
def test_chunks_say_where_they_stand(
    kind: str, small: pytest.MonkeyPatch, text: str, limits: tuple[int, int, int], unit: int
) -> None:
    small.setattr(chunking, "_UNIT", unit)
    tokenizer = like(kind)
    cutoff, overlap, prefer = limits
    overlap = min(overlap, cutoff - 1)
    special = {*tokenizer.all_special_ids}
    for chunk in chunks_of(tokenizer, text, cutoff_length=cutoff, overlap_length=overlap, prefer_line_cut=prefer):
        assert text.startswith(chunk.text, chunk.character)
        assert HARD_CUT not in chunk.text
        shown = text_of(tokenizer, [i for i in chunk.input_ids if i not in special])
        # A letter of several tokens may be parted, and NFC writes some letters otherwise.
        if "\ufffd" not in shown:
            assert normalize("NFC", shown.strip()) == normalize("NFC", chunk.text.strip())


@any_text
@given(text=TEXTS, limits=LIMITS)
def test_preferred_cuts_never_part_a_letter(small: pytest.MonkeyPatch, text: str, limits: tuple[int, int, int]) -> None:
    """A token a byte: what does not end full ends behind a line or a sentence, and behind a whole letter."""
    cutoff, overlap, prefer = limits
    overlap = min(overlap, cutoff - 1)
    chunks = chunks_of(BYTES, text, cutoff_length=cutoff, overlap_length=overlap, prefer_line_cut=prefer)
    for number, chunk in enumerate(chunks):
        # Without an overlap it may be one shorter, so that the last token does not stand alone.
        gives_one = overlap == 0 and [len(c.input_ids) for c in chunks[number + 1 : number + 2]] == [2]
        if len(chunk.input_ids) < cutoff and BYTES.eos_token_id not in chunk.input_ids and not gives_one:
            assert len(chunk.input_ids) >= cutoff - prefer
            end = text_of(BYTES, chunk.input_ids)
            assert not end.endswith("\ufffd")
            assert end.rstrip(" \t").endswith("\n") or end.rstrip().endswith((".", "!", "?"))


def test_tokenizer_without_an_end_token_and_one_with_a_start_token() -> None:
    bare = make_tokenizer()
    bare.eos_token = None
    assert [len(c.input_ids) for c in chunks_of(bare, "abcdefghijklm")] == [10, 6]
    llama = like("llama")
    first, *_, last = chunks_of(llama, "the hen ate an ant, then the hen ate an eel.")
    assert first.input_ids[0] == llama.bos_token_id and llama.bos_token_id not in last.input_ids
    assert last.input_ids[-1] == llama.eos_token_id and llama.eos_token_id not in first.input_ids
    assert (first.character, first.text[:3]) == (0, "the")


@any_text
@given(text=st.text("ab \n.", min_size=1, max_size=200), limits=LIMITS, unit=st.integers(2, 80))
def test_tokenizer_that_knows_no_places(
    small: pytest.MonkeyPatch, text: str, limits: tuple[int, int, int], unit: int
) -> None:
    small.setattr(chunking, "_UNIT", unit)
    tokenizer = LetterTokenizer()
    cutoff, overlap, prefer = limits
    overlap = min(overlap, cutoff - 1)
    chunks = chunks_of(tokenizer, text, cutoff_length=cutoff, overlap_length=overlap, prefer_line_cut=prefer)
    ids = joined(chunks, cutoff, overlap)
    assert text_of(tokenizer, ids) == text + "<|im_end|>"
    for chunk in chunks:
        assert text.startswith(chunk.text, chunk.character)
        assert text_of(tokenizer, chunk.input_ids).removesuffix("<|im_end|>") == chunk.text


def test_places_that_cannot_be_told_are_the_stretchs_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LetterTokenizer, "convert_tokens_to_string", lambda _, tokens: "".join(tokens).upper())
    chunks = chunks_of(LetterTokenizer(), "abcdefghijklmnop", prefer_line_cut=5)
    assert [len(chunk.input_ids) for chunk in chunks] == [10, 10]
    assert [chunk.character for chunk in chunks] == [0, 0]


def test_divided_document_ends_and_begins_once() -> None:
    """The trained beginning of a held-out end is not taught to stop where the document goes on."""
    text = "the hen ate. " * 20
    documents = list(find_documents(0, pieces([text], HARD_CUT)))
    llama = like("llama")
    chunks = chunks_of(llama, text, hold_out(documents, 0.2, 1))
    head = [i for c in chunks if not c.held_out for i in c.input_ids]
    tail = [i for c in chunks if c.held_out for i in c.input_ids]
    assert head.count(llama.bos_token_id) == 1 and llama.eos_token_id not in head
    assert tail.count(llama.eos_token_id) == 1 and llama.bos_token_id not in tail
    assert not any(chunk.is_whole for chunk in chunks)


def test_large_text_is_streamed() -> None:
    """The first chunk is there before the text is read to its end."""
    read = 0

    def blocks() -> Iterator[str]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield "the hen ate. " * 8_000

    values = {"dataset": [], "raw_text": ["x.txt"], "cutoff_length": 64, "overlap_length": 0}
    chunks = make_chunks(BYTES, parts(0, pieces(blocks(), HARD_CUT), HeldOut()), make_settings(**values))
    next(chunks)
    assert read < 20
