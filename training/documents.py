"""Divides a text into documents at its hard-cut strings, as a stream, and says which of them are held out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True)
class Piece:
    """The next part of a document's text; `character` is where it begins in the file, from 0."""

    document: int  # its number in the file, from 1
    character: int
    text: str
    ends: bool  # whether the document ends with it


@dataclass(frozen=True)
class Document:
    """What is known of a document without its text; `character` is its first in the file."""

    file: int  # its number among the files that are read
    number: int  # in the file, from 1
    character: int
    length: int  # characters
    digest: bytes
    is_blank: bool


@dataclass(frozen=True)
class HeldOut:
    """The documents (file, number) that are held out, and the one whose end is, from this character of its file on."""

    documents: frozenset[tuple[int, int]] = frozenset()
    cut_document: tuple[int, int] | None = None
    from_character: int = 0


@dataclass(frozen=True)
class Part:
    """A piece of text with the side it is on; a part of a document that begins or ends within it says so."""

    document: int
    character: int
    text: str
    held_out: bool
    first: bool  # of its side of the document
    last: bool
    opens: bool  # it is the document's beginning
    closes: bool  # it is the document's end


def pieces(blocks: Iterable[str], hard_cut_string: str) -> Iterator[Piece]:
    """The documents between the hard-cut strings (in which \\n is a new line), block by block."""
    separator = hard_cut_string.replace("\\n", "\n")
    number, character, kept = 1, 0, ""
    for block in blocks:
        *whole, kept = (kept + block).split(separator) if separator else [kept + block]
        for text in whole:
            yield Piece(number, character, text, ends=True)
            number, character = number + 1, character + len(text) + len(separator)
        # The end may be the beginning of a hard-cut string.
        sure = len(kept) - max(0, len(separator) - 1)
        if sure > 0:
            yield Piece(number, character, kept[:sure], ends=False)
            character, kept = character + sure, kept[sure:]
    yield Piece(number, character, kept, ends=True)


def find_documents(file: int, text_pieces: Iterable[Piece]) -> Iterator[Document]:
    """The documents of a file's text, in order, blank ones too."""
    character = length = 0
    digest, is_blank, begun = blake2b(digest_size=16), True, False
    for piece in text_pieces:
        if not begun:
            character, length, digest, is_blank, begun = piece.character, 0, blake2b(digest_size=16), True, True
        length += len(piece.text)
        digest.update(piece.text.encode(errors="surrogatepass"))
        is_blank = is_blank and not piece.text.strip()
        if piece.ends:
            yield Document(file, piece.document, character, length, digest.digest(), is_blank)
            begun = False


def hold_out(documents: list[Document], share: float, seed: int) -> HeldOut:
    """What to hold out so that it is about `share` of the characters, drawn by `seed`; equal documents stay together.

    Whole documents are drawn while they fit; where that leaves more than half of the share, it is filled up with the
    end of the longest.
    """
    groups: dict[bytes, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.digest, []).append(document)
    wanted = room = share * sum(d.length for d in documents)
    drawn: set[tuple[int, int]] = set()
    for group in random.Random(seed).sample(list(groups.values()), len(groups)):
        length = sum(d.length for d in group)
        if length <= room:
            drawn |= {(d.file, d.number) for d in group}
            room -= length
    alone = [group[0] for group in groups.values() if len(group) == 1 and (group[0].file, group[0].number) not in drawn]
    if room <= wanted / 2 or not alone:
        return HeldOut(frozenset(drawn))
    longest = max(alone, key=lambda d: d.length)
    return HeldOut(
        frozenset(drawn),
        cut_document=(longest.file, longest.number),
        from_character=longest.character + longest.length - min(round(room), longest.length // 2),
    )


def parts(file: int, text_pieces: Iterable[Piece], held_out: HeldOut) -> Iterator[Part]:
    """A file's pieces with the side each is on; the piece in which a document is cut becomes two."""
    first = True
    behind_cut = False
    for piece in text_pieces:
        is_held_out = (file, piece.document) in held_out.documents
        cut = 0
        if (file, piece.document) == held_out.cut_document:
            is_held_out = behind_cut
            if not behind_cut and held_out.from_character < piece.character + len(piece.text):
                cut = _good_cut(piece.text, held_out.from_character - piece.character, alone=first and piece.ends)
        if cut:
            yield Part(piece.document, piece.character, piece.text[:cut], False, first, True, first, False)
            behind_cut, is_held_out = True, True
        yield Part(
            document=piece.document,
            character=piece.character + cut,
            text=piece.text[cut:],
            held_out=is_held_out,
            first=first or cut > 0,
            last=piece.ends,
            opens=first and not cut,
            closes=piece.ends,
        )
        first = piece.ends


def _good_cut(text: str, near: int, *, alone: bool) -> int:
    """Where to part the text at or before `near`: at a line's or a word's end; 0 where one side would be blank."""
    near = max(near, 1)
    for separator in ("\n", " "):
        found = text.rfind(separator, near // 2, near)
        if found > 0:
            near = found + 1
            break
    return near if not alone or (text[:near].strip() and text[near:].strip()) else 0
