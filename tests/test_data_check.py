"""A data check is the preparation itself, to be looked at: record by record, by row, by text, by what becomes of it."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training.data import prepare, set_template
from training.data_check import DataCheck, check_data
from training.errors import UserError
from training.model import load_tokenizer
from training.paths import Folders
from training.rows import LeftOut
from training.token_view import Show, TokenKind

LONG = "sea " * 30


def pair(question: str, answer: str = "yes") -> dict[str, Any]:
    return {"question": question, "answer": answer}


# What becomes of each row: used, without an answer, too long, used, a copy of the first, used.
ROWS = [pair("One"), pair("Two", ""), pair("Three", LONG), pair("Four (a.b)"), pair("One"), pair("Ärger", "Straße")]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = make_folders(tmp_path)
    add_base(made)
    add_dataset(made, ROWS)
    return made


def check(folders: Folders, **changes: Any) -> DataCheck:
    return check_data(make_settings(**({"held_out_share": 0, "cutoff_length": 90} | changes)), folders)


def numbers(found: DataCheck, which: Show) -> list[int]:
    return [int(number) for number in found.numbers(which)]


def shown_text(found: DataCheck, number: int, *kinds: TokenKind) -> str:
    return "".join(token.text for token in found.show(number).tokens if not kinds or token.kind in kinds)


def test_records_of_each_kind(folders: Folders) -> None:
    found = check(folders, drop_duplicates=True)
    assert numbers(found, Show.ALL) == [0, 1, 2, 3, 4, 5]
    assert numbers(found, Show.USED) == [0, 3, 5]
    assert numbers(found, Show.DROPPED) == [1, 2, 4]
    assert numbers(found, Show.CUT) == numbers(found, Show.HELD_OUT) == []
    cut = check(folders, too_long="cut its end")
    assert numbers(cut, Show.CUT) == [2]
    assert numbers(cut, Show.USED) == [0, 2, 3, 4, 5], "a cut one is used, and a copy unless they are unwanted"
    assert numbers(cut, Show.DROPPED) == [1]


def test_held_out_records_are_those_that_training_holds_out(folders: Folders) -> None:
    found = check(folders, held_out_share=0.3)
    settings = make_settings(held_out_share=0.3, cutoff_length=90)
    tokenizer = load_tokenizer(str(folders.models / "tiny"))
    set_template(tokenizer, settings, folders)
    prepared = prepare(settings, folders, tokenizer)
    held_out = numbers(found, Show.HELD_OUT)
    assert held_out == prepared.evaluation.numbers.tolist() and held_out
    assert [n for n in range(6) if found.show(n).held_out] == held_out
    assert set(held_out) < set(numbers(found, Show.USED))


def test_with_an_evaluation_file_nothing_is_held_out(folders: Folders) -> None:
    add_dataset(folders, [pair("Else"), pair("Other")], "eval.json")
    found = check(folders, held_out_share=0.3, evaluation_file="eval.json")
    assert numbers(found, Show.HELD_OUT) == []
    assert (found.report.train_examples, found.report.held_out_examples) == (4, 2)
    assert numbers(found, Show.ALL) == [0, 1, 2, 3, 4, 5], "the evaluation file's are counted, not paged through"


def test_a_record_is_shown_with_its_fate_and_its_tokens(folders: Folders) -> None:
    found = check(folders, too_long="cut its end")
    used, empty, cut = (found.show(number) for number in (0, 1, 2))
    assert (used.file, used.record.row, used.record.reason, used.held_out) == ("pairs.json", 1, "", False)
    assert shown_text(found, 0) == used.record.text
    assert shown_text(found, 0, TokenKind.TRAINED) == "yes<|im_end|>"
    assert (empty.record.row, empty.record.kept, empty.tokens) == (2, 0, [])
    assert cut.record.reason == "longer than the cutoff of 90 tokens"
    assert sum(len(token.ids) for token in cut.tokens if token.kind is not TokenKind.CUT_OFF) == 90
    assert shown_text(found, 2) == cut.record.text, "what is cut off is shown too"


def test_template_is_the_one_of_the_settings_and_told(folders: Folders) -> None:
    assert check(folders).notes == []
    found = check(folders, chat_template="zephyr", train_on="everything")
    assert len(found.notes) == 1 and "zephyr" in found.notes[0]
    assert "<|assistant|>" in shown_text(found, 0, TokenKind.TRAINED)


def test_a_cutoff_beyond_what_the_model_reads_is_told(folders: Folders) -> None:
    assert "tiny reads at most 512 tokens" in check(folders, cutoff_length=513).notes[0]
    assert check(folders, cutoff_length=512).notes == []
    assert check(folders, cutoff_length=512).report.lost_at[-1].cutoff == 512


def test_lengths_are_those_before_turns_were_left_out(folders: Folders) -> None:
    turns = [{"role": role, "content": "one two three"} for _ in range(4) for role in ("user", "assistant")]
    add_dataset(folders, [{"messages": turns}])
    report = check(folders, too_long="keep the last turns").report
    assert (report.cut, report.train_examples) == (1, 1) and report.tokens <= 90 < report.longest
    assert report.bars[-1].start <= report.longest < report.bars[-1].end


def test_row_of_one_of_several_files(folders: Folders) -> None:
    add_dataset(folders, [pair("Else"), pair("Other")], "more.json")
    found = check(folders, dataset=["pairs.json", "more.json"])
    assert [found.row(row) for row in (1, 6, 7, 0, -1)] == [0, 5, None, None, None]
    assert [found.row(row, 1) for row in (1, 2, 3)] == [6, 7, None]
    assert found.row(1, 2) is None
    assert found.show(7).file == "more.json" and "Other" in found.show(7).record.text


def test_row_of_a_text_is_its_document(folders: Folders) -> None:
    (folders.datasets / "book.txt").write_text("the first " * 20 + "\n\n\n" + "and the second")
    raw = {"raw_text": ["book.txt"], "overlap_length": 0, "minimum_length": 0, "cutoff_length": 64}
    found = check(folders, dataset=[], **raw)
    second = found.row(2)
    assert second is not None and second > 1, "the first document makes several chunks"
    assert found.row(1) == 0
    assert found.show(second).record.text == "and the second" and found.show(1).record.character == 64
    assert found.report.is_raw_text and found.report.rows_read == 2


@pytest.mark.parametrize(
    ("text", "row"),
    [("one", 1), ("THREE", 3), ("ärger", 6), ("STRASSE", None), ("(A.B)", 4), ("axb", None), ("yes<|IM_END|>", 1)],
)
def test_search_is_for_the_text_as_it_stands_in_whatever_case(folders: Folders, text: str, row: int | None) -> None:
    found = check(folders).search(text)
    assert (None if found is None else found + 1) == row


def test_search_goes_on_behind_the_last_and_begins_anew_at_the_end(folders: Folders) -> None:
    found = check(folders)
    at, seen = -1, []
    for _ in range(5):
        next_hit = found.search("user", at)
        assert next_hit is not None
        seen.append(at := next_hit)
    assert seen == [0, 2, 3, 4, 5], "the second row could not be read, so it has no text"
    assert found.search("user", 5) == 0
    assert found.search("Three", 2) == 2, "the only one is found again"
    assert found.search("Three", 3) == 2
    assert found.search("nowhere", 3) is None


def test_left_out_rows_as_a_table(folders: Folders) -> None:
    odd = 'a, "b" <c>.json'
    add_dataset(folders, [pair("One"), pair("None", "")], odd)
    found = check(folders, dataset=["pairs.json", odd], too_long="cut its end")
    head, *rows = list(csv.reader(io.StringIO(found.left_out_csv())))
    assert head == ["file", "row", "what", "reason"]
    assert rows == [
        ["pairs.json", "2", "dropped", "'answer' is missing or empty"],
        ["pairs.json", "3", "cut", "longer than the cutoff of 90 tokens"],
        ["pairs.json", "5", "duplicate", "the same as row 1 of pairs.json"],
        [odd, "2", "dropped", "'answer' is missing or empty"],
        [odd, "1", "duplicate", "the same as row 1 of pairs.json"],
    ]


def test_data_of_which_nothing_can_be_used_is_shown_too(folders: Folders) -> None:
    add_dataset(folders, [pair("One", "")])
    found = check(folders)
    assert found.report.total_steps == 0 and found.report.sources[0].dropped == [
        LeftOut(1, "'answer' is missing or empty")
    ]
    assert numbers(found, Show.DROPPED) == [0] and numbers(found, Show.USED) == []
    (folders.datasets / "blank.txt").write_text("---\n---")
    found = check(folders, dataset=[], raw_text=["blank.txt"], hard_cut_string="---", overlap_length=8)
    assert numbers(found, Show.ALL) == [] and found.search("a") is None and found.row(1) is None
    assert found.left_out_csv().splitlines() == ["file,row,what,reason"]


def test_what_cannot_be_read_is_said(folders: Folders) -> None:
    with pytest.raises(UserError, match=r"no file or folder 'none\.json'"):
        check(folders, dataset=["none.json"])
    with pytest.raises(UserError, match="no chat template 'nothing'"):
        check(folders, chat_template="nothing")


def test_records_are_counted_while_they_are_prepared(folders: Folders) -> None:
    add_dataset(folders, [pair(f"Q{n}") for n in range(1100)])
    told: list[int] = []
    check_data(make_settings(), folders, told.append)
    assert sum(told) == 1000
