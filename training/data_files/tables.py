"""Rows of tables: .csv and .tsv, whose values stay text, and .parquet with its own types."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from training.data_files.files import FileError, opened
from training.data_files.text_encoding import open_text

_DELIMITERS = ",;\t|"
_SNIFFED_ROWS = 50
_SNIFFED_TEXT = 1 << 16  # characters
_LONGEST_VALUE = 100_000_000  # characters; a forgotten quote would otherwise take in all of a large file
_BATCH = 256  # rows of a parquet file that are held at once


def read_delimited(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .csv or .tsv with a header; raises FileError naming the line where a wrong row begins.

    A missing value at a row's end is None, an empty one is "". Ends of lines inside values become \\n.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _sniffed(path)
    csv.field_size_limit(_LONGEST_VALUE)  # kept by the csv module for all readers
    with open_text(path) as file:
        # strict: a stray quote is told and not guessed at.
        records = _records(csv.reader(file, delimiter=delimiter, strict=True), path.name)
        names = next((values for _, values in records if any(value.strip() for value in values)), [])
        header = _header(names, path.name)
        for line, values in records:
            if len(values) > len(header):
                raise FileError(
                    f"{path.name}, line {line:,} has {len(values)} values for {len(header)} columns: "
                    "put values that contain the separator in double quotes."
                )
            row = dict(zip(header, values + [None] * (len(header) - len(values)), strict=True))
            row.pop("", None)
            yield row


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
        return f"{place}: a value is longer than {_LONGEST_VALUE:,} characters, perhaps a double quote is not closed."
    return f"{place}: a double quote stands inside a quoted value: write it twice."


def _header(names: list[str], file_name: str) -> list[str]:
    header = [name.strip() for name in names]
    # The first column of what pandas writes is a count without a name.
    if "" in header[1:]:
        column = header.index("", 1) + 1
        raise FileError(f"{file_name}: column {column} has no name in the first line: name or remove the column.")
    name, count = Counter(header).most_common(1)[0] if header else ("", 0)
    if count > 1:
        raise FileError(f"{file_name}: the column {name[:80]!r} stands {count} times in the first line: rename one.")
    return header


def _sniffed(path: Path) -> str:
    """The delimiter that gives the header the most columns that the first rows keep to; a comma where none does."""
    with open_text(path) as file:
        text = file.read(_SNIFFED_TEXT)
        complete = text if len(text) < _SNIFFED_TEXT else text[: text.rfind("\n") + 1] or text
    return max(_DELIMITERS, key=lambda delimiter: _fit(complete, delimiter))


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
