"""Reads a list of turns in any of the known spellings: role and content, from and value."""

from __future__ import annotations

from typing import Any

from training.formats.base import Conversation, EmptyAnswer, Message, Row, RowError
from training.formats.tools import read_calls, read_tools, written_call
from training.formats.values import as_text, find_key, from_json, is_missing, kind, optional_text, shown

_SYSTEM_NAMES = ("system", "system_prompt")
# The columns in which rows have their turns.
MESSAGES, CONVERSATIONS = ("messages",), ("conversations", "conversation")
_ROLE_KEYS = ("role", "from", "speaker")
_TEXT_KEYS = ("content", "value", "text")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_CALL_ROLES = ("function_call", "tool_call")  # what the assistant writes to call a tool
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "model", *_CALL_ROLES), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response"), "tool"),
}


def read_turns(value: object, where: str) -> list[Message]:
    """The messages in a list of turns, which may be written as JSON text; raises RowError naming the turn."""
    if isinstance(value, str) and value.lstrip().startswith("["):  # as a table holds it
        value = from_json(value, where)
    if not isinstance(value, list) or not value:
        raise RowError(f"{where} is empty or not a list")
    messages = [_message(turn, number) for number, turn in enumerate(value, start=1)]
    _check_weights([(number, value[number - 1]) for number, m in enumerate(messages, 1) if m["role"] == "assistant"])
    return messages


def has_turns(value: object) -> bool:
    """Whether it is a row with a list of turns under a usual name, however these may be written."""
    if not isinstance(value, dict):
        return False
    turns = value.get(find_key(value, *MESSAGES, *CONVERSATIONS) or "")
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and any(key in first for key in _ROLE_KEYS)


def row_system(row: Row) -> str:
    """The system prompt that a row has beside its turns, under a usual name; empty without one."""
    return optional_text(row, find_key(row, *_SYSTEM_NAMES))


def conversation(messages: list[Message], row: Row, system: str) -> Conversation:
    """Turns with a system prompt and the row's tools; raises EmptyAnswer when no turn is the assistant's."""
    if not any(message["role"] == "assistant" for message in messages):
        raise EmptyAnswer("no turn is the assistant's, so there is no answer to learn")
    return Conversation(with_system(messages, system), read_tools(row))


def with_system(messages: list[Message], prompt: str) -> list[Message]:
    """A system turn first; where there is one already, both texts in it, for templates know one place only."""
    if not prompt:
        return messages
    if messages[0]["role"] != "system":
        return [Message(role="system", content=prompt), *messages]
    own = messages[0]["content"]
    parts = [prompt] if own in ("", prompt) else [prompt, own]
    return [Message(role="system", content="\n\n".join(parts)), *messages[1:]]


def _message(turn: object, number: int) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"turn {number} is not an object")
    written_role = _first(turn, _ROLE_KEYS)
    folded = written_role.strip().casefold().replace("-", "_") if isinstance(written_role, str) else ""
    role = _ROLES.get(folded)
    if role is None:
        raise RowError(f"turn {number} has the unknown role {shown(written_role)}")
    value = _first(turn, _TEXT_KEYS)
    calls = _calls(turn, number) if role == "assistant" else []
    if folded in _CALL_ROLES and (written := written_call(value)) is not None:
        calls, value = calls + read_calls(written, f"turn {number}"), None
    content = _content(value, number)
    if role == "assistant" and not calls and not content.strip():
        raise EmptyAnswer(f"turn {number} is the assistant's and is empty")
    if not calls and not any(key in turn for key in _TEXT_KEYS):
        raise RowError(f"turn {number} has no 'content' or 'value'")
    message = Message(role=role, content=content)
    if calls:
        message["tool_calls"] = calls
    _add_details(message, turn, number)
    return message


def _check_weights(answers: list[tuple[int, dict[str, Any]]]) -> None:
    """Raise RowError for an answer that is marked as one not to be learnt: which are is the setting's to say."""
    unwanted = [(number, turn["weight"]) for number, turn in answers if not _is_learnt(turn)]
    if not unwanted:
        return
    number, weight = unwanted[0]
    written = str(weight).lower() if isinstance(weight, bool) else as_text(weight, f"turn {number}: 'weight'")
    said = f"turn {number} has the weight {written[:20]}, and weights of single turns are not supported"
    if len(unwanted) == len(answers) - 1 and _is_learnt(answers[-1][1]):
        raise RowError(f"{said}: remove the weights and train on the last answer, which means the same here")
    raise RowError(f"{said}: end the conversation before an answer that is not to be learnt, or remove its weight")


def _is_learnt(turn: dict[str, Any]) -> bool:
    weight = turn.get("weight")
    return is_missing(weight) or weight in (1, "", "1", "1.0")


def _first(turn: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """The first value that is there; tables that hold several spellings fill the others with nulls."""
    return next((turn[key] for key in keys if not is_missing(turn.get(key))), None)


def _calls(turn: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """The turn's tool calls, and its one function call as OpenAI wrote it before."""
    calls = read_calls(turn.get("tool_calls"), f"turn {number}: 'tool_calls'")
    if not is_missing(turn.get("function_call")):
        calls += read_calls([turn["function_call"]], f"turn {number}: 'function_call'")
    return calls


def _content(value: object, number: int) -> str:
    """A turn's text, which may come in parts."""
    if not isinstance(value, list):
        return as_text(value, f"turn {number}")
    texts = []
    for part in value:
        if not isinstance(part, dict):
            raise RowError(f"turn {number} has a part that is {kind(part)} and not an object")
        if part.get("type") != "text":
            raise RowError(f"turn {number} has a part of the type {shown(part.get('type'))}, and only text is trained")
        texts.append(as_text(part.get("text"), f"turn {number}"))
    return "".join(texts)


def _add_details(message: Message, turn: dict[str, Any], number: int) -> None:
    reasoning = as_text(_first(turn, _REASONING_KEYS), f"turn {number}: the reasoning")
    if reasoning and message["role"] == "assistant":
        message["reasoning_content"] = reasoning
    if call_id := as_text(turn.get("tool_call_id"), f"turn {number}: 'tool_call_id'"):
        message["tool_call_id"] = call_id
    if name := as_text(turn.get("name"), f"turn {number}: 'name'"):
        message["name"] = name
