"""Questions with answers, and prompts with completions, under the column names people use for them."""

from __future__ import annotations

from functools import lru_cache

from training.formats.base import Conversation, EmptyAnswer, Format, Message, Row, RowError
from training.formats.turns import conversation, read_turns, row_system, with_system
from training.formats.values import as_text, find_key, from_json, is_missing, needed_text, optional_text, shown

_Names = tuple[tuple[str, str], ...]
# The first pair of which a row has both columns is taken; the very first names the format in messages.
_QUESTIONS = (
    ("question", "answer"),
    ("question", "response"),
    ("question", "output"),
    ("query", "response"),
    ("query", "answer"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("human", "bot"),
    ("human", "gpt"),
    ("input", "output"),
    ("input", "response"),
    ("q", "a"),
)
_PROMPTS = (("prompt", "completion"), ("prompt", "response"), ("prompt", "output"), ("prompt", "answer"))
_EXTRAS = ("context",)


def pair(question: str, answer: str, extra: str) -> list[Message]:
    """A question, what belongs to it on lines of its own, and its answer."""
    content = f"{question}\n{extra}" if extra else question
    return [Message(role="user", content=content), Message(role="assistant", content=answer)]


def history(row: Row) -> list[Message]:
    """The earlier turns under `history`, a list of [question, answer] that may be written as JSON text.

    Raises RowError naming the pair that is none.
    """
    key = find_key(row, "history")
    pairs = None if key is None else row[key]
    if isinstance(pairs, str) and (not pairs.strip() or pairs.lstrip().startswith("[")):  # as a table holds it
        pairs = from_json(pairs, shown(key)) if pairs.strip() else None
    if is_missing(pairs):
        return []
    if not isinstance(pairs, list):
        raise RowError(f"{shown(key)} is not a list")
    messages: list[Message] = []
    for number, turn in enumerate(pairs, start=1):
        where = f"pair {number} of {shown(key)}"
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError(f"{where} is not a question with an answer")
        question, answer = (as_text(value, where) for value in turn)
        if not answer.strip():
            raise EmptyAnswer(f"{where} has no answer")
        messages += pair(question, answer, "")
    return messages


def _columns(row: Row, names: _Names) -> tuple[str, str] | None:
    """The row's own spelling of the first of the pairs it has."""
    return _pair_of(tuple(row), names)


@lru_cache(maxsize=1024)  # rows of a file share their keys
def _pair_of(keys: tuple[str, ...], names: _Names) -> tuple[str, str] | None:
    row = dict.fromkeys(keys)
    for pair_names in names:
        question, answer = (find_key(row, name) for name in pair_names)
        if question is not None and answer is not None:
            return question, answer
    return None


def _detect(row: Row, names: _Names) -> bool:
    """Whether there is a question; rows without an answer still show what they are meant to be."""
    columns = _columns(row, names)
    return columns is not None and not is_missing(row[columns[0]])


def _convert_pair(row: Row, names: _Names) -> Conversation:
    question, answer = _columns(row, names) or names[0]
    extra = optional_text(row, find_key(row, *_EXTRAS))
    turns = pair(needed_text(row, question), needed_text(row, answer, EmptyAnswer), extra)
    return Conversation(with_system([*history(row), *turns], row_system(row)))


def _convert_prompt(row: Row) -> Conversation:
    """Either side may also be a list of messages, as TRL has it."""
    prompt, completion = _columns(row, _PROMPTS) or _PROMPTS[0]
    if not isinstance(row.get(prompt), list) and not isinstance(row.get(completion), list):
        return _convert_pair(row, _PROMPTS)
    turns = [*_side(row, prompt, "user"), *_side(row, completion, "assistant")]
    return conversation(turns, row, row_system(row))


def _side(row: Row, key: str, role: str) -> list[Message]:
    if isinstance(row.get(key), list):
        return read_turns(row[key], shown(key))
    return [Message(role=role, content=needed_text(row, key, EmptyAnswer if role == "assistant" else RowError))]


FORMATS = (
    Format(
        "question-answer",
        "question, answer",
        lambda row: _detect(row, _QUESTIONS),
        lambda row: _convert_pair(row, _QUESTIONS),
    ),
    Format("prompt-completion", "prompt, completion", lambda row: _detect(row, _PROMPTS), _convert_prompt),
)
