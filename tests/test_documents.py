"""Texts are divided into documents as a stream, and what is held out of them is on one side only."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.documents import Document, HeldOut, Part, Piece, find_documents, hold_out, parts, pieces


def in_blocks(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def joined(found: list[Piece]) -> list[tuple[int, int, str]]:
    """Number, first character and text of each document."""
    documents: list[tuple[int, int, str]] = []
    begins = True
    for piece in found:
        if begins:
            documents.append((piece.document, piece.character, piece.text))
        else:
            number, character, text = documents[-1]
            assert (piece.document, piece.character) == (number, character + len(text))
            documents[-1] = (number, character, text + piece.text)
        begins = piece.ends
    assert begins
    return documents


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab\n", max_size=60),
    st.sampled_from(["a", "aa", "aba", "\\n", "\\n\\n\\n", "a\\nb", ""]),
    st.integers(1, 20),
)
def test_blocks_of_any_size_give_the_same_documents(text: str, hard_cut: str, size: int) -> None:
    separator = hard_cut.replace("\\n", "\n")
    expected = text.split(separator) if separator else [text]
    found = joined(list(pieces(in_blocks(text, size), hard_cut)))
    assert [document for _, _, document in found] == expected
    assert [number for number, _, _ in found] == list(range(1, len(expected) + 1))
    assert all(text[character:].startswith(document) for _, character, document in found)
    assert [c for _, c, _ in found] == [
        sum(len(d) + len(separator) for d in expected[:n]) for n in range(len(expected))
    ]


def test_only_what_may_begin_a_hard_cut_is_kept_back() -> None:
    """A text without one passes through as it comes."""
    stream = pieces(iter(["a" * 1000, "b" * 1000]), r"\n\n\n")
    assert len(next(stream).text) == 998


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["one", "two", " \n", ""]), min_size=1, max_size=6), st.integers(1, 9))
def test_documents_are_told_apart_whatever_the_blocks(texts: list[str], size: int) -> None:
    found = list(find_documents(3, pieces(in_blocks("--".join(texts), size), "--")))
    assert [(d.file, d.number, d.length, d.is_blank) for d in found] == [
        (3, number, len(text), not text.strip()) for number, text in enumerate(texts, start=1)
    ]
    for one in found:
        for other in found:
            assert (one.digest == other.digest) == (texts[one.number - 1] == texts[other.number - 1])


# Holding out


def documents_of(*texts: str) -> list[Document]:
    return [d for d in find_documents(0, pieces(["---".join(texts)], "---")) if not d.is_blank]


def divided(text: str, held_out: HeldOut, size: int = 1_000_000, hard_cut: str = "---") -> list[Part]:
    return list(parts(0, pieces(in_blocks(text, size), hard_cut), held_out))


def test_held_out_share_is_one_of_the_text_and_not_of_the_documents() -> None:
    """A long book with a short note behind it is never held out whole."""
    book, note = "word and word \n" * 6000, "The end of the book."
    for seed in range(8):
        found = divided(f"{book}---{note}", hold_out(documents_of(book, note), 0.1, seed))
        trained = sum(len(p.text) for p in found if not p.held_out)
        assert "".join(p.text for p in found) == book + note
        assert 0.85 * len(book) < trained < len(book) + len(note)


def test_whole_documents_are_held_out_where_they_fit() -> None:
    documents = documents_of(*(f"chapter {n} " * 50 for n in range(10)))
    drawn = hold_out(documents, 0.2, 1)
    assert len(drawn.documents) == 2 and drawn.cut_document is None
    assert hold_out(documents, 0.2, 1) == drawn
    assert {hold_out(documents, 0.2, seed) for seed in range(9)} != {drawn}
    # What does not fit whole is the end of the longest.
    two = hold_out(documents[:2], 0.1, 1)
    assert not two.documents and two.cut_document == (0, 1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab \n", max_size=30), min_size=1, max_size=8),
    st.floats(0.01, 0.5),
    st.integers(0, 5),
    st.integers(1, 40),
)
def test_sides_make_the_whole(texts: list[str], share: float, seed: int, size: int) -> None:
    documents = documents_of(*texts)
    held_out = hold_out(documents, share, seed)
    found = divided("---".join(texts), held_out, size)
    by_document: dict[int, list[Part]] = {}
    for part in found:
        by_document.setdefault(part.document, []).append(part)
    assert ["".join(p.text for p in own) for own in by_document.values()] == texts
    apart = sum(len(p.text) for p in found if p.held_out)
    assert apart <= share * sum(map(len, texts)) + max(map(len, texts)) / 2 + 1
    for number, own in by_document.items():
        assert [p.held_out for p in own] == sorted(p.held_out for p in own)  # an end, never a beginning or middle
        assert own[0].opens and own[-1].closes
        assert sum(p.opens for p in own) == sum(p.closes for p in own) == 1
        for side in (False, True):
            of_side = [p for p in own if p.held_out == side]
            assert [p.first for p in of_side] == [n == 0 for n in range(len(of_side))]
            assert [p.last for p in of_side] == [n == len(of_side) - 1 for n in range(len(of_side))]
        if len({p.held_out for p in own}) == 2:
            assert held_out.cut_document == (0, number) and texts.count(texts[number - 1]) == 1
    sides = {(texts[number - 1], p.held_out) for number, own in by_document.items() for p in own if len(own) == 1}
    assert not {text for text, side in sides if side} & {text for text, side in sides if not side}
    if any(text.strip() for text in texts):
        assert any(p.text for p in found if not p.held_out)


def test_tail_begins_at_a_line_else_at_a_word() -> None:
    lines = "".join(f"line {n}\n" for n in range(10))
    head, *tail = divided(lines, hold_out(documents_of(lines), 0.25, 0))
    assert head.text == "".join(f"line {n}\n" for n in range(7))
    assert "".join(p.text for p in tail) == "line 7\nline 8\nline 9\n"
    assert tail[0].character == len(head.text) and not head.held_out and all(p.held_out for p in tail)
    words = "word " * 10
    head, *tail = divided(words, hold_out(documents_of(words), 0.25, 0))
    assert tail[0].text.startswith("word") and head.text.endswith(" ")


@pytest.mark.parametrize("size", [7, 30, 64, 1000])
def test_tail_of_a_text_in_blocks_is_about_the_share(size: int) -> None:
    text = "".join(f"line {n:03}\n" for n in range(100))
    found = divided(text, hold_out(documents_of(text), 0.2, 0), size)
    tail = "".join(p.text for p in found if p.held_out)
    assert text.endswith(tail) and 0.18 < len(tail) / len(text) < 0.24
    assert tail.startswith("line") or size < 30


def test_share_of_nothing() -> None:
    assert hold_out([], 0.5, 1) == HeldOut()
