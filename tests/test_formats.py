"""Each dataset format: which rows it knows, what it makes of them, and why it refuses one."""

from __future__ import annotations

from typing import Any

import pytest

from training.errors import UserError
from training.formats import BY_NAME, FORMATS, NAMES, RowError, choose_format

U, A, S = "user", "assistant", "system"

ROWS: list[tuple[str, dict[str, Any], list[tuple[str, str]] | str]] = [
    ("alpaca", {"instruction": "I", "input": "", "output": "O"}, [(U, "I"), (A, "O")]),
    ("alpaca", {"instruction": "I", "input": "X", "output": "O", "system": "Y"}, [(S, "Y"), (U, "I\nX"), (A, "O")]),
    ("alpaca", {"instruction": "I", "output": "O", "input": None}, [(U, "I"), (A, "O")]),
    ("messages", {"messages": [{"role": U, "content": "Q"}, {"role": A, "content": "O"}]}, [(U, "Q"), (A, "O")]),
    (
        "messages",
        {"messages": [{"role": S, "content": "Y"}, {"role": U, "content": ""}, {"role": A, "content": " O\n"}]},
        [(S, "Y"), (U, ""), (A, " O\n")],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "O"}]},
        [(U, "Q"), (A, "O")],
    ),
    ("question-answer", {"question": "Q", "answer": 7}, [(U, "Q"), (A, "7")]),
    ("question-answer", {"question": 1.5, "answer": "O", "system": "Y"}, [(S, "Y"), (U, "1.5"), (A, "O")]),
    ("prompt-completion", {"prompt": "Q", "completion": " O"}, [(U, "Q"), (A, " O")]),
    ("text", {"text": " plain\n"}, " plain\n"),
]


@pytest.mark.parametrize(("name", "row", "expected"), ROWS)
def test_row_is_known_and_converted(name: str, row: dict[str, Any], expected: list[tuple[str, str]] | str) -> None:
    assert choose_format([row]).name == name
    converted = BY_NAME[name].convert(row)
    if isinstance(converted, str):
        assert converted == expected
    else:
        assert [(m["role"], m["content"]) for m in converted] == expected


def test_every_format_is_covered_here_and_documented() -> None:
    assert {name for name, _, _ in ROWS} == set(BY_NAME) == set(NAMES) - {"auto"}
    assert len(BY_NAME) == len(FORMATS)
    assert all(f.about for f in FORMATS)


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("alpaca", {}, "'instruction' is missing or empty"),
        ("alpaca", {"instruction": "I", "output": ""}, "'output' is missing or empty"),
        ("alpaca", {"instruction": "I", "output": " \n"}, "'output' is empty"),
        ("alpaca", {"instruction": "I", "input": ["x"], "output": "O"}, "'input' holds list and not text"),
        ("question-answer", {"question": "Q", "answer": None}, "'answer' is missing or empty"),
        ("question-answer", {"question": "Q", "answer": float("nan")}, "'answer' is missing or empty"),
        ("question-answer", {"question": "Q", "answer": True}, "'answer' holds bool and not text"),
        ("question-answer", {"question": {"a": 1}, "answer": "O"}, "'question' holds dict and not text"),
        ("question-answer", {"question": "Q", "answer": "\ud83d"}, "'answer' has half a character"),
        ("messages", {}, "'messages' is empty or not a list"),
        ("messages", {"messages": []}, "'messages' is empty or not a list"),
        ("messages", {"messages": "hello"}, "'messages' is empty or not a list"),
        ("messages", {"messages": [["a"]]}, "turn 1 is not an object"),
        ("messages", {"messages": [{"role": "tool", "content": "x"}]}, "turn 1 has the unknown role 'tool'"),
        ("messages", {"messages": [{"content": "x"}]}, "turn 1 has the unknown role None"),
        ("messages", {"messages": [{"role": ["user"], "content": "x"}]}, "turn 1 has the unknown role"),
        ("messages", {"messages": [{"role": U, "content": "x"}]}, "no turn is the assistant's"),
        ("messages", {"messages": [{"role": A, "content": ""}]}, "'content' is missing or empty"),
        ("messages", {"messages": [{"role": A, "content": [{"type": "text"}]}]}, "'content' holds list"),
        ("sharegpt", {"conversations": [{"from": "bing", "value": "x"}]}, "turn 1 has the unknown role 'bing'"),
        ("text", {"text": [1]}, "'text' holds list and not text"),
    ],
)
def test_unusable_row_says_why(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        BY_NAME[name].convert(row)
    assert str(caught.value).startswith(reason)


def test_zero_is_an_answer() -> None:
    converted = BY_NAME["question-answer"].convert({"question": "1 - 1", "answer": 0})
    assert converted[1] == {"role": A, "content": "0"}


def test_detection_counts_all_rows() -> None:
    odd = {"text": "the first rows may be odd"}
    row = {"question": "Q", "answer": "A"}
    assert choose_format([odd, odd, row, row, row]).name == "question-answer"
    assert choose_format([odd, odd, row]).name == "text"


def test_named_format_is_taken_whatever_the_rows() -> None:
    assert choose_format([{"text": "x"}], "alpaca").name == "alpaca"


def test_no_known_format_shows_the_keys() -> None:
    with pytest.raises(UserError) as caught:
        choose_format([{"frage": 1, "antwort": 2}, {}])
    assert "Row 1 has 'frage', 'antwort'" in str(caught.value)
    assert "question, answer" in str(caught.value)
    with pytest.raises(UserError, match="Row 1 has nothing"):
        choose_format([{}])
