"""Format files of text-generation-webui: rows filled as the old program did, and a chat template made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_tokenizer, text_of
from training.errors import UserError
from training.formats import (
    BY_NAME,
    EmptyAnswer,
    Format,
    RowError,
    Text,
    chat_template_of,
    is_format_file,
    load_format_file,
)

SHIPPED = sorted((Path(__file__).parents[1] / "formats").glob("*.json"))
CHAT = {
    "instruction,output": "User: %instruction%\nAssistant: %output%",
    "instruction,input,output": "User: %instruction%: %input%\nAssistant: %output%",
}


def written(folder: Path, value: Any, name: str = "chat.json") -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def chat(tmp_path: Path) -> Format:
    return load_format_file(written(tmp_path, CHAT))


def answers(text: Text) -> list[str]:
    return [text.text[start:end] for start, end in text.answers]


def filled(known: Format, row: dict[str, Any]) -> Text:
    converted = known.convert(row)
    assert isinstance(converted, Text)
    return converted


@pytest.mark.parametrize(
    ("row", "text", "answer"),
    [
        ({"instruction": "Hi", "output": "Yo"}, "User: Hi\nAssistant: Yo", "Yo"),
        ({"instruction": "Hi", "input": "x", "output": "Yo"}, "User: Hi: x\nAssistant: Yo", "Yo"),
        ({"instruction": "Hi", "input": "", "output": " Yo\n"}, "User: Hi\nAssistant:  Yo\n", " Yo\n"),
        ({"instruction": "Hi", "input": None, "output": "Yo", "id": 5}, "User: Hi\nAssistant: Yo", "Yo"),
        ({"instruction": 1, "output": 0.5}, "User: 1\nAssistant: 0.5", "0.5"),
        # A value that looks like a placeholder stays text.
        (
            {"instruction": "%output%", "output": "%instruction%"},
            "User: %output%\nAssistant: %instruction%",
            "%instruction%",
        ),
    ],
)
def test_row_is_filled_in(chat: Format, row: dict[str, Any], text: str, answer: str) -> None:
    assert chat.detect(row)
    converted = filled(chat, row)
    assert converted.text == text
    assert answers(converted) == [answer]


def test_format_is_called_like_its_file(chat: Format) -> None:
    assert chat.name == "chat.json"
    assert chat.about == "'instruction', 'output' or 'input', 'instruction', 'output'"


def test_text_may_follow_the_answer_and_a_column_stand_twice(tmp_path: Path) -> None:
    known = load_format_file(written(tmp_path, {"q, a": "%a%? %q%: %a%<end>"}))
    converted = filled(known, {"q": "Q", "a": "A"})
    assert converted == Text("A? Q: A<end>", ((6, 7),))


def test_column_may_be_named_and_not_used(tmp_path: Path) -> None:
    known = load_format_file(written(tmp_path, {"id,my text": "100% %my text%"}))
    assert filled(known, {"id": "7", "my text": "x"}).text == "100% x"


def test_row_with_other_columns_names_them(chat: Format) -> None:
    row = {"instruction": "Hi", "output": "Yo", "source": "web"}
    assert not chat.detect(row)
    with pytest.raises(RowError) as caught:
        chat.convert(row)
    assert str(caught.value) == (
        "it has text in 'instruction', 'output', 'source', but the format file is for "
        "'instruction', 'output' or 'input', 'instruction', 'output'"
    )
    assert not isinstance(caught.value, EmptyAnswer)


@pytest.mark.parametrize("row", [{"instruction": "Hi"}, {"instruction": "Hi", "input": "x", "output": " "}])
def test_empty_answer_is_told_apart(chat: Format, row: dict[str, Any]) -> None:
    with pytest.raises(EmptyAnswer, match="'output' is missing or empty"):
        chat.convert(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "Hi", "output": "\ud83d"}, "'output' has half a character"),
        ({"instruction": "Hi", "output": float("inf")}, "'output' holds an infinite number"),
        ({"instruction": "Hi", "output": True}, "'output' is missing"),
        ({"instruction": ["Hi"], "output": "Yo"}, "it has text in 'output'"),
    ],
)
def test_value_that_is_no_text(chat: Format, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        chat.convert(row)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (CHAT, True),
        ({"text": "%text%"}, True),
        ({"a,b": "%a% %b%", "c": "typo"}, True),  # a broken one is still told from a dataset
        ({}, False),
        ({"text": "hello"}, False),
        ({"data": [{"text": "%text%"}]}, False),
        ({"text": "%text%", "n": 1}, False),
        ([CHAT], False),
        ("%text%", False),
        (None, False),
    ],
)
def test_format_file_is_told_from_a_dataset(value: object, expected: bool) -> None:
    assert is_format_file(value) is expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "The format file chat.json is not valid JSON"),
        ("{", "The format file chat.json is not valid JSON"),
        ("[" * 100_000, "The format file chat.json is not valid JSON"),
        ([CHAT], "chat.json is no format file"),
        ({"text": "hello"}, "chat.json is no format file"),
        (CHAT | {"text": "hello"}, "In the format file chat.json the entry 'text' uses none of its columns."),
        (CHAT | {"": "%x%"}, "In the format file chat.json the entry '' uses none of its columns."),
        (
            {"instruction,output": "%instrction% %output%"},
            "In the format file chat.json the entry 'instruction,output' does not name the column 'instrction' that",
        ),
        ({"a,b": "%a%%b%", "b,a": "%b%%a%"}, "In the format file chat.json two entries are for the same columns"),
        ({"a": "\ud83d%a%"}, "In the format file chat.json the entry 'a' has half a character"),
    ],
)
def test_broken_format_file_says_why(tmp_path: Path, content: Any, reason: str) -> None:
    path = written(tmp_path, content)
    for read in (load_format_file, chat_template_of):
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(caught.value).startswith(reason)


def test_format_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        load_format_file(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9%a%"}')
    with pytest.raises(UserError, match=r"latin\.json is not UTF-8 text"):
        load_format_file(tmp_path / "latin.json")


def rendered(template: str | None, messages: list[dict[str, Any]]) -> tuple[str, str]:
    """The whole text, and the part of it that the template marks as generated."""
    tokenizer = make_tokenizer(template)
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids = encoded["input_ids"]
    marked = [token for token, mask in zip(ids, encoded["assistant_masks"], strict=True) if mask]
    return text_of(tokenizer, ids), text_of(tokenizer, marked)


def test_chat_template_writes_what_was_trained(tmp_path: Path) -> None:
    path = written(tmp_path, CHAT)
    question, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
    text, marked = rendered(chat_template_of(path), [question, answer])
    assert text == filled(load_format_file(path), {"instruction": "Hi", "output": "Yo"}).text + "<|im_end|>"
    assert marked == "Yo<|im_end|>"
    text, marked = rendered(
        chat_template_of(path), [{"role": "system", "content": "Be brief."}, question, answer, question, answer]
    )
    assert text == "Be brief.\n" + "User: Hi\nAssistant: Yo<|im_end|>" * 2
    assert marked == "Yo<|im_end|>" * 2
    tokenizer = make_tokenizer(chat_template_of(path))
    assert (
        tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True) == "User: Hi\nAssistant: "
    )


ODD = [
    "{{ 7 * 7 }}{% raw %}{# no #}",
    "\"'\\ \\n \\u0041",
    "}} %} #} {%- endfor -%}",
    "é 😀 \u2028\u2029\x85",
    "tab\t nul\x00 del\x7f feed\x0c",
    "lines\r\nof\rall\n\nkinds\n",
    " {generation} ${x} %(s)s ",
]


@pytest.mark.parametrize("literal", ODD)
def test_literals_of_a_pattern_stay_as_they_are(tmp_path: Path, literal: str) -> None:
    path = written(tmp_path, {"q,a": f"{literal}1%q%2{literal}%a%3{literal}"})
    turns = [{"role": "user", "content": literal}, {"role": "assistant", "content": literal}]
    text, marked = rendered(chat_template_of(path), turns)
    assert text == f"{literal}1{literal}2{literal}{literal}3{literal}<|im_end|>"
    assert marked == f"{literal}3{literal}<|im_end|>"


@pytest.mark.parametrize("pattern", ["%a%", "%a%%a%", "%q%%q%%a%"])
def test_no_chat_template_without_one_question_and_one_answer(tmp_path: Path, pattern: str) -> None:
    assert chat_template_of(written(tmp_path, {"q,a": pattern})) is None


def test_chat_template_has_no_place_for_tools(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    for turn in (call, {"role": "tool", "content": "x"}):
        with pytest.raises(Exception, match="This format has no place for tools"):
            rendered(chat_template_of(written(tmp_path, CHAT)), [turn])


def test_shipped_files(tmp_path: Path) -> None:
    assert len(SHIPPED) >= 2
    for path in SHIPPED:
        assert chat_template_of(path)
        known = load_format_file(path)
        assert known.name not in BY_NAME
        for key in json.loads(path.read_text(encoding="utf-8")):
            row = {column: f"<{column}>" for column in key.split(",")}
            converted = filled(known, row)
            assert all(value in converted.text for value in row.values())
            assert answers(converted) == [f"<{key.split(',')[-1]}>"]
