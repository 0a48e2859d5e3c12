"""The tokens of a record join to its text, letters whole, each with what training does with it."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tests.tiny import KINDS, LetterTokenizer, make_tokenizer, make_tokenizer_like, text_of
from training.prepared import Record
from training.token_view import Token, TokenKind, tokens_of

TRAINED, CONTEXT, CUT_OFF = TokenKind.TRAINED, TokenKind.CONTEXT, TokenKind.CUT_OFF
SIGN = "\ufffd"  # what half a letter is decoded to
BYTES = make_tokenizer()
TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {
    **{kind: make_tokenizer_like(kind) for kind in KINDS},
    "bytes": BYTES,
    "merges": make_tokenizer(merges=True),
    "letters": LetterTokenizer(),
}
# Letters of one to four bytes, joined emoji, marks, spaces that tokenizers treat in their own ways, and special tokens.
LETTERS = st.text(st.sampled_from("anthe é中日😀👩\u200d🏽ﷺ\n\tÄ\u0301<&"), max_size=30)
TEXTS = st.lists(LETTERS | st.sampled_from(["<|im_end|>", "<|im_start|>", " the", SIGN]), max_size=6).map("".join)


def record(ids: list[int], trained: list[tuple[int, int]] | None = None, kept: int | None = None) -> Record:
    return Record(0, 1, "", ids, trained or [], len(ids) if kept is None else kept)


def kinds(tokens: list[Token]) -> list[tuple[str, TokenKind]]:
    return [(token.text, token.kind) for token in tokens]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=80, deadline=None)
@given(text=TEXTS)
@example(text="😀😀😀")
@example(text="\u200d🏽<the")
@example(text=f"{SIGN * 3}<<<")
def test_texts_join_to_what_the_ids_decode_to(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text)["input_ids"]
    tokens = tokens_of(tokenizer, record(ids), cutoff=512)
    assert "".join(token.text for token in tokens) == text_of(tokenizer, ids)
    assert [number for token in tokens for number in token.ids] == ids
    if SIGN not in text:
        assert not any(SIGN in token.text for token in tokens)


@pytest.mark.parametrize("name", ["bytes", "gpt2", "gemma"])
def test_letter_of_several_tokens_is_shown_whole(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer("x😀😀y", add_special_tokens=False)["input_ids"]
    tokens = tokens_of(tokenizer, record(ids), cutoff=512)
    assert [(token.text, len(token.ids)) for token in tokens] == [("x", 1), ("😀", 4), ("😀", 4), ("y", 1)]


def test_kinds_of_a_record_that_is_used_whole() -> None:
    ids = BYTES("ab\ncd")["input_ids"]
    tokens = tokens_of(BYTES, record(ids, [(1, 2), (3, 5)]), cutoff=2)
    assert kinds(tokens) == [("a", CONTEXT), ("b", TRAINED), ("\n", CONTEXT), ("c", TRAINED), ("d", TRAINED)]


def test_kinds_of_a_record_whose_end_is_cut_off() -> None:
    ids = BYTES("abcd")["input_ids"]
    tokens = tokens_of(BYTES, record(ids, [(1, 4)], kept=3), cutoff=3)
    assert kinds(tokens) == [("a", CONTEXT), ("b", TRAINED), ("c", TRAINED), ("d", CUT_OFF)]


def test_a_dropped_record_is_shown_as_far_as_the_cutoff_reaches() -> None:
    ids = BYTES("abcd")["input_ids"]
    too_long = tokens_of(BYTES, record(ids, [(1, 4)], kept=0), cutoff=2)
    assert kinds(too_long) == [("a", CONTEXT), ("b", TRAINED), ("c", CUT_OFF), ("d", CUT_OFF)]
    a_copy = tokens_of(BYTES, record(ids, [(1, 4)], kept=0), cutoff=512)
    assert kinds(a_copy) == [("a", CONTEXT), ("b", TRAINED), ("c", TRAINED), ("d", TRAINED)]
    assert tokens_of(BYTES, record([], kept=0), cutoff=512) == []


@pytest.mark.parametrize("name", ["bytes", "gpt2", "qwen", "gemma"])
def test_a_sign_for_half_a_letter_in_the_text_does_not_swallow_what_follows(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    before, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"a{SIGN}", "b<|im_end|>"))
    tokens = tokens_of(tokenizer, record(before + answer, [(len(before), len(before + answer))]), cutoff=512)
    assert kinds(tokens) == [("a", CONTEXT), (SIGN, CONTEXT), ("b", TRAINED), ("<|im_end|>", TRAINED)]


def test_ids_that_are_no_letters_are_shown_all_the_same() -> None:
    ids = BYTES("😀")["input_ids"][:3] * 5
    tokens = tokens_of(BYTES, record(ids), cutoff=512)
    assert [number for token in tokens for number in token.ids] == ids
