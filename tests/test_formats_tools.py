"""Tools, tool calls and reasoning: every spelling ends in the one that chat templates expect."""

from __future__ import annotations

from typing import Any

import pytest

from training.formats import BY_NAME, Conversation, Row, RowError

WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
NO_ID = {"type": "function", "function": CALL["function"]}
BARE = {"name": "weather", "arguments": {"city": "Ulm"}}


def converted(name: str, row: Row) -> Conversation:
    conversation = BY_NAME[name].convert(row)
    assert isinstance(conversation, Conversation)
    return conversation


def assistant(**keys: Any) -> Row:
    return {"messages": [{"role": "assistant"} | keys]}


@pytest.mark.parametrize(
    ("keys", "calls"),
    [
        ({"content": None, "tool_calls": [CALL]}, [CALL]),
        ({"tool_calls": [CALL | {"function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}]}, [CALL]),
        ({"content": "", "tool_calls": [BARE]}, [NO_ID]),
        ({"content": "", "tool_calls": '[{"name": "weather", "arguments": {"city": "Ulm"}}]'}, [NO_ID]),
        ({"content": "", "tool_calls": [CALL, BARE]}, [CALL, NO_ID]),
        ({"content": None, "function_call": {"name": "weather", "arguments": '{"city": "Ulm"}'}}, [NO_ID]),
        (
            {"tool_calls": [{"function": {"name": "now"}}]},
            [{"type": "function", "function": {"name": "now", "arguments": {}}}],
        ),
    ],
)
def test_calls(keys: dict[str, Any], calls: list[dict[str, Any]]) -> None:
    message = converted("messages", assistant(**keys)).messages[0]
    assert message == {"role": "assistant", "content": "", "tool_calls": calls}


def test_words_beside_a_call_are_kept() -> None:
    message = converted("messages", assistant(content="Let me look.", tool_calls=[CALL])).messages[0]
    assert message == {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        (
            [{"function": {"name": "weather", "arguments": "{'city'"}}],
            "turn 1: 'tool_calls': 'arguments' is not valid JSON",
        ),
        (
            [{"function": {"name": "weather", "arguments": "[1]"}}],
            "turn 1: 'tool_calls': 'arguments' is a list and not",
        ),
        ([{"function": {"arguments": {}}}], "turn 1: 'tool_calls': 'name' of the function is missing"),
        ([CALL, {"function": "weather"}], "turn 1: 'tool_calls', call 2: 'function' is text and not an object"),
        ([{"name": {}}], "turn 1: 'tool_calls': 'name' holds an object and not text"),
        ([BARE | {"arguments": {"a": "\udc00"}}], "turn 1: 'tool_calls' has half a character"),
        ([BARE | {"arguments": '{"a": "\\udc00"}'}], "turn 1: 'tool_calls': 'arguments' has half a character"),
        ([BARE | {"arguments": '{"a":' * 500 + "1" + "}" * 500}], "turn 1: 'tool_calls': 'arguments' is nested too"),
        ("weather", "turn 1: 'tool_calls' is not valid JSON"),
        ({"name": "weather"}, "turn 1: 'tool_calls' is not a list of objects"),
    ],
)
def test_broken_call_is_refused(calls: object, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        BY_NAME["messages"].convert(assistant(content="x", tool_calls=calls))
    assert str(caught.value).startswith(reason)


def test_openai_conversation_with_a_tool() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "Rain?", "name": None},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": '{"rain": true}'},
            {"role": "assistant", "content": "Yes.", "tool_calls": None},
        ],
        "tools": [{"type": "function", "function": WEATHER}],
    }
    conversation = converted("messages", row)
    assert conversation.tools == row["tools"]
    assert conversation.messages == [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"rain": true}', "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "Yes."},
    ]


@pytest.mark.parametrize(
    "tools",
    [
        [WEATHER],
        '[{"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}]',
    ],
)
def test_sharegpt_conversation_with_a_tool(tools: object) -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Rain?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
            {"from": "observation", "value": "yes"},
            {"from": "gpt", "value": "Yes."},
        ],
        "tools": tools,
    }
    conversation = converted("sharegpt", row)
    assert conversation.tools == [{"type": "function", "function": WEATHER}]
    assert [m["role"] for m in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert conversation.messages[1] == {"role": "assistant", "content": "", "tool_calls": [NO_ID]}


@pytest.mark.parametrize("value", ["no JSON", '{"name": "weather"}', "[]", "7"])
def test_call_in_other_words_stays_text(value: str) -> None:
    row = {"conversations": [{"from": "function_call", "value": value}]}
    assert converted("sharegpt", row).messages == [{"role": "assistant", "content": value}]


@pytest.mark.parametrize("tools", [None, [], "", "[]", float("nan")])
def test_no_tools(tools: object) -> None:
    row = {"messages": [{"role": "assistant", "content": "O"}], "tools": tools}
    assert converted("messages", row).tools is None


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_the_assistants(key: str) -> None:
    row = {"messages": [{"role": "user", "content": "Q", key: "x"}, {"role": "assistant", "content": "O", key: "hm"}]}
    assert converted("messages", row).messages == [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "O", "reasoning_content": "hm"},
    ]


def test_column_called_tools_means_nothing_beside_a_question() -> None:
    row = {"question": "Q", "answer": "O", "tools": "hammer, nail"}
    assert converted("question-answer", row).tools is None
