"""From files to examples: nothing lost without a word, nothing held out that is also trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import CHATML, add_dataset, make_folders, make_settings, make_tokenizer, text_of
from training.data import PreparedData, inspect, prepare, set_template
from training.errors import UserError
from training.prepared import Example
from training.rows import LeftOut

TOKENIZER = make_tokenizer()


def pair(number: int, answer: str = "yes") -> dict[str, Any]:
    return {"question": f"Q{number}", "answer": answer}


def prepared(root: Path, rows: Any, **changes: Any) -> PreparedData:
    folders = make_folders(root)
    add_dataset(folders, rows)
    return prepare(make_settings(**({"held_out_share": 0} | changes)), folders, TOKENIZER)


def sources_of(examples: Iterable[Example]) -> list[str]:
    return [example.source for example in examples]


def ids_of(examples: Iterable[Example]) -> list[tuple[int, ...]]:
    return [tuple(example.input_ids) for example in examples]


def text_of_all(examples: Iterable[Example]) -> str:
    return "".join(text_of(TOKENIZER, example.input_ids) for example in examples)


def test_rows_become_examples_in_their_order(tmp_path: Path) -> None:
    data = prepared(tmp_path, [pair(1), pair(2)])
    assert sources_of(data.train) == ["row 1", "row 2"]
    assert "Q2" in text_of(TOKENIZER, data.train[1].input_ids)
    assert len(data.evaluation) == 0
    source = data.sources[0]
    assert (source.file, source.format, source.rows_read) == ("pairs.json", "question-answer", 2)
    assert source.sha256 == hashlib.sha256((tmp_path / "datasets" / "pairs.json").read_bytes()).hexdigest()
    assert source.summary() == ""


def test_text_rows_are_trained_whole(tmp_path: Path) -> None:
    example = prepared(tmp_path, [{"text": "plain"}]).train[0]
    assert text_of(TOKENIZER, example.labels) == "plain<|im_end|>"


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Nothing is left to train on. 1 of 1 rows .* \(row 1\)"):
        prepared(tmp_path, [pair(1, "")])
    with pytest.raises(UserError, match="auto finds it"):
        prepared(tmp_path, [pair(1)], data_format="alpaca")
    with pytest.raises(UserError, match="Raise the cutoff length"):
        prepared(tmp_path, [pair(1, "x" * 100), pair(2, "x" * 200)], cutoff_length=64)
    with pytest.raises(UserError, match=r"^pairs.json: No row has the columns"):
        prepared(tmp_path, [{"frage": "Q"}])


def test_inspecting_shows_what_cannot_be_trained(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    add_dataset(folders, [pair(1, "")])
    data = inspect(make_settings(), folders, TOKENIZER)
    assert len(data.train) == len(data.evaluation) == 0
    assert data.sources[0].dropped == [LeftOut(1, "'answer' is missing or empty")]
    assert data.records[0].reason == "'answer' is missing or empty"


def test_broken_characters_cost_one_row_only(tmp_path: Path) -> None:
    data = prepared(tmp_path, [pair(1, "\ud83d"), pair(2)])
    assert sources_of(data.train) == ["row 2"]


def test_several_files_and_a_folder_in_their_order(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    (folders.datasets / "more").mkdir()
    add_dataset(folders, [pair(1), pair(2, "")], "b.json")
    add_dataset(folders, [{"instruction": "I", "output": "O"}], "more/z.json")
    add_dataset(folders, [{"text": "plain"}], "more/y.json")
    data = prepare(make_settings(dataset=["b.json", "more"], held_out_share=0), folders, TOKENIZER)
    assert [(s.file, s.format) for s in data.sources] == [
        ("b.json", "question-answer"),
        ("y.json", "text"),
        ("z.json", "alpaca"),
    ]
    texts = [text_of(TOKENIZER, e.input_ids) for e in data.train]
    assert "Q1" in texts[0] and texts[1] == "plain<|im_end|>" and "O<|im_end|>" in texts[2]
    assert data.records.column("file").tolist() == [0, 0, 1, 2]
    assert data.records.column("row").tolist() == [1, 2, 1, 1]


def test_work_is_counted_and_may_be_ended(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    add_dataset(folders, [pair(n) for n in range(1200)])
    told: list[int] = []
    settings = make_settings()
    prepare(settings, folders, TOKENIZER, told.append)
    assert sum(told) == 1000
    prepare(settings, folders, TOKENIZER, told.append)
    assert sum(told) == 1000  # what was prepared before is not counted again


# Holding out


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.floats(0.01, 0.5), st.integers(0, 9))
def test_equal_rows_stay_on_one_side(numbers: list[int], share: float, seed: int) -> None:
    rows = [pair(number) for number in numbers]
    with TemporaryDirectory() as folder:
        data = prepared(Path(folder), rows, held_out_share=share, seed=seed)
        train, evaluation = list(data.train), list(data.evaluation)
    assert sorted(sources_of([*train, *evaluation])) == sorted(f"row {n}" for n in range(1, len(rows) + 1))
    assert not set(ids_of(train)) & set(ids_of(evaluation))
    assert train
    assert bool(evaluation) == (len(set(numbers)) > 1)


def test_hold_out_is_drawn_by_the_seed(tmp_path: Path) -> None:
    def held_out(seed: int) -> list[str]:
        data = prepared(tmp_path, [pair(n) for n in range(100)], held_out_share=0.1, seed=seed)
        assert (len(data.train), len(data.evaluation)) == (90, 10)
        return sources_of(data.evaluation)

    assert held_out(7) == held_out(7) != held_out(8)


def test_same_question_with_other_tokens_trained_is_another_row(tmp_path: Path) -> None:
    """Equal ids of which others are trained: neither is a copy, so that the mask of both is kept."""
    messages = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"))]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False).removesuffix("<|im_end|>\n")
    folders = make_folders(tmp_path)
    add_dataset(folders, [{"text": text}], "a.json")
    add_dataset(folders, [{"messages": messages}], "b.json")
    data = prepare(make_settings(dataset=["a.json", "b.json"], held_out_share=0), folders, TOKENIZER)
    assert all(source.duplicates == [] for source in data.sources)


def test_held_out_rows_are_no_longer_trained(tmp_path: Path) -> None:
    data = prepared(tmp_path, [pair(n) for n in range(10)], held_out_share=0.3)
    assert (len(data.train), len(data.evaluation)) == (7, 3)
    assert not set(sources_of(data.train)) & set(sources_of(data.evaluation))


def test_only_rows_that_are_used_count_for_the_share(tmp_path: Path) -> None:
    data = prepared(tmp_path, [pair(n, "" if n % 2 else "yes") for n in range(40)], held_out_share=0.5)
    assert (len(data.train), len(data.evaluation)) == (10, 10)


def test_evaluation_file_takes_the_place_of_the_held_out_share(tmp_path: Path) -> None:
    add_dataset(make_folders(tmp_path), [pair(90), pair(91, "")], "eval.json")
    data = prepared(tmp_path, [pair(n) for n in range(10)], held_out_share=0.3, evaluation_file="eval.json")
    assert (len(data.train), len(data.evaluation)) == (10, 1)
    assert [s.file for s in data.all_sources] == ["pairs.json", "eval.json"]
    assert data.evaluation_sources[0].dropped[0].row == 2


def test_evaluation_file_of_which_nothing_can_be_used(tmp_path: Path) -> None:
    add_dataset(make_folders(tmp_path), [pair(91, "")], "eval.json")
    with pytest.raises(UserError, match=r"^Evaluation file: Nothing is left .* eval.json"):
        prepared(tmp_path, [pair(1)], evaluation_file="eval.json")


# Raw text


def raw(root: Path, text: str, **changes: Any) -> PreparedData:
    folders = make_folders(root)
    (folders.datasets / "book.txt").write_text(text, encoding="utf-8")
    values = {"dataset": [], "raw_text": ["book.txt"], "cutoff_length": 32, "overlap_length": 8, "minimum_length": 0}
    return prepare(make_settings(**(values | changes)), folders, TOKENIZER)


def test_raw_text_holds_out_whole_documents(tmp_path: Path) -> None:
    data = raw(tmp_path, "\n\n\n".join(f"document {n}" for n in range(10)), held_out_share=0.2)
    assert (len(data.train), len(data.evaluation)) == (8, 2)
    assert data.sources[0].format == "raw text" and data.sources[0].rows_read == 10


def test_raw_text_holds_out_the_tail_of_the_only_document(tmp_path: Path) -> None:
    words = [f"word{n}" for n in range(100)]
    data = raw(tmp_path, " ".join(words), held_out_share=0.1)
    trained, held_out = text_of_all(data.train), text_of_all(data.evaluation)
    assert "word0 " in trained and "word99" in held_out
    assert "word99" not in trained and "word0 " not in held_out
    assert "<|im_end|>" not in trained and held_out.endswith("<|im_end|>")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["one two", "three", "a longer text\nof lines", "x" * 70]), min_size=1, max_size=9))
def test_equal_documents_stay_on_one_side(documents: list[str]) -> None:
    with TemporaryDirectory() as folder:
        data = raw(Path(folder), "\n\n\n".join(documents), held_out_share=0.3, overlap_length=0)
        train, evaluation = text_of_all(data.train), text_of_all(data.evaluation)
        sides = {(r.row, r.held_out) for r in (data.records[n] for n in range(len(data.records)))}
    assert train
    assert sorted((train + evaluation).replace("<|im_end|>", "")) == sorted("".join(documents))
    divided = {row for row, _ in sides if {(row, True), (row, False)} <= sides}
    by_text: dict[str, set[bool]] = {}
    for row, side in sides:
        by_text.setdefault(documents[row - 1], set()).add(side)
    # The one document that may be divided has no equal.
    assert all(documents.count(documents[row - 1]) == 1 for row in divided) and len(divided) <= 1
    assert all(len(found) == 1 for text, found in by_text.items() if documents.count(text) > 1)


def test_short_documents_are_dropped_and_counted(tmp_path: Path) -> None:
    text = "17\n\n\nA document that is long enough.\n\n\nab"
    data = raw(tmp_path, text, minimum_length=8, held_out_share=0, cutoff_length=16)
    assert data.sources[0].dropped == [
        LeftOut(1, "a document of 3 tokens only"),
        LeftOut(3, "a document of 3 tokens only"),
    ]
    assert "2 of 3 documents of book.txt were dropped" in data.sources[0].summary()
    assert len(data.train) > 1  # the last chunk of a long document may be as short
    assert sources_of(data.train)[:2] == ["document 2, character 5", "document 2, character 13"]


def test_raw_text_of_several_files_and_a_folder(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    (folders.datasets / "books").mkdir()
    for name in ("books/b.txt", "books/a.md", "c.txt"):
        (folders.datasets / name).write_text(f"This is {name}.")
    settings = make_settings(dataset=[], raw_text=["c.txt", "books"], held_out_share=0)
    data = prepare(settings, folders, TOKENIZER)
    assert [s.file for s in data.sources] == ["c.txt", "a.md", "b.txt"]
    assert [text_of(TOKENIZER, e.input_ids) for e in data.train] == [
        f"This is {name}.<|im_end|>" for name in ("c.txt", "books/a.md", "books/b.txt")
    ]


def test_raw_text_with_an_evaluation_file(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "datasets" / "other.txt").write_text("something else")
    data = raw(tmp_path, "word " * 50, evaluation_file="other.txt")
    assert [text_of(TOKENIZER, e.input_ids) for e in data.evaluation] == ["something else<|im_end|>"]
    assert [s.file for s in data.all_sources] == ["book.txt", "other.txt"]


@pytest.mark.parametrize("held_out_share", [0, 0.1])
def test_raw_text_without_a_word_beside_hard_cuts(tmp_path: Path, held_out_share: float) -> None:
    with pytest.raises(UserError, match="Nothing is left to train on"):
        raw(tmp_path, "---\n---", hard_cut_string="---", held_out_share=held_out_share)


# Template


def test_fallback_template_is_given_and_told(tmp_path: Path) -> None:
    tokenizer, folders = make_tokenizer(None), make_folders(tmp_path)
    assert "alpaca" in set_template(tokenizer, make_settings(), folders)
    assert "### Response:" in tokenizer.chat_template
    own = make_tokenizer()
    assert set_template(own, make_settings(), folders) == "" and own.chat_template == CHATML


def test_format_file_brings_its_own_template(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    (folders.formats / "mine.json").write_text('{"question,answer": "Frage: %question%\\nAntwort: %answer%"}')
    tokenizer = make_tokenizer()
    settings = make_settings(data_format="mine.json", held_out_share=0)
    assert "mine.json" in set_template(tokenizer, settings, folders)
    assert "Frage: " in tokenizer.chat_template
    chosen = make_tokenizer()
    set_template(chosen, make_settings(data_format="mine.json", chat_template="chatml"), folders)
    assert "Frage: " not in chosen.chat_template
    raw_text = make_tokenizer()
    set_template(raw_text, make_settings(data_format="mine.json", dataset=[], raw_text=["x.txt"]), folders)
    assert "Frage: " not in raw_text.chat_template
    add_dataset(folders, [pair(1)])
    example = prepare(settings, folders, tokenizer).train[0]
    assert text_of(tokenizer, example.input_ids) == "Frage: Q1\nAntwort: yes<|im_end|>"
    assert text_of(tokenizer, [i for i in example.labels if i >= 0]) == "yes<|im_end|>"


def test_evaluation_rows_that_are_trained_too_are_told(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    add_dataset(folders, [pair(n) for n in range(6)])
    add_dataset(folders, [pair(n) for n in (5, 6, 7)], "eval.json")
    data = prepare(make_settings(evaluation_file="eval.json"), folders, TOKENIZER)
    assert data.also_trained == 1
    assert "1 of 3 evaluation examples are trained on too" in data.warnings()[-1]
