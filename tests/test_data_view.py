"""What a data check looks like: every number in its place, and whatever comes from the user as text."""

from __future__ import annotations

import re
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import make_settings, make_tokenizer
from training.data import PreparedData
from training.data_check import DataCheck, Shown
from training.data_report import Bar, DataReport, LostAt, make_report
from training.prepared import Examples, Record, Records, RecordWriter
from training.rows import LeftOut, Source
from training.token_view import Token, TokenKind, tokens_of
from ui.data_view import example_html, left_out_html, left_out_label, lengths_html, summary_html
from ui.messages import facts_html, news_html, note_html, problems_html

NASTY = "<img src=x onerror=\"alert(1)\"> & <b>'bold'</b>"
TOKENIZER = make_tokenizer()


def assert_is_text(html: str, times: int = 1) -> None:
    """NASTY stands in it so often, each time as text."""
    assert "<img" not in html and "<b>'" not in html
    assert html.count(escape(NASTY)) == times


def data_of(folder: Path, lengths: list[int], *sources: Source) -> PreparedData:
    with RecordWriter(folder / "records.arrow") as writer:
        for row, length in enumerate(lengths, start=1):
            writer.add(Record(0, row, "", [70] * length, [(0, length)], length))
    records = Records.open(folder / "records.arrow")
    numbers = records.column("kept").nonzero()[0]
    return PreparedData(records, Examples(records, numbers), Examples(records, numbers[:0]), list(sources))


def source(name: str = "a.json", **fields: Any) -> Source:
    return Source(name, "", "UTF-8", "alpaca", **({"rows_read": 3} | fields))


def summary(folder: Path, lengths: list[int], *sources: Source, note: str = "", **changes: Any) -> str:
    data = data_of(folder, lengths, *(sources or (source(),)))
    notes = [note] if note else []
    return summary_html(DataCheck(make_settings(**changes), TOKENIZER, notes, data, str(folder)))


def report(folder: Path, lengths: list[int], *sources: Source, **changes: Any) -> DataReport:
    return make_report(data_of(folder, lengths, *sources), make_settings(**changes))


def facts(html: str) -> dict[str, str]:
    return dict(re.findall(r"<div><span>(.*?)</span><b>(.*?)</b></div>", html))


def notes(html: str) -> list[tuple[str, str]]:
    return [
        (level, unescape(text)) for level, text in re.findall(r'graft-note-(\w+)">(.*?)</div>', html, flags=re.DOTALL)
    ]


def test_sentences_are_text() -> None:
    for html in (problems_html([NASTY, "b"]), news_html([NASTY]), note_html(NASTY, "error"), facts_html([(NASTY, "")])):
        assert_is_text(html)
    assert_is_text(facts_html([("a", NASTY)]))
    assert problems_html(["a", "b"]).count("<li>") == 2
    assert news_html(["One.", "Two."]).count("One. Two.") == 1
    assert "graft-note-error" in note_html("a", "error") and "graft-note-info" in note_html("a")


# Summary


def test_summary_names_the_files_and_how_they_are_read(tmp_path: Path) -> None:
    binary = Source("b.parquet", "", "", "messages", rows_read=5)
    html = summary(tmp_path, [5], source(), binary, train_on="last answer", chat_template="zephyr", cutoff_length=2048)
    assert "a.json (alpaca, UTF-8), b.parquet (messages)" in html
    assert "for tiny, cutoff 2,048, template zephyr, training on the last answer" in html
    assert facts(html)["rows read"] == "8"


def test_summary_of_a_text_speaks_of_documents(tmp_path: Path) -> None:
    text = Source("book.txt", "", "UTF-8", "raw text", rows_read=2)
    html = summary(tmp_path, [5, 6], text, dataset=[], raw_text=["book.txt"])
    assert facts(html)["documents"] == "2" and "template" not in html
    assert ">2 pieces of the text are trained on.<" in html


def test_summary_has_the_numbers_of_the_report(tmp_path: Path) -> None:
    left = [LeftOut(1, "why")]
    counted = source(rows_read=1234, dropped=left * 3, cut=left, duplicates=left * 2, empty_answers=[1])
    html = summary(tmp_path, [11] * 30, counted, batch_size=4, epochs=2, warmup=0.5)
    assert facts(html) == {
        "rows read": "1,234",
        "to train on": "30",
        "for evaluation": "0",
        "dropped": "3",
        "cut": "1",
        "duplicates": "2",
        "empty answers": "1",
        "tokens": "330",
        "of them trained": "91%",
        "steps an epoch": "8",
        "steps in all": "16",
        "warm-up steps": "8",
    }
    assert ">30 of 1,234 rows are trained on, 3 rows dropped.<" in html
    assert [level for level, _ in notes(html)] == ["warning"]


