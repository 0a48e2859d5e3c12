"""Finds out how a file's text is encoded, and proves it over the whole file before anything is read from it.

A mark at the start decides; then UTF-8, which other encodings hardly ever are by accident; then UTF-16 by its NUL
bytes; then a detection library, on what is no ASCII.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from training.data_files.files import FileError, reading, status_of

BLOCK = 1 << 20  # how much is read at a time
_SAMPLE = 1 << 16  # bytes that are enough to tell an encoding
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with BOM"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),  # before UTF-16, whose mark is how it begins
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
# In use before UTF-8; where a file could be of several, the first is taken. More code pages would only add mistakes.
_LEGACY = {
    "cp1252": "Windows-1252",
    "cp1250": "Windows-1250",
    "cp1251": "Windows-1251",
    "cp1253": "Windows-1253",
    "cp1254": "Windows-1254",
    "cp1255": "Windows-1255",
    "cp1256": "Windows-1256",
    "cp1257": "Windows-1257",
    "koi8_r": "KOI8-R",
    "mac_roman": "Mac Roman",
    "cp932": "Shift-JIS",
    "euc_jp": "EUC-JP",
    "gb18030": "GBK",
    "big5": "Big5",
    "cp949": "Korean (CP949)",
}
_BINARY = {
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive or an office document",
    b"%PDF": "a PDF document",
    b"PAR1": "a parquet file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
}
# A stretch is cut out only this far from other characters, which may be half ASCII, and whose words are needed.
_PLAIN = rb'[^\r\n"\x80-\xff]'
_BETWEEN = re.compile(rb'[\r\n"]+|(?<=%b{40})%b{200,}(?=%b{40})' % (_PLAIN, _PLAIN, _PLAIN))
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


@dataclass(frozen=True)
class FileFacts:
    """What identifies a file's content: its SHA-256, and its encoding in words ("" for binary kinds)."""

    sha256: str
    encoding: str


@dataclass(frozen=True)
class _Bytes:
    """What one pass over a file showed: its first bytes, and where UTF-8 fails and the first NUL stands, if at all."""

    sha256: str
    start: bytes
    not_utf8: int | None
    nul: int | None


