"""Raw text: documents, chunks that lose no token, and where they are cut."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import make_settings, make_tokenizer, text_of
from training.encoding import Example, encode_text
from training.raw_text import Document, encode_document, hold_out, hold_out_tail, split_documents

TOKENIZER = make_tokenizer()  # a token a byte: positions in tokens are positions in characters
END = "<|im_end|>"


def chunks_of(text: str, **changes: Any) -> list[Example]:
    values = {"dataset": "", "raw_text": "x.txt", "cutoff_length": 10, "overlap_length": 3, "prefer_newline_cut": 0}
    return encode_document(TOKENIZER, Document(text, 0), make_settings(**(values | changes)))


def texts(chunks: list[Example]) -> list[str]:
    return [text_of(TOKENIZER, chunk.input_ids) for chunk in chunks]


def positions(chunk: Example) -> tuple[int, int]:
    """Where the chunk says it comes from, in tokens of its document."""
    found = re.search(r"tokens ([\d,]+) to ([\d,]+)$", chunk.source)
    assert found
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


def test_chunks_overlap_and_only_the_last_ends() -> None:
    assert texts(chunks_of("abcdefghijklmnop")) == ["abcdefghij", "hijklmnop" + END]


def test_short_document_is_one_chunk() -> None:
    assert texts(chunks_of("abc")) == ["abc" + END]


def test_whole_chunk_is_trained() -> None:
    assert all(chunk.labels == chunk.input_ids for chunk in chunks_of("abcdefghijklmnop"))


def test_newline_is_preferred_within_reach() -> None:
    text = "abcdefg\nijklmnop"
    assert texts(chunks_of(text, prefer_newline_cut=2))[0] == "abcdefg\n"
    assert texts(chunks_of(text, prefer_newline_cut=1))[0] == "abcdefg\nij"
    assert texts(chunks_of("ab\nde\ngh\njk", prefer_newline_cut=9))[0] == "ab\nde\ngh\n"


def test_last_chunk_never_holds_one_token_only() -> None:
    assert texts(chunks_of("abcdefghij", overlap_length=0)) == ["abcdefghij", "j" + END]
    assert texts(chunks_of("abcdefghijk", overlap_length=0)) == ["abcdefghij", "k" + END]


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab\n ", min_size=1, max_size=120),
    st.integers(8, 40),
    st.integers(0, 39),
    st.integers(0, 60),
)
def test_no_token_is_lost(text: str, cutoff: int, overlap: int, newline: int) -> None:
    overlap = min(overlap, cutoff - 1)
    whole = encode_text(TOKENIZER, text, "").input_ids
    chunks = chunks_of(text, cutoff_length=cutoff, overlap_length=overlap, prefer_newline_cut=newline)
    covered = 0
    for chunk in chunks:
        start, end = positions(chunk)
        assert chunk.input_ids == whole[start:end]
        assert 2 <= len(chunk.input_ids) <= cutoff
        # Exactly the overlap is repeated, but for a last token that would stand alone.
        assert start == max(0, covered - overlap) or (end == len(whole) and start == end - 2)
        assert end > covered
        covered = end
    assert covered == len(whole)
    assert all(TOKENIZER.eos_token_id not in chunk.input_ids for chunk in chunks[:-1])
    assert chunks[-1].input_ids.count(TOKENIZER.eos_token_id) == 1


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        ("one\n\n\ntwo", r"\n\n\n", [("one", 0), ("two", 6)]),
        ("one\n\n\ntwo", "\n\n\n", [("one", 0), ("two", 6)]),
        ("\n\n\none\n\n\n \n\n\n", r"\n\n\n", [("one", 3)]),
        ("one---two", "---", [("one", 0), ("two", 6)]),
        ("one\n\n\ntwo", "", [("one\n\n\ntwo", 0)]),
    ],
)
def test_hard_cut_divides_documents(text: str, separator: str, expected: list[tuple[str, int]]) -> None:
    documents = split_documents(text, separator)
    assert [(d.text, d.start) for d in documents] == expected
    assert all(text[d.start :].startswith(d.text) for d in documents)


def test_source_names_the_place_in_the_file() -> None:
    chunk = encode_document(TOKENIZER, Document("abc", 12345), make_settings())[0]
    assert chunk.source == "document at character 12,345, tokens 0 to 4"


@settings(max_examples=100, deadline=None)
@given(st.text("ab\n ", min_size=1, max_size=200), st.floats(0.01, 0.5))
def test_tail_and_head_make_the_whole(text: str, share: float) -> None:
    head, tail = hold_out_tail(Document(text, 7), share)
    if tail is None:
        assert head.text == text
    else:
        assert head.text + tail.text == text and tail.start == 7 + len(head.text)
        assert head.text.strip() and tail.text.strip()
        assert len(head.text) >= len(text) // 2


def test_tail_begins_at_a_line_else_at_a_word() -> None:
    lines = "".join(f"line {n}\n" for n in range(10))
    head, tail = hold_out_tail(Document(lines, 0), 0.25)
    assert tail is not None and tail.text == "line 7\nline 8\nline 9\n"
    head, tail = hold_out_tail(Document("word " * 10, 0), 0.25)
    assert tail is not None and tail.text.startswith("word") and head.text.endswith(" ")


def test_held_out_share_is_one_of_the_text_and_not_of_the_documents() -> None:
    """A long book with a short note behind it: a tenth is held out, whichever of both is drawn first."""
    book = Document("word and word \n" * 6000, 0)
    note = Document("The end of the book.", len(book.text) + 3)
    for seed in range(8):
        train, held_out = hold_out([book, note], 0.1, seed)
        characters = sum(len(d.text) for d in train)
        assert characters + sum(len(d.text) for d in held_out) == len(book.text) + len(note.text)
        assert characters > 0.85 * len(book.text)
        assert held_out


def test_whole_documents_are_held_out_where_they_fit() -> None:
    documents = [Document(f"chapter {n} " * 50, n * 1000) for n in range(10)]
    train, held_out = hold_out(documents, 0.2, 1)
    assert len(held_out) == 2
    assert sorted([*train, *held_out], key=lambda d: d.start) == documents
    assert hold_out(documents, 0.2, 1) == (train, held_out)
    # The share is one of characters: what does not fit whole is the end of the longest.
    train, held_out = hold_out(documents[:2], 0.1, 1)
    assert len(train) == 2 and len(held_out) == 1
