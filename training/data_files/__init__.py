"""Reads the user's data files: rows of a dataset, or the text of a document, piece by piece however large they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from training.data_files.documents import in_blocks, read_docx, read_pdf
from training.data_files.files import FileError, status_of
from training.data_files.json_rows import read_json, read_json_lines
from training.data_files.tables import read_delimited, read_parquet
from training.data_files.text_encoding import BLOCK, FileFacts, open_text
from training.data_files.text_encoding import facts as _facts

__all__ = ["FileError", "FileFacts", "facts", "iter_rows", "iter_text"]

_ROWS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".parquet": read_parquet,
}
_DOCUMENTS: dict[str, Callable[[Path], Iterator[str]]] = {".docx": read_docx, ".pdf": read_pdf}
_BINARY = (".parquet", *_DOCUMENTS)


def iter_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a dataset in order, no more than a row and a block held at once.

    Raises UserError naming the file and the line or row that is wrong, also after earlier rows were given.
    """
    status = status_of(path)
    read = _ROWS.get(path.suffix.lower())
    if read is None:
        raise FileError(f"{path.name} is no dataset: choose a file that ends in one of {', '.join(_ROWS)}.")
    row = None
    for row in read(path):
        yield row
    if row is None:
        what = "holds no rows: add some, or" if status.st_size and not _is_blank(path) else "is empty:"
        raise FileError(f"{path.name} {what} choose another file.")


def iter_text(path: Path) -> Iterator[str]:
    """The text of a document in consecutive blocks of at most about a million characters, with \\n at ends of lines.

    Raises UserError where the file is no text, is damaged, or holds white space only (then at the end).
    """
    status_of(path)
    blank = True
    document = _DOCUMENTS.get(path.suffix.lower())
    for block in in_blocks(document(path)) if document else _plain_text(path):
        blank = blank and not block.strip()
        yield block
    if blank:
        why = " (scanned pages need text recognition first)" if document is read_pdf else ""
        raise FileError(f"{path.name} is empty, it holds no text{why}: choose another file.")


def facts(path: Path) -> FileFacts:
    """What identifies the file and how it is encoded; raises UserError as reading would. Unchanged files are known."""
    return _facts(path, binary=path.suffix.lower() in _BINARY)


def _plain_text(path: Path) -> Iterator[str]:
    with open_text(path) as file:
        while block := file.read(BLOCK):
            yield block


def _is_blank(path: Path) -> bool:
    return path.suffix.lower() not in _BINARY and not any(block.strip() for block in _plain_text(path))
