"""Each dataset format: which rows it knows, what it makes of them, and why it refuses one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from training.errors import UserError
from training.formats import (
    BY_NAME,
    FORMATS,
    NAMES,
    Conversation,
    EmptyAnswer,
    Row,
    RowError,
    Text,
    choose_format,
)

U, A, S, T = "user", "assistant", "system", "tool"
Turns = list[tuple[str, str]]
QO: Turns = [(U, "Q"), (A, "O")]
LONG = 10**5000


def chat(*turns: tuple[str, Any], spelling: tuple[str, str] = ("role", "content")) -> list[dict[str, Any]]:
    return [dict(zip(spelling, turn, strict=True)) for turn in turns]


def sharegpt(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return chat(*turns, spelling=("from", "value"))


ROWS: list[tuple[str, Row, Turns | str]] = [
    ("alpaca", {"instruction": "I", "input": "", "output": "O"}, [(U, "I"), (A, "O")]),
    ("alpaca", {"instruction": "I", "input": "X", "output": "O", "system": "Y"}, [(S, "Y"), (U, "I\nX"), (A, "O")]),
    ("alpaca", {"instruction": "I", "output": "O", "input": None}, [(U, "I"), (A, "O")]),
    ("alpaca", {"instruction": "I", "output": "O", "input": float("nan"), "text": "I O"}, [(U, "I"), (A, "O")]),
    ("alpaca", {"Instruction": "I", "OUTPUT ": "O"}, [(U, "I"), (A, "O")]),
    (
        "alpaca",
        {"instruction": "I", "output": "O", "system": "Y", "history": [["a", "b"], ["c", 4]]},
        [(S, "Y"), (U, "a"), (A, "b"), (U, "c"), (A, "4"), (U, "I"), (A, "O")],
    ),
    ("alpaca", {"instruction": "I", "output": "O", "history": []}, [(U, "I"), (A, "O")]),
    ("alpaca", {"instruction": "I", "output": "O", "history": " "}, [(U, "I"), (A, "O")]),
    ("alpaca", {"instruction": "I", "output": "O", "history": "[]"}, [(U, "I"), (A, "O")]),
    (
        "alpaca",
        {"instruction": "I", "output": "O", "history": ' [["a", "b"], ["c", 4]]'},
        [(U, "a"), (A, "b"), (U, "c"), (A, "4"), (U, "I"), (A, "O")],
    ),
    # as databricks-dolly has it
    ("alpaca", {"instruction": "I", "context": "X", "response": "O", "category": "qa"}, [(U, "I\nX"), (A, "O")]),
    ("question-answer", {"question": "Q", "answer": 7}, [(U, "Q"), (A, "7")]),
    ("question-answer", {"question": 1.5, "answer": "O", "system": "Y"}, [(S, "Y"), (U, "1.5"), (A, "O")]),
    ("question-answer", {"question": "Q", "answer": "O", "context": "X"}, [(U, "Q\nX"), (A, "O")]),
    # as OpenOrca has it
    ("question-answer", {"id": "f.1", "system_prompt": "Y", "question": "Q", "response": "O"}, [(S, "Y"), *QO]),
    ("question-answer", {"query": "Q", "response": "O", "history": [["a", "b"]]}, [(U, "a"), (A, "b"), *QO]),
    ("question-answer", {"input": "Q", "output": "O"}, QO),
    ("question-answer", {"User": "Q", "Assistant": "O"}, QO),
    ("question-answer", {"HUMAN": "Q", "bot": "O"}, QO),
    ("prompt-completion", {"prompt": "Q", "completion": " O"}, [(U, "Q"), (A, " O")]),
    ("prompt-completion", {"Prompt": "Q", "Response": "O"}, QO),
    ("prompt-completion", {"prompt": chat((S, "Y"), (U, "Q")), "completion": chat((A, "O"))}, [(S, "Y"), *QO]),
    ("prompt-completion", {"prompt": chat((U, "Q")), "completion": "O"}, QO),
    ("messages", {"messages": chat((U, "Q"), (A, "O"))}, QO),
    ("messages", {"messages": chat((S, "Y"), (U, ""), (A, " O\n"))}, [(S, "Y"), (U, ""), (A, " O\n")]),
    (
        "messages",
        {"messages": chat(("developer", "Y"), (U, "Q"), (A, "O"), ("function", "F"))},
        [(S, "Y"), *QO, (T, "F")],
    ),
    ("messages", {"messages": chat((U, "Q"), (A, "O")), "system": "Y"}, [(S, "Y"), *QO]),
    ("messages", {"messages": chat((S, "Y"), (U, "Q"), (A, "O")), "system": "Y"}, [(S, "Y"), *QO]),
    ("messages", {"messages": chat((S, "Z"), (U, "Q"), (A, "O")), "system": "Y"}, [(S, "Y\n\nZ"), *QO]),
    ("messages", {"messages": '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "O"}]'}, QO),
    ("messages", {"messages": chat((U, [{"type": "text", "text": "Q"}]), (A, "O"))}, QO),
    (
        "messages",
        {"messages": chat((U, [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]), (A, "O"))},
        [(U, "a b"), (A, "O")],
    ),
    # several spellings unified in a table, the others filled with nulls
    (
        "messages",
        {
            "instruction": None,
            "output": None,
            "messages": [{"role": U, "content": "Q", "value": None}, *chat((A, "O"))],
        },
        QO,
    ),
    ("sharegpt", {"id": "x", "conversations": sharegpt(("human", "Q"), ("gpt", "O"))}, QO),
    ("sharegpt", {"conversations": sharegpt(("Human", "Q"), ("ChatGPT", "O")), "system": "Y"}, [(S, "Y"), *QO]),
    (
        "sharegpt",
        {"conversations": sharegpt(("user", "Q"), ("bing", "O"), ("user", "R"), ("bard", "P"))},
        [*QO, (U, "R"), (A, "P")],
    ),
    ("sharegpt", {"conversation": chat((U, "Q"), (A, "O"))}, QO),
    (
        "sharegpt",
        {
            "conversations": sharegpt(
                ("human", "Q"), ("function-call", "let me look"), ("function-response", "F"), ("gpt", "O")
            )
        },
        [(U, "Q"), (A, "let me look"), (T, "F"), (A, "O")],
    ),
    ("text", {"text": " plain\n"}, " plain\n"),
    ("text", {"Text": 12}, "12"),
]


@pytest.mark.parametrize(("name", "row", "expected"), ROWS)
def test_row_is_known_and_converted(name: str, row: Row, expected: Turns | str) -> None:
    assert choose_format([row]).name == name
    converted = BY_NAME[name].convert(row)
    if isinstance(converted, Text):
        assert converted == Text(str(expected))
    else:
        assert [(m["role"], m["content"]) for m in converted.messages] == expected
        assert converted.tools is None


def test_every_format_is_covered_here_and_documented() -> None:
    assert {name for name, _, _ in ROWS} == set(BY_NAME) == set(NAMES) - {"auto"}
    assert len(BY_NAME) == len(FORMATS)
    assert all(f.about for f in FORMATS)


BAD_ROWS: list[tuple[str, Row, str]] = [
    ("alpaca", {}, "'instruction' is missing or empty"),
    ("alpaca", {"instruction": " ", "output": "O"}, "'instruction' is empty"),
    ("alpaca", {"instruction": "I", "input": ["x"], "output": "O"}, "'input' holds a list and not text"),
    ("alpaca", {"INSTRUCTION": True, "output": "O"}, "'INSTRUCTION' holds true or false and not text"),
    ("alpaca", {"instruction": "I", "output": "O", "history": "x"}, "'history' is not a list"),
    ("alpaca", {"instruction": "I", "output": "O", "history": "[["}, "'history' is not valid JSON"),
    ("alpaca", {"instruction": "I", "output": "O", "history": [["a", "b"], ["c"]]}, "pair 2 of 'history' is not a q"),
    ("alpaca", {"instruction": "I", "output": "O", "history": [["a", {}]]}, "pair 1 of 'history' holds an object"),
    ("question-answer", {"question": "Q", "answer": True}, "'answer' holds true or false and not text"),
    ("question-answer", {"question": {"a": 1}, "answer": "O"}, "'question' holds an object and not text"),
    ("question-answer", {"question": "Q", "answer": b"O"}, "'answer' holds a value of the type bytes"),
    ("question-answer", {"question": "Q", "answer": "\ud83d"}, "'answer' has half a character"),
    ("question-answer", {"question": "Q", "answer": float("-inf")}, "'answer' holds an infinite number"),
    ("question-answer", {"question": "Q", "answer": LONG}, "'answer' holds a number too long"),
    ("question-answer", {"question": "Q", "answer": "O", "system": [1]}, "'system' holds a list and not text"),
    ("prompt-completion", {"prompt": ["x"], "completion": "O"}, "turn 1 is not an object"),
    ("prompt-completion", {"prompt": [], "completion": "O"}, "'prompt' is empty or not a list"),
    ("messages", {}, "'messages' is empty or not a list"),
    ("messages", {"messages": []}, "'messages' is empty or not a list"),
    ("messages", {"messages": "hello"}, "'messages' is empty or not a list"),
    ("messages", {"messages": "[{"}, "'messages' is not valid JSON"),
    ("messages", {"messages": "[" * 100_000}, "'messages' is not valid JSON"),
    ("messages", {"messages": {"role": U}}, "'messages' is empty or not a list"),
    ("messages", {"messages": [["a"]]}, "turn 1 is not an object"),
    ("messages", {"messages": chat((U, "Q"), ("judge", "x"))}, "turn 2 has the unknown role 'judge'"),
    ("messages", {"messages": chat(("\ud83d", "x"))}, r"turn 1 has the unknown role '\ud83d'"),
    ("messages", {"messages": [{"content": "x"}]}, "turn 1 has the unknown role nothing"),
    ("messages", {"messages": chat((["user"], "x"))}, "turn 1 has the unknown role a list"),
    ("messages", {"messages": [{"role": U, "contnet": "x"}, *chat((A, "O"))]}, "turn 1 has no 'content' or 'value'"),
    ("messages", {"messages": chat((U, {"a": 1}), (A, "O"))}, "turn 1 holds an object and not text"),
    ("messages", {"messages": chat((U, ["Q"]), (A, "O"))}, "turn 1 has a part that is text and not an object"),
    (
        "messages",
        {"messages": chat((U, [{"type": "image_url"}]), (A, "O"))},
        "turn 1 has a part of the type 'image_url'",
    ),
    ("messages", {"messages": chat((U, [{"type": "text", "text": [1]}]), (A, "O"))}, "turn 1 holds a list and not"),
    ("messages", {"messages": chat((U, "Q"), (A, "O")), "tools": "no JSON"}, "'tools' is not valid JSON"),
    ("messages", {"messages": chat((U, "Q"), (A, "O")), "tools": [1]}, "'tools' is not a list of objects"),
    ("messages", {"messages": chat((U, "Q"), (A, "O")), "tools": [{"name": "\ud83d"}]}, "'tools' has half a character"),
    ("messages", {"messages": [{"role": A, "content": "O", "reasoning": {}}]}, "turn 1: the reasoning holds an object"),
    ("sharegpt", {"conversations": sharegpt(("narrator", "x"))}, "turn 1 has the unknown role 'narrator'"),
    ("text", {"text": [1]}, "'text' holds a list and not text"),
    ("text", {"text": ""}, "'text' is missing or empty"),
]


@pytest.mark.parametrize(("name", "row", "reason"), BAD_ROWS)
def test_unusable_row_says_why(name: str, row: Row, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        BY_NAME[name].convert(row)
    assert str(caught.value).startswith(reason)
    assert not isinstance(caught.value, EmptyAnswer)
    str(caught.value).encode()  # can be shown and written down, whatever the row holds


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("alpaca", {"instruction": "I", "output": ""}, "'output' is missing or empty"),
        ("alpaca", {"instruction": "I", "output": " \n"}, "'output' is empty"),
        ("alpaca", {"instruction": "I"}, "'output' is missing or empty"),
        ("alpaca", {"instruction": "I", "output": "O", "history": [["a", None]]}, "pair 1 of 'history' has no answer"),
        ("question-answer", {"question": "Q", "answer": None}, "'answer' is missing or empty"),
        ("question-answer", {"question": "Q", "answer": float("nan")}, "'answer' is missing or empty"),
        ("prompt-completion", {"prompt": chat((U, "Q")), "completion": ""}, "'completion' is missing or empty"),
        ("messages", {"messages": chat((U, "x"))}, "no turn is the assistant's"),
        ("messages", {"messages": chat((U, "x"), (A, ""))}, "turn 2 is the assistant's and is empty"),
        ("messages", {"messages": [{"role": A}]}, "turn 1 is the assistant's and is empty"),
        ("messages", {"messages": [{"role": A, "content": None, "tool_calls": []}]}, "turn 1 is the assistant's and"),
        ("messages", {"messages": [{"role": A, "content": " ", "reasoning": "hm"}]}, "turn 1 is the assistant's and"),
        ("sharegpt", {"conversations": sharegpt(("human", "x"), ("gpt", None))}, "turn 2 is the assistant's and"),
    ],
)
def test_empty_answer_is_told_apart(name: str, row: Row, reason: str) -> None:
    with pytest.raises(EmptyAnswer) as caught:
        BY_NAME[name].convert(row)
    assert str(caught.value).startswith(reason)


def weighted(*weights: Any) -> Row:
    answers = [{"role": A, "content": "O", "weight": weight} for weight in weights]
    return {"messages": [turn for answer in answers for turn in ({"role": U, "content": "Q", "weight": 0}, answer)]}


@pytest.mark.parametrize("weights", [(1, 1.0), (None, True), ("1", ""), (float("nan"),)])
def test_weights_of_turns_that_are_learnt(weights: tuple[Any, ...]) -> None:
    converted = BY_NAME["messages"].convert(weighted(*weights))
    assert isinstance(converted, Conversation)
    assert [m["content"] for m in converted.messages] == ["Q", "O"] * len(weights)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ((0,), "turn 2 has the weight 0, and weights of single turns are not supported: end the conversation before"),
        ((1, 0), "turn 4 has the weight 0, "),
        ((0, 1, 1), "turn 2 has the weight 0, and weights of single turns are not supported: end the conversation"),
        (
            (0, 1),
            "turn 2 has the weight 0, and weights of single turns are not supported: remove the weights and train",
        ),
        ((0, 0.0, None), "turn 2 has the weight 0, and weights of single turns are not supported: remove the weights"),
        ((False,), "turn 2 has the weight false, "),
        (("0",), "turn 2 has the weight 0, "),
        ((0.5,), "turn 2 has the weight 0.5, "),
        (([],), "turn 2: 'weight' holds a list"),
        ((LONG,), "turn 2: 'weight' holds a number too long"),
    ],
)
def test_turn_that_is_not_to_be_learnt_is_refused(weights: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        BY_NAME["messages"].convert(weighted(*weights))
    assert str(caught.value).startswith(reason)


def test_zero_is_an_answer() -> None:
    converted = BY_NAME["question-answer"].convert({"question": "1 - 1", "answer": 0})
    assert isinstance(converted, Conversation)
    assert converted.messages[1] == {"role": A, "content": "0"}


def test_detection_counts_all_rows_of_an_iterator() -> None:
    odd = {"text": "the first rows may be odd"}
    row = {"question": "Q", "answer": "A"}

    def rows(*given: Row) -> Iterator[Row]:
        yield from given

    assert choose_format(rows(odd, odd, row, row, row)).name == "question-answer"
    assert choose_format(rows(odd, odd, row)).name == "text"


def test_named_format_is_taken_whatever_the_rows() -> None:
    assert choose_format([{"text": "x"}], "alpaca").name == "alpaca"
    with pytest.raises(UserError, match=r"no data format 'chat\.json': choose one of auto, alpaca"):
        choose_format([{"text": "x"}], "chat.json")


def test_no_known_format_shows_the_keys() -> None:
    with pytest.raises(UserError) as caught:
        choose_format(iter([{"frage": 1, "antwort": 2}, {}]))
    assert "row 1 has 'frage', 'antwort'." in str(caught.value)
    assert "question, answer" in str(caught.value)
    assert "Assign the columns on the Datasets tab" in str(caught.value)
    with pytest.raises(UserError, match="row 1 has nothing"):
        choose_format([{}])
    with pytest.raises(UserError, match=r"row 1 has 'c0', .*'c11', …\."):
        choose_format([{f"c{n}": n for n in range(1000)}])
