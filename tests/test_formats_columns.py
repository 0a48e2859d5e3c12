"""Columns that the user assigns: what may be assigned, how rows are read by it, and that it is remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.errors import UserError
from training.formats import (
    Columns,
    Conversation,
    EmptyAnswer,
    Row,
    RowError,
    Text,
    columns_file,
    columns_format,
    load_columns,
    parse_columns,
    save_columns,
)

PAIR = Columns(question="frage", answer="antwort")
TURNS = [{"from": "human", "value": "Q"}, {"role": "assistant", "content": "O"}]


@pytest.mark.parametrize(
    ("values", "row", "expected"),
    [
        ({"question": "frage", "answer": "antwort"}, {"frage": "Q", "antwort": 3}, [("user", "Q"), ("assistant", "3")]),
        (
            {"question": "a", "extra": "b", "answer": "c", "system": "d"},
            {"a": "Q", "b": "X", "c": "O", "d": "Y"},
            [("system", "Y"), ("user", "Q\nX"), ("assistant", "O")],
        ),
        # What is not assigned is not used, whatever it is called.
        (
            {"question": "a", "answer": "c"},
            {"a": "Q", "c": "O", "system": "Y", "context": "X", "history": [["a", "b"]]},
            [("user", "Q"), ("assistant", "O")],
        ),
        (
            {"conversation": "chat", "system": "s"},
            {"chat": TURNS, "s": "Y"},
            [("system", "Y"), ("user", "Q"), ("assistant", "O")],
        ),
    ],
)
def test_rows_are_read_as_assigned(values: dict[str, str], row: Row, expected: list[tuple[str, str]]) -> None:
    assigned = columns_format(Columns(**values))
    assert assigned.name == "columns" and assigned.detect(row)
    converted = assigned.convert(row)
    assert isinstance(converted, Conversation)
    assert [(m["role"], m["content"]) for m in converted.messages] == expected


def test_text_column() -> None:
    assigned = columns_format(Columns(text="body"))
    assert assigned.convert({"body": "x", "text": "y"}) == Text("x")
    assert assigned.about == "text: body"
    assert not assigned.detect({"text": "y"})


def test_rows_that_do_not_fit_the_assignment() -> None:
    assigned = columns_format(PAIR)
    assert not assigned.detect({"frage": "Q"})
    with pytest.raises(EmptyAnswer, match="'antwort' is missing or empty"):
        assigned.convert({"frage": "Q"})
    with pytest.raises(RowError, match="'frage' is missing or empty"):
        assigned.convert({"antwort": "O"})
    with pytest.raises(RowError, match="'chat' is empty or not a list"):
        columns_format(Columns(conversation="chat")).convert({"chat": "hello"})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "Assign either a text, or a conversation, or a question and an answer."),
        ({"system": "s"}, "Assign either a text"),
        ({"text": "t", "conversation": "c"}, "Assign either a text"),
        ({"text": "t", "answer": "a"}, "Assign either a text"),
        ({"question": "q"}, "Assign both a question and an answer."),
        ({"question": "q", "answer": ""}, "Assign both a question and an answer."),
        ({"extra": "q"}, "Assign both a question and an answer."),
        ({"text": "t", "system": "s"}, "A text has no system prompt"),
        ({"question": "q", "answer": "q"}, "Assign each column once."),
        ({"question": 1, "answer": "q"}, "question: "),
        ({"frage": "q"}, "frage: "),
    ],
)
def test_assignment_that_makes_no_row_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_columns(values)
    assert str(caught.value).startswith(reason)


def test_what_is_left_empty_is_not_assigned() -> None:
    assert parse_columns({"question": "frage", "answer": "antwort", "text": "", "system": None}) == PAIR


def test_assignment_is_remembered_and_forgotten(tmp_path: Path) -> None:
    data = tmp_path / "völlig normal.csv"
    assert load_columns(data) is None
    columns = Columns(question="Frage, bitte", answer='"Ä"\n')
    save_columns(data, columns)
    assert load_columns(data) == columns
    assert [p.name for p in tmp_path.iterdir()] == [".völlig normal.csv.columns"]
    save_columns(data, None)
    save_columns(data, None)
    assert load_columns(data) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"text": 1}', b'{"question": "q"}', b'{"frage": "q"}', b"\xff"]
)
def test_damaged_assignment_says_so(tmp_path: Path, content: bytes) -> None:
    data = tmp_path / "a.csv"
    columns_file(data).write_bytes(content)
    with pytest.raises(UserError, match=r"^The columns assigned to a\.csv cannot be used \(.+\): assign them again\.$"):
        load_columns(data)


def test_assignment_that_cannot_be_read(tmp_path: Path) -> None:
    columns_file(tmp_path / "a.csv").mkdir()
    with pytest.raises(UserError, match=r"\.a\.csv\.columns cannot be read"):
        load_columns(tmp_path / "a.csv")
