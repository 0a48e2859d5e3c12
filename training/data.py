"""From a data file to the examples that are trained and evaluated, with a count of everything that was left out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from training import raw_text
from training.dataset_files import read_rows, read_text
from training.encoding import IGNORED, Example, encode_conversation, encode_text
from training.errors import UserError
from training.formats import AUTO, Format, Row, RowError, choose_format
from training.paths import Folders, data_file
from training.settings import Settings

_FALLBACK_TEMPLATE = Path(__file__).parent / "templates" / "alpaca.jinja"
T = TypeVar("T")
_SHOWN_ROWS = 5  # rows named in a message; the receipt lists all


@dataclass(frozen=True)
class LeftOut:
    """A row that is not trained as it stands, and why."""

    row: int  # counted from 1
    reason: str


@dataclass
class Source:
    """What became of one data file, for the receipt."""

    file: str
    sha256: str
    format: str
    rows_read: int = 0
    dropped: list[LeftOut] = field(default_factory=list)
    cut: list[LeftOut] = field(default_factory=list)

    def summary(self) -> str:
        """One sentence about what was dropped or cut; empty when nothing was."""
        parts = [
            f"{len(rows)} of {self.rows_read} rows of {self.file} were {verb}: {_reasons(rows)}"
            for verb, rows in (("dropped", self.dropped), ("cut", self.cut))
            if rows
        ]
        return " ".join(parts)


@dataclass
class PreparedData:
    """The examples in the order of the file, and what became of every row."""

    train: list[Example]
    evaluation: list[Example]
    sources: list[Source]


def add_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give a tokenizer without a chat template the Alpaca one; returns a sentence about it, or an empty one."""
    if tokenizer.chat_template:
        return ""
    # A model that begins every text with a start token does badly without it.
    starts = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    template = _FALLBACK_TEMPLATE.read_text(encoding="utf-8")
    tokenizer.chat_template = "{{- bos_token -}}" + template if starts else template
    return "The base model has no chat template: the Alpaca template is used, and saved with the LoRA."


def prepare(settings: Settings, folders: Folders, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Read, encode and divide the data as the settings say; raises UserError where nothing is left to train on."""
    path = data_file(folders, settings.raw_text or settings.dataset)
    if settings.raw_text:
        prepared = _prepare_text(path, settings, tokenizer)
    else:
        examples, source = _encode_rows(path, settings, tokenizer)
        prepared = PreparedData(examples, [], [source])
        if settings.held_out_share and not settings.evaluation_file:
            prepared.train, prepared.evaluation = hold_out(examples, settings.held_out_share, settings.seed)
    if settings.evaluation_file:
        prepared.evaluation, source = _evaluation_examples(
            data_file(folders, settings.evaluation_file), settings, tokenizer
        )
        prepared.sources.append(source)
    if not prepared.train:
        why = prepared.sources[0].summary()
        raise UserError(
            f"Nothing is left to train on. {why}" if why else "Nothing is left to train on: lower the held-out share."
        )
    return prepared


def _evaluation_examples(
    path: Path, settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Example], Source]:
    if settings.raw_text:
        prepared = _prepare_text(path, settings.model_copy(update={"held_out_share": 0.0}), tokenizer)
        return prepared.train, prepared.sources[0]
    return _encode_rows(path, settings, tokenizer)


def _prepare_text(path: Path, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Chunks of the file's documents, those held out apart."""
    documents = raw_text.split_documents(read_text(path), settings.hard_cut_string)
    if not documents:
        raise UserError(f"{path.name} holds no text beside its hard-cut strings: choose another file or string.")
    source = Source(path.name, _sha256(path), "raw text", rows_read=len(documents))
    held_out: list[raw_text.Document] = []
    if settings.held_out_share and not settings.evaluation_file:
        documents, held_out = raw_text.hold_out(documents, settings.held_out_share, settings.seed)
    return PreparedData(
        [chunk for document in documents for chunk in raw_text.encode_document(tokenizer, document, settings)],
        [chunk for document in held_out for chunk in raw_text.encode_document(tokenizer, document, settings)],
        [source],
    )


def _encode_rows(path: Path, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Example], Source]:
    rows = read_rows(path)
    try:
        chosen = choose_format(rows, settings.data_format)
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from None
    source = Source(path.name, _sha256(path), chosen.name, rows_read=len(rows))
    examples = []
    for number, row in enumerate(rows, start=1):
        try:
            example = _encode_row(chosen, row, number, settings, tokenizer)
        except RowError as error:
            source.dropped.append(LeftOut(number, str(error)))
            continue
        if example.trained_tokens == 0:
            source.dropped.append(LeftOut(number, "too short to learn anything from"))
        elif kept := _within_cutoff(example, number, settings, source):
            examples.append(kept)
    if not examples:
        too_long = all("cutoff" in left_out.reason for left_out in source.dropped)
        other = "" if settings.data_format == AUTO else " Is it the right data format? auto finds it."
        hint = " Raise the cutoff length." if too_long else other
        raise UserError(f"No row of {path.name} can be used. {source.summary()}.{hint}")
    return examples, source


