"""Whatever JSON a row is, a format reads it or says why not: no other error, and never while looking for the format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.formats import (
    BY_NAME,
    FORMATS,
    Columns,
    Conversation,
    Format,
    RowError,
    Text,
    columns_format,
    load_format_file,
)

# Any code point, halves of characters too.
texts = st.one_of(
    st.text(st.characters(codec=None, categories=None), max_size=8),
    st.sampled_from(
        [
            *["", " ", "Q", "user", "gpt", "assistant", "system", "tool", "function_call", "text", "[", "[]", "{}"],
            *['[{"role": "assistant", "content": "x"}]', '{"name": "f", "arguments": {}}', '[{"name": 1}]', "%a%"],
        ]
    ),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
keys = st.one_of(
    st.sampled_from(
        "role from speaker content value text type reasoning tool_calls function_call tool_call_id name id function "
        "arguments instruction input output question answer prompt completion messages conversations system tools "
        "history context query response Question ANSWER a b c".split()
    ),
    texts,
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=12
)
turns = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "system", "tool"]) | values,
            "from": st.sampled_from(["human", "gpt", "function_call", "observation"]) | values,
            "content": texts | values,
            "value": texts | values,
            "tool_calls": values | st.lists(st.fixed_dictionaries({"function": values, "id": values}), max_size=2),
            "reasoning": values,
        },
    )
    | values,
    max_size=4,
)
rows = st.dictionaries(keys, values | turns, max_size=6)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Format]:
    path: Path = tmp_path_factory.mktemp("formats") / "odd.json"
    path.write_text(json.dumps({"a,b": "%a%: %b%", "question,answer": "%question% %answer%!"}), encoding="utf-8")
    columns = [
        Columns(question="question", extra="input", answer="answer", system="system"),
        Columns(conversation="messages", system="a"),
        Columns(text="text"),
    ]
    return [*FORMATS, load_format_file(path), *map(columns_format, columns)]


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [{"content": value}]
    return value


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows)
def test_any_row_is_read_or_refused(everything: list[Format], row: dict[str, Any]) -> None:
    try_all(everything, row)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": deep(5000), "conversations": [{"role": deep(5000)}], "text": deep(5000), "question": deep(5000)},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": deep(5000)}}]}]},
        {"messages": [{"role": "assistant", "content": "x"}], "tools": [{"name": deep(5000), "n": 10**5000}]},
    ],
    ids=["everywhere", "arguments", "tools"],
)
def test_deeply_nested_row_is_refused(everything: list[Format], row: dict[str, Any]) -> None:
    try_all(everything, row)
    with pytest.raises(RowError):
        BY_NAME["messages"].convert(row)


def try_all(known_formats: list[Format], row: dict[str, Any]) -> None:
    """Look for the format of a row and read it with each: nothing but RowError may come."""
    for known in known_formats:
        known.detect(row)
        try:
            converted = known.convert(row)
        except RowError as error:
            str(error).encode()
            continue
        check(converted)


def check(converted: Conversation | Text) -> None:
    """What comes out can be encoded and is what it says it is."""
    if isinstance(converted, Text):
        converted.text.encode()
        assert all(0 <= start < end <= len(converted.text) for start, end in converted.answers)
        return
    json.dumps([converted.messages, converted.tools], ensure_ascii=False).encode()
    assert any(message["role"] == "assistant" for message in converted.messages)
    for message in converted.messages:
        assert message["role"] in ("system", "user", "assistant", "tool")
        assert isinstance(message["content"], str)
        assert message["role"] != "assistant" or message["content"].strip() or message["tool_calls"]