def test_summary_leaves_out_troubles_that_are_none(tmp_path: Path) -> None:
    html = summary(tmp_path, [11] * 2, source(rows_read=2))
    assert not {"cut", "duplicates", "empty answers"} & set(facts(html)) and facts(html)["dropped"] == "0"
    assert ">2 of 2 rows are trained on.<" in html
    assert "1 row dropped." in summary(tmp_path, [11], source(dropped=[LeftOut(1, "why")]))
    data = data_of(tmp_path, [11] * 3, source())
    data.train, data.evaluation = Examples(data.records, np.arange(1)), Examples(data.records, np.arange(1, 3))
    html = summary_html(DataCheck(make_settings(), TOKENIZER, [], data, str(tmp_path)))
    assert ">1 of 3 rows are trained on, 2 are kept for evaluation.<" in html


@pytest.mark.parametrize(
    ("lengths", "changes", "level", "says"),
    [
        ([], {}, "error", "Nothing is left to train on."),
        ([5], {"epochs": 1}, "warning", "This makes only 1 step, so"),
        ([5] * 8, {"epochs": 2}, "warning", "This makes only 4 steps, so"),
        ([5] * 40, {"epochs": 1, "warmup": 7}, "warning", "The warm-up takes more than half"),
        ([5] * 40, {"epochs": 1}, "", ""),
    ],
)
def test_summary_warns(tmp_path: Path, lengths: list[int], changes: dict[str, Any], level: str, says: str) -> None:
    said = notes(summary(tmp_path, lengths, **changes))
    assert len(said) == bool(says)
    assert not said or (said[0][0] == level and says in said[0][1])


def test_summary_shows_what_comes_from_the_user_as_text(tmp_path: Path) -> None:
    assert_is_text(summary(tmp_path, [5], source(NASTY)))
    assert_is_text(summary(tmp_path, [5], source(), note=NASTY))
    assert_is_text(summary(tmp_path, [5], source(), base_model=NASTY))
    assert_is_text(summary(tmp_path, [5], source(), chat_template=NASTY))
    assert_is_text(summary(tmp_path, [5], source(dropped=[LeftOut(1, f"no column {NASTY}")])))


# Lengths


def test_histogram_has_a_bar_for_each_and_a_line_at_the_cutoff(tmp_path: Path) -> None:
    made = report(tmp_path, [10] * 4 + [50, 100], cutoff_length=60)
    html = lengths_html(made)
    assert re.findall(r"height:([\d.]+)%", html) == [f"{100 * bar.count / 4:.1f}" for bar in made.bars]
    assert html.count('class="over"') == sum(bar.start >= 60 for bar in made.bars) > 0
    assert f"left:{100 * 60 / made.bars[-1].end:.2f}%" in html and "cutoff 60" in html
    assert "4 of 8 to 11 tokens" in html and "<span>100</span>" in html
    assert "cutoff 512" not in lengths_html(report(tmp_path, [10], cutoff_length=512)), "the line would lie outside"
    assert lengths_html(report(tmp_path, [])) == ""


def test_cutoffs_can_be_chosen_where_they_make_a_difference(tmp_path: Path) -> None:
    html = lengths_html(report(tmp_path, [100] * 199 + [300], cutoff_length=200))
    buttons = re.findall(r'data-cutoff="(\d+)" class="(\w*)".*?<span>(.*?) over</span>', html)
    assert buttons == [
        ("128", "", "under 1%"),
        ("200", "chosen", "under 1%"),
        ("256", "", "under 1%"),
        ("512", "", "none"),
    ]
    assert "25% over" in lengths_html(report(tmp_path, [100] * 3 + [300], cutoff_length=200))
    text = Source("book.txt", "", "UTF-8", "raw text")
    html = lengths_html(report(tmp_path, [5], text, dataset=[], raw_text=["book.txt"]))
    assert "data-cutoff" not in html and "Lengths of the chunks" in html


# Examples


def shown(text: str = "ab", **fields: Any) -> Shown:
    ids = TOKENIZER(text)["input_ids"]
    values: dict[str, Any] = {"input_ids": ids, "trained": [(1, len(ids))], "kept": len(ids)}
    held_out, file = fields.pop("held_out", False), fields.pop("file", "a.json")
    record = Record(0, 1_234, text, **(values | fields))
    return Shown(record, file, tokens_of(TOKENIZER, record, 512), held_out)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, ["row 1,234 of a.json", ">used for training<", "2 tokens, 1 trained"]),
        ({"held_out": True}, [">held out for evaluation<"]),
        ({"kept": 1, "reason": "too long"}, [">used for training, but too long<", "2 tokens, 0 trained"]),
        ({"kept": 0, "reason": "a copy"}, ['class="dropped">dropped: a copy<']),
        ({"input_ids": [], "trained": [], "kept": 0, "reason": "no answer"}, ["no tokens", "dropped: no answer"]),
        ({"character": 5_000}, ["document 1,234 of a.json, from character 5,000"]),
    ],
)
def test_example_says_where_it_is_from_and_what_becomes_of_it(fields: dict[str, Any], says: list[str]) -> None:
    html = example_html(shown(**fields))
    for text in says:
        assert text in html


