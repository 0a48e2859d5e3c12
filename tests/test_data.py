"""From files to examples: nothing lost without a word, nothing held out that is also trained."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import add_dataset, make_folders, make_settings, make_tokenizer, text_of
from training.data import LeftOut, PreparedData, Source, add_template, collate, hold_out, prepare
from training.encoding import IGNORED, Example
from training.errors import UserError

TOKENIZER = make_tokenizer()


def pair(number: int, answer: str = "yes") -> dict[str, Any]:
    return {"question": f"Q{number}", "answer": answer}


def prepared(tmp_path: Path, rows: Any, **changes: Any) -> PreparedData:
    folders = make_folders(tmp_path)
    add_dataset(folders, rows)
    return prepare(make_settings(**({"held_out_share": 0} | changes)), folders, TOKENIZER)


def test_rows_become_examples_in_their_order(tmp_path: Path) -> None:
    data = prepared(tmp_path, [pair(1), pair(2)])
    assert [e.source for e in data.train] == ["row 1", "row 2"]
    assert "Q2" in text_of(TOKENIZER, data.train[1].input_ids)
    assert data.evaluation == []
    source = data.sources[0]
    assert (source.file, source.format, source.rows_read) == ("pairs.json", "question-answer", 2)
    assert source.sha256 == hashlib.sha256((tmp_path / "datasets" / "pairs.json").read_bytes()).hexdigest()
    assert source.summary() == ""


def test_text_rows_are_trained_whole(tmp_path: Path) -> None:
    example = prepared(tmp_path, [{"text": "plain"}]).train[0]
    assert text_of(TOKENIZER, example.labels) == "plain<|im_end|>"


def test_dropped_rows_are_counted_with_number_and_reason(tmp_path: Path) -> None:
    rows = [pair(1), pair(2, ""), {"question": "Q"}, pair(4, "x" * 600), pair(5)]
    data = prepared(tmp_path, rows)
    assert [e.source for e in data.train] == ["row 1", "row 5"]
    assert data.sources[0].dropped == [
        LeftOut(2, "'answer' is missing or empty"),
        LeftOut(3, "'answer' is missing or empty"),
        LeftOut(4, "longer than the cutoff of 512 tokens"),
    ]
    assert data.sources[0].summary() == (
        "3 of 5 rows of pairs.json were dropped: 'answer' is missing or empty (rows 2, 3); "
        "longer than the cutoff of 512 tokens (row 4)"
    )


def test_cut_rows_are_counted_and_keep_their_beginning(tmp_path: Path) -> None:
    rows = [pair(1), pair(2, "abc" * 200), {"question": "x" * 600, "answer": "never reached"}]
    data = prepared(tmp_path, rows, too_long="cut its end", cutoff_length=64)
    source = data.sources[0]
    assert source.cut == [LeftOut(2, "longer than the cutoff of 64 tokens")]
    assert source.dropped == [LeftOut(3, "nothing to learn before the cutoff of 64 tokens")]
    cut = data.train[1]
    assert len(cut.input_ids) == len(cut.labels) == 64
    assert text_of(TOKENIZER, [x for x in cut.labels if x != IGNORED]).startswith("abcabc")
    assert "1 of 3 rows of pairs.json were cut" in source.summary()


def test_row_of_exactly_the_cutoff_stays(tmp_path: Path) -> None:
    length = len(prepared(tmp_path, [pair(1)]).train[0].input_ids)
    assert prepared(tmp_path, [pair(1)], cutoff_length=length).sources[0].dropped == []
    with pytest.raises(UserError):
        prepared(tmp_path, [pair(1)], cutoff_length=length - 1)


def test_row_with_nothing_to_predict_is_dropped(tmp_path: Path) -> None:
    # The tokenizer reads this text as its end token alone.
    data = prepared(tmp_path, [{"text": "<|im_end|>"}, {"text": "more"}])
    assert data.sources[0].dropped == [LeftOut(1, "too short to learn anything from")]


def test_long_lists_of_rows_are_shortened_in_the_summary() -> None:
    source = Source("a.json", "", "text", 9, dropped=[LeftOut(n, "why") for n in range(1, 8)])
    assert source.summary() == "7 of 9 rows of a.json were dropped: why (rows 1, 2, 3, 4, 5, ...)"


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No row of pairs.json can be used. 1 of 1 rows .* \(row 1\)"):
        prepared(tmp_path, [pair(1, "")])
    with pytest.raises(UserError, match="auto finds it"):
        prepared(tmp_path, [pair(1)], data_format="alpaca")
    with pytest.raises(UserError, match=r"^pairs.json: No row has the keys"):
        prepared(tmp_path, [{"frage": "Q"}])


def test_broken_characters_cost_one_row_only(tmp_path: Path) -> None:
    data = prepared(tmp_path, [pair(1, "\ud83d"), pair(2)])
    assert [e.source for e in data.train] == ["row 2"]


# Holding out


def examples(*ids: int) -> list[Example]:
    return [Example([1, i], [IGNORED, i], f"row {n}") for n, i in enumerate(ids, start=1)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.floats(0.01, 0.5), st.integers(0, 9))
def test_equal_examples_stay_on_one_side(ids: list[int], share: float, seed: int) -> None:
    everything = examples(*ids)
    train, evaluation = hold_out(everything, share, seed)
    assert sorted(e.source for e in train + evaluation) == sorted(e.source for e in everything)
    assert not {tuple(e.input_ids) for e in train} & {tuple(e.input_ids) for e in evaluation}
    assert train
    assert bool(evaluation) == (len(set(ids)) > 1)


def test_hold_out_is_drawn_by_the_seed() -> None:
    everything = examples(*range(100))
    train, evaluation = hold_out(everything, 0.1, 7)
    assert (len(train), len(evaluation)) == (90, 10)
    assert hold_out(everything, 0.1, 7) == (train, evaluation)
    assert hold_out(everything, 0.1, 8)[1] != evaluation


def test_held_out_rows_are_no_longer_trained(tmp_path: Path) -> None:
    data = prepared(tmp_path, [pair(n) for n in range(10)], held_out_share=0.3)
    assert (len(data.train), len(data.evaluation)) == (7, 3)
    assert not {e.source for e in data.train} & {e.source for e in data.evaluation}


def test_evaluation_file_takes_the_place_of_the_held_out_share(tmp_path: Path) -> None:
    add_dataset(make_folders(tmp_path), [pair(90), pair(91, "")], "eval.json")
    data = prepared(tmp_path, [pair(n) for n in range(10)], held_out_share=0.3, evaluation_file="eval.json")
    assert (len(data.train), len(data.evaluation)) == (10, 1)
    assert [s.file for s in data.sources] == ["pairs.json", "eval.json"]
    assert data.sources[1].dropped[0].row == 2


# Raw text


def raw(tmp_path: Path, text: str, **changes: Any) -> PreparedData:
    folders = make_folders(tmp_path)
    (folders.datasets / "book.txt").write_text(text, encoding="utf-8")
    values = {"dataset": "", "raw_text": "book.txt", "cutoff_length": 32, "overlap_length": 8}
    return prepare(make_settings(**(values | changes)), folders, TOKENIZER)


def test_raw_text_holds_out_whole_documents(tmp_path: Path) -> None:
    data = raw(tmp_path, "\n\n\n".join(f"document {n}" for n in range(10)), held_out_share=0.2)
    assert (len(data.train), len(data.evaluation)) == (8, 2)
    assert data.sources[0].format == "raw text" and data.sources[0].rows_read == 10


def test_raw_text_holds_out_the_tail_of_the_only_document(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(100)]
    data = raw(tmp_path, " ".join(words), held_out_share=0.1)
    trained = "".join(text_of(TOKENIZER, e.input_ids) for e in data.train)
    held_out = "".join(text_of(TOKENIZER, e.input_ids) for e in data.evaluation)
    assert "word0 " in trained and "word99" in held_out
    assert "word99" not in trained and "word0 " not in held_out


def test_raw_text_with_an_evaluation_file(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "datasets" / "other.txt").write_text("something else")
    data = raw(tmp_path, "word " * 50, evaluation_file="other.txt")
    assert [text_of(TOKENIZER, e.input_ids) for e in data.evaluation] == ["something else<|im_end|>"]
    assert [s.file for s in data.sources] == ["book.txt", "other.txt"]


def test_raw_text_without_a_word_beside_hard_cuts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no text beside its hard-cut strings"):
        raw(tmp_path, "---\n---", hard_cut_string="---")


# Template and batches


def test_fallback_template_is_given_and_told_once() -> None:
    tokenizer = make_tokenizer(None)
    assert "Alpaca" in add_template(tokenizer)
    assert add_template(tokenizer) == ""
    own = make_tokenizer()
    before = own.chat_template
    assert add_template(own) == "" and own.chat_template == before


def test_batch_is_padded_on_the_right_and_masked() -> None:
    batch = collate([Example([5, 6, 7], [IGNORED, 6, 7], ""), Example([8], [8], "")], 9, torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
