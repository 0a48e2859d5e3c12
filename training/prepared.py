"""Examples ready to be trained, in an Arrow file on the disk: written in a stream, read through a memory map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa

from datasets import Dataset
from training.chat_rendering import Span

IGNORED = -100  # what torch's cross entropy leaves out
_ROWS_A_BATCH = 1_000
# In the order in which `RecordWriter.add` gives the values.
_SCHEMA = pa.schema(
    {
        "file": pa.int32(),
        "row": pa.int64(),
        "character": pa.int64(),
        "length": pa.int32(),
        "text": pa.large_string(),
        "input_ids": pa.large_list(pa.int32()),
        "trained": pa.large_list(pa.int32()),
        "kept": pa.int32(),
        "trained_tokens": pa.int32(),
        "held_out": pa.bool_(),
        "digest": pa.int64(),
        "reason": pa.string(),
    }
)


@dataclass(frozen=True)
class Example:
    """Token ids, their labels (IGNORED where a token is not trained), and where in the user's file they come from."""

    input_ids: list[int]
    labels: list[int]
    source: str

    @property
    def trained_tokens(self) -> int:
        """Tokens that count in the loss; the first has nothing before it to be predicted from."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Record:
    """What became of one row of a file, or of one chunk of a text."""

    file: int  # its number among the files that were read
    row: int  # of a dataset, or the document of a text; from 1
    text: str = ""  # as the model reads it
    input_ids: Sequence[int] = ()  # all of them, also those behind the cutoff
    trained: Sequence[Span] = ()  # spans of tokens
    kept: int = 0  # tokens, from the first, that are used: all of them, or those before the cutoff, or none
    reason: str = ""  # why it was dropped or cut
    character: int | None = None  # of a chunk: where it begins in its file, from 0
    whole_length: int | None = None  # tokens before turns were left out, where some were
    held_out: bool = False

    @cached_property
    def trained_tokens(self) -> int:
        """Tokens among those kept that count in the loss."""
        return sum(max(0, min(end, self.kept) - max(start, 1)) for start, end in self.trained)

    @cached_property
    def digest(self) -> int:
        """Equal for records with the same tokens, of which the same are trained; of 64 bits."""
        return hash((tuple(self.input_ids), tuple(self.trained)))  # of whole numbers it is the same in every process


class RecordWriter:
    """Streams records into an Arrow file; a context manager."""

    def __init__(self, path: Path) -> None:
        self._writer = pa.ipc.new_stream(str(path), _SCHEMA)
        self._columns: list[list[Any]] = [[] for _ in _SCHEMA]
        self.written = 0  # records

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()

    def add(self, record: Record) -> None:
        """Append a record; it reaches the disk with its batch."""
        self.written += 1
        values = (
            record.file,
            record.row,
            record.character,
            len(record.input_ids) if record.whole_length is None else record.whole_length,
            record.text,
            record.input_ids,
            [border for span in record.trained for border in span],
            record.kept,
            record.trained_tokens,
            record.held_out,
            record.digest,
            record.reason,
        )
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        if len(self._columns[0]) == _ROWS_A_BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._columns[0]:
            arrays = [pa.array(column, field.type) for column, field in zip(self._columns, _SCHEMA, strict=True)]
            self._writer.write_batch(pa.record_batch(arrays, schema=_SCHEMA))
        self._columns = [[] for _ in _SCHEMA]


class Records:
    """The records of a file written by `RecordWriter`; nothing is in memory but what is looked at."""

    def __init__(self, dataset: Dataset) -> None:
        # Of Arrow's own columns: by way of the Dataset a row takes ten times as long, which short steps would notice.
        self._columns: dict[str, pa.ChunkedArray] = {name: dataset.data.column(name) for name in _SCHEMA.names}
        self._count = len(dataset)

    @classmethod
    def open(cls, path: Path) -> Records:
        """Map the file into memory."""
        return cls(Dataset.from_file(str(path)))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Record:
        ids, length = self.value("input_ids", number), self.value("length", number)
        return Record(
            file=self.value("file", number),
            row=self.value("row", number),
            text=self.value("text", number),
            input_ids=ids,
            trained=_spans(self.value("trained", number)),
            kept=self.value("kept", number),
            reason=self.value("reason", number),
            character=self.value("character", number),
            whole_length=length if length != len(ids) else None,
            held_out=self.value("held_out", number),
        )

    def value(self, name: str, number: int) -> Any:
        """One value of a record, as a plain Python object."""
        return self._columns[name][number].as_py()

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """One value a record: file, row, length, kept, trained_tokens, held_out, digest."""
        return np.asarray(self._columns[name].to_numpy())

    def texts(self) -> pa.ChunkedArray:
        """All texts, for a search."""
        return self._columns["text"]

    def reasons(self) -> pa.ChunkedArray:
        """Why each was dropped or cut; empty where it is used whole."""
        return self._columns["reason"]

    def lengths(self) -> np.ndarray[Any, Any]:
        """Tokens of each record before any cutoff; 0 where it could not be read."""
        return self.column("length")


class Examples(Sequence[Example]):
    """The examples that some of the records make, in their order."""

    def __init__(self, records: Records, numbers: np.ndarray[Any, Any]) -> None:
        self._records = records
        self.numbers = numbers
        self.lengths: list[int] = records.column("kept")[numbers].tolist()  # tokens of each example
        self._longest_first = sorted(self.lengths, reverse=True)
        self.trained_tokens: list[int] = records.column("trained_tokens")[numbers].tolist()

    @property
    def longest(self) -> int:
        """Tokens of the longest example; 0 where there is none."""
        return self.tokens_of_longest(1)

    def tokens_of_longest(self, count: int) -> int:
        """What so many examples have together at most."""
        return sum(self._longest_first[:count])

    def digests(self) -> np.ndarray[Any, Any]:
        """Of each example; equal ones have the same."""
        digests: np.ndarray[Any, Any] = self._records.column("digest")[self.numbers]
        return digests

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> list[Example]: ...
    def __getitem__(self, number: int | slice) -> Example | list[Example]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        place, value = int(self.numbers[number]), self._records.value
        ids = value("input_ids", place)[: self.lengths[number]]
        labels = [IGNORED] * len(ids)
        for start, end in _spans(value("trained", place)):
            labels[start:end] = ids[start:end]
        return Example(ids, labels, _source(value("row", place), value("character", place)))


def _spans(borders: Sequence[int]) -> list[Span]:
    """Begin and end of each, as they are written one after the other."""
    return list(zip(borders[::2], borders[1::2], strict=True))


def _source(row: int, character: int | None) -> str:
    """Where a record comes from, in words."""
    if character is None:
        return f"row {row}"
    return f"document {row}, character {character:,}"