def test_example_colours_its_tokens() -> None:
    html = example_html(shown("abc", kept=2))
    boxes = re.findall(r'<span class="token (\w+)" title="(.*?)">(.*?)</span>', html)
    a, b, c = TOKENIZER("abc")["input_ids"]
    assert boxes == [
        ("context", f"context · id {a}", "a"),
        ("trained", f"trained · id {b}", "b"),
        ("cut", f"cut off · id {c}", "c"),
    ]


def test_example_shows_new_lines_tabs_and_letters_of_several_tokens() -> None:
    html = example_html(shown("a\n\t😀"))
    for text in (">a<", "><u>&crarr;</u>\n<", "><u>&rarr;</u>\t<", ">😀<"):
        assert text in html
    nothing = Shown(Record(0, 1, "", [1], kept=1), "a.json", [Token("", (1,), TokenKind.CONTEXT)], False)
    assert ">&middot;<" in example_html(nothing)


def test_example_shows_what_comes_from_the_user_as_text() -> None:
    html = example_html(shown(NASTY))
    assert "<img" not in html and "<b>" not in html
    assert unescape("".join(re.findall(r'title="[^"]*">(.*?)</span>', html))) == NASTY
    whole = Shown(Record(0, 1, NASTY, [1], kept=1), "a.json", [Token(NASTY, (1,), TokenKind.TRAINED)], False)
    assert_is_text(example_html(whole))
    assert_is_text(example_html(shown(file=NASTY)))
    assert_is_text(example_html(shown(kept=0, reason=NASTY)))


def test_a_row_that_cannot_be_used_is_shown_as_it_stands() -> None:
    row = Shown(Record(0, 1, NASTY, reason="no answer"), "a.json", [], False)
    assert_is_text(example_html(row))


def test_long_example_is_shown_in_part() -> None:
    html = example_html(shown("a" * 3_001))
    assert html.count(">a</span>") == 3_000 and "The first 3,000 tokens are shown." in html
    html = example_html(shown("a" * 3_000))
    assert html.count(">a</span>") == 3_000 and "are shown" not in html


# Rows left out


def test_rows_left_out_lead_to_their_records(tmp_path: Path) -> None:
    first = source("a.json", dropped=[LeftOut(1_000, "why")], cut=[LeftOut(2, "long")])
    second = source("b.json", duplicates=[LeftOut(3, "the same")])
    html = left_out_html(report(tmp_path, [5], first, second))
    assert re.findall(r'data-row="(\d+)" data-file="(\d+)">([\d,]+)<', html) == [
        ("1000", "0", "1,000"),
        ("2", "0", "2"),
        ("3", "1", "3"),
    ]
    assert re.findall(r"<td>(\w[\w .]*)</td>", html) == [
        *("a.json", "dropped", "why"),
        *("a.json", "cut", "long"),
        *("b.json", "duplicate", "the same"),
    ]


def test_rows_left_out_are_text_and_not_too_many(tmp_path: Path) -> None:
    assert_is_text(left_out_html(report(tmp_path, [5], source(NASTY, dropped=[LeftOut(1, NASTY)]))), times=2)
    many = [LeftOut(row, "why") for row in range(1, 204)]
    html = left_out_html(report(tmp_path, [5], source(dropped=many)))
    assert html.count("data-row=") == 200 and "and 3 more in the file to download" in html
    assert "more in the file" not in left_out_html(report(tmp_path, [5], source(dropped=many[:200])))


def test_nothing_left_out(tmp_path: Path) -> None:
    assert left_out_label(report(tmp_path, [5], source())) == "Rows to look at: none"
    left = [LeftOut(1, "why")] * 1_000
    some = report(tmp_path, [5], source(dropped=left, duplicates=left[:2]))
    assert left_out_label(some) == "Rows to look at: 1,000 dropped, 2 the same as another"
    assert "Every row is used whole" in left_out_html(report(tmp_path, [5], source()))


def test_numbers_with_many_digits_can_be_read(tmp_path: Path) -> None:
    made = replace(
        report(tmp_path, []),
        longest=65_000,
        cutoff=1_024,
        bars=[Bar(0, 65_001, 12_345)],
        lost_at=[LostAt(1_024, 1.0, 0.985)],
    )
    html = lengths_html(made)
    for text in (
        "12,345 of 0 to 65,000 tokens",
        "<span>65,000</span>",
        "cutoff 1,024",
        "98.5% of all tokens",
        "100% over",
    ):
        assert text in html