def facts(path: Path, *, binary: bool) -> FileFacts:
    """The facts of a file; raises FileError for one that cannot be read or is not `binary` and no text.

    They are remembered, so that an unchanged file is read once.
    """
    return _facts_and_codec(path, binary)[0]


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The file opened as text, each end of line as \\n; raises FileError for one that is no text."""
    codec = _facts_and_codec(path, binary=False)[1]
    with reading(path), path.open(encoding=codec) as file:
        yield file


def _facts_and_codec(path: Path, binary: bool) -> tuple[FileFacts, str]:
    status = status_of(path)
    return _remembered(path, status.st_size, status.st_mtime_ns, binary)


@lru_cache(maxsize=1024)
def _remembered(path: Path, _size: int, _mtime_ns: int, binary: bool) -> tuple[FileFacts, str]:
    """Size and time are only there to tell a changed file from the old one."""
    seen = _pass_over(path)
    codec, words = ("", "") if binary else _guess(path, seen)
    if codec not in ("", "utf-8"):
        _prove(path, codec, words)
    return FileFacts(seen.sha256, words), codec


def _pass_over(path: Path) -> _Bytes:
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    start, not_utf8, nul, position = b"", None, None, 0
    with reading(path), path.open("rb") as file:
        while True:
            block = file.read(BLOCK)
            digest.update(block)
            start = start or block[:_SAMPLE]
            if nul is None and (found := block.find(b"\0")) >= 0:
                nul = position + found
            position += len(block)
            try:
                if not_utf8 is None:
                    decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                not_utf8 = position - len(error.object) + error.start
            if not block:
                return _Bytes(digest.hexdigest(), start, not_utf8, nul)


def _guess(path: Path, seen: _Bytes) -> tuple[str, str]:
    """The name of the codec, and the words for it."""
    for mark, codec, words in _MARKS:
        if seen.start.startswith(mark):
            return codec, words
    if seen.nul is None and seen.not_utf8 is None:
        return "utf-8", "UTF-8"
    for beginning, what in _BINARY.items():
        if seen.start.startswith(beginning):
            raise FileError(f"{path.name} is {what} and no text, whatever its name says: choose a text file.")
    if seen.nul is not None:
        codec_16 = _utf16_without_mark(seen)
        if codec_16 is None:
            raise FileError(
                f"{path.name} is no text, for it holds NUL bytes (the first is byte {seen.nul + 1:,}): "
                "choose a text file, or save this one anew as UTF-8."
            )
        return codec_16, "UTF-16"
    position = seen.not_utf8 or 0
    sample = _sample(path, position)
    if _mostly_utf8(sample):
        raise FileError(
            f"{path.name} is UTF-8 but for a mistake at {_place(path, position)}: mend it or copy it again."
        )
    detected = _detect(sample)
    if detected is None:
        raise FileError(
            f"{path.name} is not UTF-8 (see {_place(path, position)}) and its encoding was not recognised: "
            "save it as UTF-8 and choose it again."
        )
    return detected, f"{_LEGACY[detected]} (detected)"


def _utf16_without_mark(seen: _Bytes) -> str | None:
    """Which UTF-16 the bytes are, if any: the one that makes sound text with more ASCII in it."""
    sample = seen.start[: len(seen.start) // 2 * 2]
    shares = {codec: _ascii_share(sample, codec) for codec in ("utf-16-le", "utf-16-be")}
    codec = max(shares, key=lambda codec: shares[codec])
    # Bytes that are clean text without their NULs are UTF-16 only where most characters are of Latin script.
    clean = seen.not_utf8 is None and not _CONTROL.search(sample.replace(b"\0", b"").decode("utf-8", "ignore"))
    return codec if shares[codec] >= (0.5 if clean else 0.02) else None


def _ascii_share(sample: bytes, codec: str) -> float:
    """The share of ASCII in the decoded sample; 0 where it has what no text has, such as unassigned characters."""
    text = codecs.getincrementaldecoder(codec)("replace").decode(sample)
    odd = (c for c in set(text) if unicodedata.category(c) in ("Cc", "Cn", "Co") and not c.isspace())
    if not text or "\ufffd" in text or any(odd):
        return 0
    return sum(character.isascii() for character in text) / len(text)


def _sample(path: Path, position: int) -> bytes:
    """What is no ASCII at the start of the file and around `position`, in whole lines or quoted strings."""
    around = max(0, position - _SAMPLE // 2)
    with reading(path), path.open("rb") as file:
        pieces = _pieces(file.read(_SAMPLE), whole_start=True)
        file.seek(around)
        pieces += _pieces(file.read(_SAMPLE), whole_start=False) if around else []
    return b"\n".join(piece for piece in pieces if not piece.isascii())


def _pieces(block: bytes, *, whole_start: bool) -> list[bytes]:
    """Lines and quoted strings without long stretches of ASCII, and without those that may be cut in a character."""
    pieces = _BETWEEN.split(block)
    if len(pieces) < 3:
        return pieces
    return pieces[0 if whole_start else 1 : -1 if len(block) == _SAMPLE else None]


def _mostly_utf8(sample: bytes) -> bool:
    """Other encodings hardly ever make valid UTF-8; taken for one of them, every letter like é would be garbled."""
    text = sample.decode("utf-8", "replace")
    mistakes = text.count("\ufffd")
    return sum(not character.isascii() for character in text) >= 2 * mistakes


def _detect(sample: bytes) -> str | None:
    """The codec that makes the most sensible text of the sample, or None where none does."""
    from charset_normalizer import from_bytes  # only files that are not UTF-8 need it

    found: dict[str, tuple[float, float, int]] = {}
    order = list(_LEGACY)
    for match in from_bytes(sample, steps=20, chunk_size=1024, cp_isolation=order):
        if _CONTROL.search(str(match)):
            continue
        for codec in {match.encoding, *match.could_be_from_charset} & _LEGACY.keys():
            found[codec] = (round(match.chaos, 2), -round(match.coherence, 2), order.index(codec))
    return min(found, key=lambda codec: found[codec], default=None)


def _prove(path: Path, codec: str, words: str) -> None:
    """Decode the whole file, so that a mistake is told with its place and before any row is used."""
    decoder, position, line = codecs.getincrementaldecoder(codec)(), 0, 1
    with reading(path), path.open("rb") as file:
        while True:
            block = file.read(BLOCK)
            position += len(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at = position - len(error.object) + error.start
                # A byte that ends a line in other encodings may be half a character here.
                wide = codec.startswith(("utf-16", "utf-32"))
                raise FileError(
                    f"{path.name} begins as {words} but is none from {_place(path, at, lines=not wide)} on: "
                    "save it as UTF-8 and choose it again."
                ) from None
            if (at := text.find("\0")) >= 0:
                line += text.count("\n", 0, at)
                raise FileError(
                    f"{path.name} is no text, for it holds NUL characters (the first on line {line:,}): "
                    "choose a text file, or save this one anew as UTF-8."
                )
            line += text.count("\n")
            if not block:
                return


def _place(path: Path, position: int, *, lines: bool = True) -> str:
    """A byte's number and line, both from 1."""
    if not lines:
        return f"byte {position + 1:,}"
    line, left = 1, position
    with reading(path), path.open("rb") as file:
        while left > 0 and (block := file.read(min(BLOCK, left))):
            line += block.count(b"\n")
            left -= len(block)
    return f"byte {position + 1:,}, line {line:,}"
