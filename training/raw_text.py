"""Cuts raw text into documents and overlapping chunks of tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from training.encoding import Example, encode_text
from training.settings import Settings


@dataclass(frozen=True)
class Document:
    """A part of the text that shares no chunk with another; `start` is its first character in the file."""

    text: str
    start: int


def split_documents(text: str, hard_cut_string: str) -> list[Document]:
    """The documents between the hard-cut strings; empty ones are left out."""
    separator = hard_cut_string.replace("\\n", "\n")
    if not separator:
        return [Document(text, 0)]
    documents, start = [], 0
    for part in text.split(separator):
        if part.strip():
            documents.append(Document(part, start))
        start += len(part) + len(separator)
    return documents


def hold_out(documents: list[Document], share: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Documents to train on and held out, in their old order, with about `share` of the characters held out.

    Whole documents are drawn by `seed` while they fit; where none does, the end of the longest is taken.
    """
    room = share * sum(len(d.text) for d in documents)
    drawn: set[int] = set()
    for number in random.Random(seed).sample(range(len(documents)), len(documents)):
        if len(documents[number].text) <= room:
            drawn.add(number)
            room -= len(documents[number].text)
    if drawn:
        return [d for i, d in enumerate(documents) if i not in drawn], [documents[i] for i in sorted(drawn)]
    longest = max(range(len(documents)), key=lambda i: len(documents[i].text))
    head, tail = hold_out_tail(documents[longest], share)
    return [*documents[:longest], head, *documents[longest + 1 :]], [tail] if tail else []


def hold_out_tail(document: Document, share: float) -> tuple[Document, Document | None]:
    """The document without its last `share` of characters, and that tail, parted at a line's or a word's end."""
    cut = round(len(document.text) * (1 - share))
    for separator in ("\n", " "):
        found = document.text.rfind(separator, len(document.text) // 2, cut)
        if found > 0:
            cut = found + 1
            break
    head, tail = document.text[:cut], document.text[cut:]
    if not head.strip() or not tail.strip():
        return document, None
    return Document(head, document.start), Document(tail, document.start + cut)


def encode_document(tokenizer: PreTrainedTokenizerBase, document: Document, settings: Settings) -> list[Example]:
    """The document as chunks of at most the cutoff length that repeat the overlap; only the last has the end token."""
    whole = encode_text(tokenizer, document.text, "")
    ends_line = _line_ends(tokenizer, whole.input_ids) if settings.prefer_newline_cut else set()
    chunks, start = [], 0
    while True:
        end = min(start + settings.cutoff_length, len(whole.input_ids))
        if end < len(whole.input_ids):
            # Two tokens at least: of one alone, nothing is learnt.
            earliest = max(end - settings.prefer_newline_cut, start + max(settings.overlap_length, 1) + 1)
            end = next((cut for cut in range(end, earliest - 1, -1) if cut - 1 in ends_line), end)
        ids = whole.input_ids[start:end]
        source = f"document at character {document.start:,}, tokens {start:,} to {end:,}"
        chunks.append(Example(ids, list(ids), source))
        if end == len(whole.input_ids):
            return chunks
        start = min(end - settings.overlap_length, len(whole.input_ids) - 2)


def _line_ends(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> set[int]:
    """Positions of the tokens that hold a new line."""
    with_newline = {token: "\n" in tokenizer.decode([token]) for token in set(ids)}
    return {position for position, token in enumerate(ids) if with_newline[token]}
