"""Text out of Word and PDF documents."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from training.data_files.files import FileError, opened
from training.data_files.text_encoding import BLOCK

_LARGEST_DOCX = 1 << 30  # bytes unpacked; a small archive can be made to unpack to any size
_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_ALTERNATIVE = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
# What stands twice (a text box for old programs, text that was moved away) or is no text (tab stops).
_LEFT_OUT = {_ALTERNATIVE, f"{_WORD}del", f"{_WORD}moveFrom", f"{_WORD}pPr", f"{_WORD}rPr"}
_SIGNS = {f"{_WORD}tab": "\t", f"{_WORD}br": "\n", f"{_WORD}cr": "\n", f"{_WORD}noBreakHyphen": "-"}
# What a parser meets in a damaged document, beside the errors it knows itself.
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    EOFError,
    zlib.error,
)


def read_docx(path: Path) -> Iterator[str]:
    """The paragraphs of a Word document, those of tables too, each with \\n at its end; raises FileError."""
    from docx import Document

    try:
        with opened(path) as file:
            with zipfile.ZipFile(file) as archive:
                if sum(part.file_size for part in archive.infolist()) > _LARGEST_DOCX:
                    raise FileError(f"{path.name} unpacks to more than 1 GB: save its text in smaller documents.")
            body = Document(file).element.body
        # python-docx's own paragraphs leave out content controls and what was inserted with changes tracked.
        yield from _paragraphs(body)
    except FileError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, SyntaxError, *_DAMAGE) as error:
        raise FileError(f"{path.name} is no Word document (.docx) or a damaged one: save it anew.") from error


def _paragraphs(element: Any) -> Iterator[str]:
    for child in element:
        if child.tag == f"{_WORD}t":
            yield child.text or ""
        elif child.tag in _SIGNS:
            yield _SIGNS[child.tag]
        elif child.tag not in _LEFT_OUT:
            yield from _paragraphs(child)
            if child.tag == f"{_WORD}p":
                yield "\n"


def read_pdf(path: Path) -> Iterator[str]:
    """The text of a PDF's pages with a blank line between them; raises FileError, for a locked one as well."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    page = 0
    try:
        with opened(path) as file:
            reader = PdfReader(file)
            # Many are locked against changes only and open with an empty password.
            if reader.is_encrypted and not reader.decrypt(""):
                raise FileError(f"{path.name} is locked with a password: save it without one.")
            for page, content in enumerate(reader.pages, start=1):
                yield ("\n\n" if page > 1 else "") + _clean(content.extract_text())
    except FileError:
        raise
    except DependencyError as error:
        raise FileError(f"{path.name} is encrypted: save or print it as a PDF without encryption.") from error
    except (PyPdfError, NotImplementedError, *_DAMAGE) as error:
        where = f"is damaged after page {page:,}" if page else "is no PDF or a damaged one"
        raise FileError(f"{path.name} {where}: save or print it anew.") from error


def _clean(text: str) -> str:
    """Without what no text file could hold; some fonts give no characters for their signs."""
    valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return valid.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def in_blocks(pieces: Iterable[str]) -> Iterator[str]:
    """The same text in blocks of BLOCK characters, the last one shorter."""
    held: list[str] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= BLOCK:
            text, done = "".join(held), size // BLOCK * BLOCK
            yield from (text[start : start + BLOCK] for start in range(0, done, BLOCK))
            held, size = [text[done:]], size - done
    if size:
        yield "".join(held)