def _encode_row(
    chosen: Format, row: Row, number: int, settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> Example:
    converted = chosen.convert(row)
    if isinstance(converted, str):
        return encode_text(tokenizer, converted, f"row {number}")
    return encode_conversation(tokenizer, converted, f"row {number}", answers_only=settings.train_on_answers_only)


def _within_cutoff(example: Example, number: int, settings: Settings, source: Source) -> Example | None:
    """The example if it is short enough, or cut, or None; what happens is written down in `source`."""
    length, cutoff = len(example.input_ids), settings.cutoff_length
    if length <= cutoff:
        return example
    left_out = LeftOut(number, f"longer than the cutoff of {cutoff} tokens")
    if settings.too_long == "drop the example":
        source.dropped.append(left_out)
        return None
    cut = Example(example.input_ids[:cutoff], example.labels[:cutoff], example.source)
    if cut.trained_tokens == 0:
        source.dropped.append(LeftOut(number, f"nothing to learn before the cutoff of {cutoff} tokens"))
        return None
    source.cut.append(left_out)
    return cut


def hold_out(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Examples for training and for evaluation, drawn by `seed`; equal ones stay on one side."""
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(tuple(example.input_ids), []).append(example)
    train, evaluation = _divide(list(groups.values()), share, seed)
    return [e for group in train for e in group], [e for group in evaluation for e in group]


def _divide(items: list[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Items to train on and items held out, both in their old order; at least one is held out where there are two."""
    count = min(max(1, round(len(items) * share)), len(items) - 1)
    held_out = set(random.Random(seed).sample(range(len(items)), count))
    return [x for i, x in enumerate(items) if i not in held_out], [x for i, x in enumerate(items) if i in held_out]


def collate(examples: Sequence[Example], pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors of shape (examples, longest): input_ids, attention_mask, labels; padded on the right."""
    longest = max(len(e.input_ids) for e in examples)

    def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=device)

    return {
        "input_ids": padded([e.input_ids for e in examples], pad_token_id),
        "attention_mask": padded([[1] * len(e.input_ids) for e in examples], 0),
        "labels": padded([e.labels for e in examples], IGNORED),
    }


def _reasons(rows: list[LeftOut]) -> str:
    """The reasons with the rows they concern, the most frequent first."""
    by_reason: dict[str, list[int]] = {}
    for left_out in rows:
        by_reason.setdefault(left_out.reason, []).append(left_out.row)
    parts = []
    for reason, numbers in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(map(str, numbers[:_SHOWN_ROWS])) + (", ..." if len(numbers) > _SHOWN_ROWS else "")
        parts.append(f"{reason} (row{'s' if len(numbers) > 1 else ''} {shown})")
    return "; ".join(parts)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
