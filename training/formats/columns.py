"""Columns that the user assigned because no format knows them, remembered in a hidden file beside the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from training.errors import UserError
from training.formats.base import Conversation, EmptyAnswer, Format, Row, Text
from training.formats.pairs import pair
from training.formats.turns import conversation, read_turns, with_system
from training.formats.values import needed_text, optional_text, shown
from training.paths import write_atomically

COLUMNS = "columns"


class Columns(BaseModel):
    """Which column holds what: a question and its answer, or a conversation, or text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str | None = None
    extra: str | None = None
    answer: str | None = None
    system: str | None = None
    text: str | None = None
    conversation: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        is_pair = self.question is not None or self.answer is not None or self.extra is not None
        if is_pair + (self.text is not None) + (self.conversation is not None) != 1:
            raise UserError("Assign either a text, or a conversation, or a question and an answer.")
        if is_pair and (self.question is None or self.answer is None):
            raise UserError("Assign both a question and an answer.")
        if self.text is not None and self.system is not None:
            raise UserError("A text has no system prompt: leave that empty.")
        used = self.used
        if len(set(used)) < len(used):
            raise UserError("Assign each column once.")
        return self

    @property
    def used(self) -> list[str]:
        """The columns that are assigned."""
        return list(self.model_dump(exclude_none=True).values())


def parse_columns(values: dict[str, Any]) -> Columns:
    """The columns in `values`, of which the empty ones are left out; raises UserError saying what does not fit."""
    try:
        return Columns.model_validate(values)
    except ValidationError as error:
        raise UserError(_first_problem(error)) from None


def columns_format(columns: Columns) -> Format:
    """A format that reads rows by the user's own assignment."""
    optional = {columns.extra, columns.system}
    needed = [column for column in columns.used if column not in optional]
    about = ", ".join(f"{role}: {column}" for role, column in columns.model_dump(exclude_none=True).items())
    return Format(COLUMNS, about, lambda row: all(c in row for c in needed), lambda row: _convert(row, columns))


def _convert(row: Row, columns: Columns) -> Conversation | Text:
    if columns.text is not None:
        return Text(needed_text(row, columns.text))
    system = optional_text(row, columns.system)
    if columns.conversation is not None:
        turns = read_turns(row.get(columns.conversation), shown(columns.conversation))
        return conversation(turns, row, system)
    assert columns.question is not None and columns.answer is not None  # the model's validator saw to it
    answer = needed_text(row, columns.answer, EmptyAnswer)
    turns = pair(needed_text(row, columns.question), answer, optional_text(row, columns.extra))
    return Conversation(with_system(turns, system))


def columns_file(data_file: Path) -> Path:
    """Where the assignment for a data file is kept."""
    return data_file.with_name(f".{data_file.name}.columns")


def load_columns(data_file: Path) -> Columns | None:
    """The assignment for a data file, None without one; raises UserError when its file is damaged."""
    path = columns_file(data_file)
    try:
        return Columns.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UserError(
            f"The columns assigned to {data_file.name} cannot be used ({_first_problem(error)}): assign them again."
        ) from None
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror}): mend its rights or delete it.") from error


def save_columns(data_file: Path, columns: Columns | None) -> None:
    """Keep the assignment for a data file, or with None forget it."""
    path = columns_file(data_file)
    if columns is None:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, columns.model_dump_json(exclude_none=True, indent=2) + "\n")


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    reason = first.get("ctx", {}).get("error")
    if isinstance(reason, UserError):
        return str(reason)
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
