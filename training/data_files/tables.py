"""Rows of tables: .csv and .tsv, whose values stay text, and .parquet with its own types."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from training.data_files.files import LONGEST_ROW, FileError, bounded_lines, opened
from training.data_files.text_encoding import open_text

_DELIMITERS = ",;\t|"
# A first line by which Excel is told the delimiter.
_DECLARED = re.compile(r'sep=([^\w\s"]|\t)[ \t]*(?:\n|\Z)', re.IGNORECASE)
_SNIFFED_ROWS = 50
_SNIFFED_TEXT = 1 << 16  # characters
_BATCH = 256  # rows of a parquet file that are held at once


def read_delimited(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .csv or .tsv with a header; raises FileError naming the line where a wrong row begins.

    A missing value at a row's end is None, an empty one is "". Ends of lines inside values become \\n.
    """
    delimiter, is_declared = _delimiter(path)
    # A forgotten quote would otherwise take in all of a large file.
    csv.field_size_limit(LONGEST_ROW)  # kept by the csv module for all readers
    with open_text(path) as file:
        # strict: a stray quote is told and not guessed at.
        records = _records(csv.reader(bounded_lines(file, path.name), delimiter=delimiter, strict=True), path.name)
        if is_declared:
            next(records)
        names = next((values for _, values in records if any(value.strip() for value in values)), [])
        header = _header(names, path.name)
        for line, values in records:
            if len(values) > len(header):
                _check_rest(values, len(header), len(names), f"{path.name}, line {line:,}")
            row = dict(zip(header, values + [None] * (len(header) - len(values)), strict=False))
            row.pop("", None)
            yield row


def _check_rest(values: list[str], columns: int, written: int, place: str) -> None:
    """Raise FileError unless what stands behind the columns that have a name is blank and belongs to the header."""
    if len(values) > written:
        raise FileError(
            f"{place} has {len(values)} values for {columns} columns: "
            "put values that contain the separator in double quotes."
        )
    number = next((number for number, value in enumerate(values, 1) if number > columns and value.strip()), None)
    if number:
        raise FileError(
            f"{place} has a value in column {number}, and column {number} has no name in the first line: name or "
            "remove the column."
        )


def _records(reader: Any, name: str) -> Iterator[tuple[int, list[Any]]]:
    """The records that are not blank, each with the line where it begins."""
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise FileError(_in_words(str(error), f"{name}, line {line:,}")) from None
        if values is None:
            return
        if values:
            yield line, values


def _in_words(error: str, place: str) -> str:
    if "unexpected end of data" in error:
        return f"{place}: the row that begins here has a double quote that is never closed: close or double it."
    if "field limit" in error:
        return f"{place}: a value is longer than {LONGEST_ROW:,} characters, perhaps a double quote is not closed."
    return f"{place}: a double quote stands inside a quoted value: write it twice."


def _header(names: list[str], file_name: str) -> list[str]:
    header = [name.strip() for name in names]
    while header and not header[-1]:  # a separator at the end of the line; what stands under it has to be blank
        header.pop()
    # The first column of what pandas writes is a count without a name.
    if "" in header[1:]:
        column = header.index("", 1) + 1
        raise FileError(f"{file_name}: column {column} has no name in the first line: name or remove the column.")
    name, count = Counter(header).most_common(1)[0] if header else ("", 0)
    if count > 1:
        raise FileError(f"{file_name}: the column {name[:80]!r} stands {count} times in the first line: rename one.")
    return header


def _delimiter(path: Path) -> tuple[str, bool]:
    """The delimiter, and whether the first line declares it and is no header.

    Else the one that gives the header the most columns that the first rows keep to; a comma where none does.
    """
    with open_text(path) as file:
        text = file.read(_SNIFFED_TEXT)
    if declared := _DECLARED.match(text):
        return declared[1], True
    if path.suffix.lower() == ".tsv":
        return "\t", False
    complete = text if len(text) < _SNIFFED_TEXT else text[: text.rfind("\n") + 1] or text
    return max(_DELIMITERS, key=lambda delimiter: _fit(complete, delimiter)), False


def _fit(text: str, delimiter: str) -> tuple[float, int]:
    """The share of rows that have as many values as the header, and how many these are."""
    lengths = [len(row) for row in islice(csv.reader(io.StringIO(text), delimiter=delimiter), _SNIFFED_ROWS) if row]
    if not lengths or lengths[0] == 1:
        return 0, 1
    return lengths.count(lengths[0]) / len(lengths), lengths[0]


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .parquet file; raises FileError naming the rows where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with opened(path) as file, pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise FileError(f"{path.name} has the column {twice[0][:80]!r} more than once: rename one.")
            for batch in table.iter_batches(batch_size=_BATCH):
                yield from (rows := batch.to_pylist())
                row += len(rows)
    except FileError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        where = f"is damaged after row {row:,}" if row else "is no parquet file or a damaged one"
        raise FileError(f"{path.name} {where}: copy or export it again.") from error
