"""What becomes of each row: used, shortened, or left out with its number and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import add_dataset, make_folders, make_settings, make_tokenizer, text_of
from training import rows as module
from training.data import prepare
from training.encoding import Encoder
from training.formats import choose_format
from training.prepared import Record
from training.rows import LeftOut, RowReader, Source

TOKENIZER = make_tokenizer()


def pair(number: int, answer: str = "yes") -> dict[str, Any]:
    return {"question": f"Q{number}", "answer": answer}


def read(tmp_path: Path, rows: list[dict[str, Any]], name: str = "auto", **changes: Any) -> tuple[list[Record], Source]:
    """The records of a file with these rows, and what is said about them."""
    path = add_dataset(make_folders(tmp_path), rows)
    source = Source(path.name, "", "", "")
    settings = make_settings(**changes)
    reader = RowReader(settings, Encoder(TOKENIZER, settings.train_on))
    return list(reader.records(path, 0, choose_format(rows, name), source)), source


def kept_text(record: Record) -> str:
    return text_of(TOKENIZER, list(record.input_ids[: record.kept]))


def test_dropped_rows_are_counted_with_number_and_reason(tmp_path: Path) -> None:
    rows = [pair(1), pair(2, ""), {"question": "Q"}, pair(4, "x" * 600), pair(5), {"question": [], "answer": "a"}]
    records, source = read(tmp_path, rows)
    assert [r.row for r in records if r.kept] == [1, 5]
    assert source.rows_read == 6
    assert source.dropped[:3] == [
        LeftOut(2, "'answer' is missing or empty"),
        LeftOut(3, "'answer' is missing or empty"),
        LeftOut(4, "longer than the cutoff of 512 tokens"),
    ]
    assert [left_out.row for left_out in source.dropped] == [2, 3, 4, 6]
    assert source.empty_answers == [2, 3]
    assert source.summary().startswith(
        "4 of 6 rows of pairs.json were dropped: 'answer' is missing or empty (rows 2, 3); "
        "longer than the cutoff of 512 tokens (row 4)"
    )


def test_dropped_row_over_the_cutoff_is_still_there_to_be_shown(tmp_path: Path) -> None:
    (record,), _ = read(tmp_path, [pair(1, "x" * 600)])
    assert record.kept == 0 and len(record.input_ids) > 600 and "x" * 600 in record.text


def test_cut_rows_are_counted_and_keep_their_beginning(tmp_path: Path) -> None:
    rows = [pair(1), pair(2, "abc" * 200), {"question": "x" * 600, "answer": "never reached"}]
    records, source = read(tmp_path, rows, too_long="cut its end", cutoff_length=64)
    assert source.cut == [LeftOut(2, "longer than the cutoff of 64 tokens")]
    assert source.dropped == [LeftOut(3, "nothing to learn before the cutoff of 64 tokens")]
    assert [r.kept for r in records[1:]] == [64, 0]
    assert "abcabc" in kept_text(records[1]) and len(records[1].input_ids) > 600
    assert "1 of 3 rows of pairs.json was cut" in source.summary()


def test_cut_just_before_the_answer_leaves_nothing_to_learn(tmp_path: Path) -> None:
    (whole,), _ = read(tmp_path, [pair(1)])
    border = whole.trained[0][0]
    for cutoff, kept in ((border, 0), (border + 1, border + 1)):
        (record,), source = read(tmp_path, [pair(1)], too_long="cut its end", cutoff_length=cutoff)
        assert record.kept == kept and bool(source.cut) == bool(kept)


@pytest.mark.parametrize("too_long", ["drop the example", "cut its end", "keep the last turns"])
def test_row_of_exactly_the_cutoff_stays(tmp_path: Path, too_long: str) -> None:
    (whole,), _ = read(tmp_path, [pair(1)])
    length = len(whole.input_ids)
    (record,), source = read(tmp_path, [pair(1)], cutoff_length=length, too_long=too_long)
    assert record.kept == length and record.reason == ""
    (record,), source = read(tmp_path, [pair(1)], cutoff_length=length - 1, too_long=too_long)
    assert len(source.cut) + len(source.dropped) == 1


def chat(*turns: str, system: str | None = None) -> dict[str, Any]:
    """A conversation of questions and answers in turn."""
    found = [{"role": "user" if n % 2 == 0 else "assistant", "content": turn} for n, turn in enumerate(turns)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *found]}


def last_turns(tmp_path: Path, row: dict[str, Any], cutoff: int, **changes: Any) -> tuple[Record, Source]:
    (record,), source = read(tmp_path, [row], cutoff_length=cutoff, too_long="keep the last turns", **changes)
    return record, source


def length_of(tmp_path: Path, row: dict[str, Any]) -> int:
    return len(read(tmp_path, [row])[0][0].input_ids)


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_last_turns_that_fit_are_kept_with_the_system_prompt(tmp_path: Path, system: str | None) -> None:
    row = chat("first", "one", "second", "two", "third", "three", system=system)
    cutoff = length_of(tmp_path, chat("second", "two", "third", "three", system=system))
    record, source = last_turns(tmp_path, row, cutoff)
    assert record.kept == len(record.input_ids) == cutoff
    assert ("Be kind." in record.text) == bool(system)
    assert "first" not in record.text and "one" not in record.text and "second" in record.text
    trained = [text_of(TOKENIZER, list(record.input_ids[start:end])) for start, end in record.trained]
    assert trained == ["two<|im_end|>", "three<|im_end|>"]
    assert source.cut == [LeftOut(1, f"longer than the cutoff of {cutoff} tokens: the first 2 turns were left out")]
    shorter, source = last_turns(tmp_path, row, cutoff - 1)
    assert "second" not in shorter.text and "third" in shorter.text
    assert "the first 4 turns were left out" in source.cut[0].reason


def test_conversation_of_very_many_turns_is_no_hard_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, given: tried.append(len(given)) or encode(self, given))
    row = chat(*(f"turn {n}" for n in range(200)))
    for cutoff in (64, 1000, 3000):
        record, source = last_turns(tmp_path, row, cutoff)
        left_out = int(source.cut[0].reason.split("the first ")[1].split()[0])
        assert record.text.startswith(f"<|im_start|>user\nturn {left_out}<")
        # One question more would not have fitted.
        more = length_of(tmp_path, chat(*(f"turn {n}" for n in range(left_out - 2, 200))))
        assert record.kept <= cutoff < more
    assert sum(tried) < 40


def test_last_turns_that_do_not_fit_are_dropped(tmp_path: Path) -> None:
    record, source = last_turns(tmp_path, chat("first", "one", "second", "x" * 100), 64)
    assert record.kept == 0
    assert source.dropped == [LeftOut(1, "longer than the cutoff of 64 tokens, its last turns alone too")]


def test_last_turns_begin_with_a_question_and_hold_an_answer(tmp_path: Path) -> None:
    """A question left without its answer at the end teaches nothing."""
    row = {"messages": [*chat("first", "one" * 50, "last question")["messages"]]}
    record, source = last_turns(tmp_path, row, 64)
    assert record.kept == 0 and source.dropped
    # An answer that comes first has no question: it goes before the question does.
    row = {"messages": [{"role": "assistant", "content": "Hello " * 9}, *chat("first", "one")["messages"]]}
    record, _ = last_turns(tmp_path, row, length_of(tmp_path, chat("first", "one")))
    assert "Hello" not in record.text and "one" in record.text


def test_texts_have_no_turns_to_leave_out(tmp_path: Path) -> None:
    record, source = last_turns(tmp_path, {"text": "x" * 100}, 64)
    assert record.kept == 0 and source.dropped == [LeftOut(1, "longer than the cutoff of 64 tokens")]


def test_last_answer_only(tmp_path: Path) -> None:
    (record,), _ = read(tmp_path, [chat("first", "one", "second", "two")], train_on="last answer")
    assert [text_of(TOKENIZER, list(record.input_ids[a:b])) for a, b in record.trained] == ["two<|im_end|>"]


# Copies


def test_copies_are_named_and_dropped_only_when_asked(tmp_path: Path) -> None:
    rows = [pair(1), pair(2), pair(1), pair(1), pair(2, "no")]
    records, source = read(tmp_path, rows)
    copies = [LeftOut(3, "the same as row 1 of pairs.json"), LeftOut(4, "the same as row 1 of pairs.json")]
    assert source.duplicates == copies and source.dropped == [] and all(r.kept for r in records)
    records, source = read(tmp_path, rows, drop_duplicates=True)
    assert source.dropped == copies and source.duplicates == []
    assert [r.row for r in records if r.kept] == [1, 2, 5]


def test_copies_in_another_file_are_found(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    add_dataset(folders, [pair(1)], "a.json")
    add_dataset(folders, [pair(2), pair(1)], "b.json")
    settings = make_settings(dataset=["a.json", "b.json"], held_out_share=0, drop_duplicates=True)
    data = prepare(settings, folders, TOKENIZER)
    assert data.sources[1].dropped == [LeftOut(2, "the same as row 1 of a.json")]
    assert len(data.train) == 2


def test_rows_that_cannot_be_used_are_nobodys_copies(tmp_path: Path) -> None:
    _, source = read(tmp_path, [pair(1, ""), pair(2, ""), pair(3)], drop_duplicates=True)
    assert source.duplicates == [] and [left_out.row for left_out in source.dropped] == [1, 2]


def test_copy_of_a_dropped_row_is_dropped_for_the_same_reason(tmp_path: Path) -> None:
    _, source = read(tmp_path, [pair(1, "x" * 600), pair(1, "x" * 600)], drop_duplicates=True)
    assert {left_out.reason for left_out in source.dropped} == {"longer than the cutoff of 512 tokens"}


# Whatever a row holds


def test_row_with_nothing_to_predict_is_dropped(tmp_path: Path) -> None:
    bare = make_tokenizer()
    bare.eos_token = None
    path = add_dataset(make_folders(tmp_path), [{"text": "x"}, {"text": "more"}])
    source = Source(path.name, "", "", "")
    reader = RowReader(make_settings(), Encoder(bare, "answers"))
    records = list(reader.records(path, 0, choose_format([{"text": "x"}]), source))
    assert [r.kept for r in records] == [0, 4]
    assert source.dropped == [LeftOut(1, "too short to learn anything from")]


def test_rows_keep_their_numbers_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 3)
    records, source = read(tmp_path, [pair(n, "" if n % 4 == 0 else "yes") for n in range(1, 12)])
    assert [r.row for r in records] == list(range(1, 12)) and source.rows_read == 11
    assert [left_out.row for left_out in source.dropped] == [4, 8]
    assert all(f"Q{r.row}\n" in r.text or f"Q{r.row}<" in r.text for r in records if r.kept)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "\ud83d", "content": "x"}]},
        {"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "x"}]},
        {"\ud83d": 1},
        {"messages": "\ud83d"},
    ],
)
def test_broken_letters_in_a_reason_do_no_harm(tmp_path: Path, row: dict[str, Any]) -> None:
    """The reason is stored as UTF-8, which has no letter for half an emoji."""
    folders = make_folders(tmp_path)
    add_dataset(folders, [chat("Q", "A"), row])
    data = prepare(make_settings(held_out_share=0), folders, TOKENIZER)
    assert [left_out.row for left_out in data.sources[0].dropped] == [2]
    assert data.records[1].reason


def test_long_lists_of_rows_are_shortened_in_the_summary() -> None:
    source = Source("a.json", "", "", "text", 9, dropped=[LeftOut(n, "why") for n in range(1, 8)])
    assert source.summary() == "7 of 9 rows of a.json were dropped: why (rows 1, 2, 3, 4, 5, ...)."


def test_most_frequent_reasons_come_first_in_the_summary() -> None:
    dropped = [LeftOut(1, "rare"), *(LeftOut(n, "often") for n in (2, 3)), *(LeftOut(n, f"r{n}") for n in range(4, 9))]
    said = Source("a.json", "", "", "text", 9, dropped=dropped).summary()
    assert said.startswith("8 of 9 rows of a.json were dropped: often (rows 2, 3); rare (row 1)")
    assert said.endswith("; and more.") and "r8" not in said
