"""Reads tools and tool calls in the spellings in use and writes them in the one that chat templates expect."""

from __future__ import annotations

from typing import Any

from training.formats.base import Row, RowError
from training.formats.values import as_text, check_plain, find_key, from_json, is_missing, kind, shown


def _objects(value: object, where: str) -> list[dict[str, Any]]:
    """A list of objects, which may be written as JSON text; empty where there is none."""
    if isinstance(value, str):
        value = from_json(value, where) if value.strip() else None
    if is_missing(value):
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RowError(f"{where} is not a list of objects")
    check_plain(value, where)
    return value


def read_tools(row: Row) -> list[dict[str, Any]] | None:
    """The tools the row offers, each as `{"type": "function", "function": {...}}`; None where it offers none."""
    key = find_key(row, "tools", "functions")
    if key is None:
        return None
    tools = [
        tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool}
        for tool in _objects(row[key], shown(key))
    ]
    return tools or None


def read_calls(value: object, where: str) -> list[dict[str, Any]]:
    """Tool calls in OpenAI's spelling, or bare ones of name and arguments; empty where there is none."""
    calls = _objects(value, where)
    return [_call(call, f"{where}, call {number}" if len(calls) > 1 else where) for number, call in enumerate(calls, 1)]


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function") or call
    if not isinstance(function, dict):
        raise RowError(f"{where}: 'function' is {kind(function)} and not an object")
    name = as_text(function.get("name"), f"{where}: 'name'")
    if not name:
        raise RowError(f"{where}: 'name' of the function is missing or empty")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = from_json(arguments, f"{where}: 'arguments'") if arguments.strip() else None
    if is_missing(arguments):
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(f"{where}: 'arguments' is {kind(arguments)} and not an object")
    check_plain(arguments, f"{where}: 'arguments'")
    number = as_text(call.get("id"), f"{where}: 'id'")
    head = {"type": "function", "id": number} if number else {"type": "function"}
    return head | {"function": {"name": name, "arguments": arguments}}


def written_call(value: object) -> object:
    """The tool call that a turn's whole text is, as ShareGPT writes it, or None when the text is something else."""
    if isinstance(value, str):
        try:
            value = from_json(value, "")
        except RowError:
            return None  # the assistant's words about a call, which stay text
    calls = value if isinstance(value, list) else [value]
    is_call = calls and all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls)
    return calls if is_call else None
