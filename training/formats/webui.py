"""Format files of text-generation-webui: for each set of columns a pattern such as `User: %instruction%`.

https://github.com/oobabooga/text-generation-webui, modules/training.py, defines what they mean.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import UserError
from training.formats.base import EmptyAnswer, Format, Row, RowError, Text
from training.formats.values import as_text, is_missing, shown

FORMAT_FILE_SUFFIX = ".json"
_PLACEHOLDER = re.compile(r"%(\w+)%")


@dataclass(frozen=True)
class _Pattern:
    """The literal texts of a pattern, with a column between each two; the last column holds the answer."""

    known: frozenset[str]
    literals: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def answer(self) -> str:
        return self.columns[-1]

    def fill(self, texts: dict[str, str]) -> Text:
        # In one pass, so that a value that looks like a placeholder stays text.
        parts = [p for literal, c in zip(self.literals[:-1], self.columns, strict=True) for p in (literal, texts[c])]
        start = len("".join(parts[:-1]))
        return Text("".join((*parts, self.literals[-1])), ((start, start + len(parts[-1])),))


def _split(key: str) -> frozenset[str]:
    return frozenset(name.strip() for name in key.split(",")) - {""}


def _parse_pattern(key: str, pattern: str) -> _Pattern:
    for text in (key, pattern):
        as_text(text, f"the entry {shown(key)}")  # half characters would break every row
    known = _split(key)
    names = "|".join(re.escape(name) for name in sorted(known))
    parts = re.split(f"%({names})%", pattern) if known else [pattern]
    if len(parts) == 1:
        raise UserError(f"the entry {shown(key)} uses none of its columns")
    for literal in parts[::2]:
        if unknown := _PLACEHOLDER.search(literal):
            raise UserError(f"the entry {shown(key)} does not name the column {shown(unknown[1])} that it uses")
    return _Pattern(known, tuple(parts[::2]), tuple(parts[1::2]))


def is_format_file(value: object) -> bool:
    """Whether a parsed JSON file is such a format file: columns as keys, and under them patterns that use some."""
    if not isinstance(value, dict) or not all(isinstance(pattern, str) for pattern in value.values()):
        return False
    return any(f"%{name}%" in pattern for key, pattern in value.items() for name in _split(key))


def _read_patterns(path: Path) -> list[_Pattern]:
    """The patterns of a file in its order; raises UserError saying which entry is wrong."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"The format file {path.name} cannot be read ({error.strerror}): choose another.") from error
    except (ValueError, RecursionError) as error:
        what = "UTF-8 text" if isinstance(error, UnicodeDecodeError) else "valid JSON"
        raise UserError(f"The format file {path.name} is not {what}: mend it or choose another.") from None
    if not is_format_file(value):
        raise UserError(
            f"{path.name} is no format file: it has to be an object of patterns such as "
            '{"instruction,output": "User: %instruction%\\nAssistant: %output%"}.'
        )
    try:
        patterns = [_parse_pattern(key, pattern) for key, pattern in value.items()]
    except UserError as error:
        raise UserError(f"In the format file {path.name} {error}.") from None
    if len({pattern.known for pattern in patterns}) < len(patterns):
        raise UserError(f"In the format file {path.name} two entries are for the same columns: delete one.")
    return patterns


def load_format_file(path: Path) -> Format:
    """The format in a file, called like it; raises UserError when the file is none or a broken one."""
    patterns = {pattern.known: pattern for pattern in _read_patterns(path)}
    named = frozenset[str]().union(*patterns)

    def held(row: Row) -> frozenset[str]:
        """The columns with text in them. Numbers count in columns that the file names; elsewhere they are mere ids."""
        return frozenset(key for key, value in row.items() if _has_text(value, key in named))

    def convert(row: Row) -> Text:
        keys = held(row)
        pattern = patterns.get(keys)
        if pattern is None:
            raise _unknown_columns(keys, patterns)
        return pattern.fill({column: as_text(row[column], shown(column)) for column in pattern.known})

    return Format(path.name, _sets(patterns), lambda row: held(row) in patterns, convert)


def _has_text(value: object, or_number: bool) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return or_number and isinstance(value, (int, float)) and not isinstance(value, bool) and not is_missing(value)


def _unknown_columns(keys: frozenset[str], patterns: dict[frozenset[str], _Pattern]) -> RowError:
    for known, pattern in patterns.items():
        if keys | {pattern.answer} == known:
            return EmptyAnswer(f"{shown(pattern.answer)} is missing or empty")
    has = ", ".join(map(shown, sorted(keys))) or "no column"
    return RowError(f"it has text in {has}, but the format file is for {_sets(patterns)}")


def _sets(patterns: dict[frozenset[str], _Pattern]) -> str:
    return " or ".join(", ".join(map(shown, sorted(known))) for known in patterns)


_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {{- message['content'] + '\\n' -}}
    {%- elif message['role'] == 'user' -%}
        {{- prefix + message['content'] + middle -}}
    {%- elif message['role'] == 'assistant' and not message['tool_calls'] -%}
        {%- generation -%}
            {{- message['content'] + suffix -}}
            {{- eos_token or '' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- raise_exception('This format has no place for tools.') -}}
    {%- endif -%}
{%- endfor -%}
"""


def chat_template_of(path: Path) -> str | None:
    """A Jinja chat template for models trained with the file; None when no pattern is one question and one answer.

    Raises UserError as load_format_file does.
    """
    for pattern in _read_patterns(path):
        if len(pattern.columns) == len(set(pattern.columns)) == 2:
            # A JSON string is the same string in Jinja, if it leaves the characters beyond 16 bits as they are.
            prefix, middle, suffix = (json.dumps(literal, ensure_ascii=False) for literal in pattern.literals)
            return f"{{%- set prefix, middle, suffix = {prefix}, {middle}, {suffix} -%}}\n{_TEMPLATE}"
    return None
