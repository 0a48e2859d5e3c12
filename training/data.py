"""From data files to the examples that are trained and evaluated, with a count of everything that was left out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from training.chat_templates import OWN, ChatTemplate, put_template, use_template
from training.chunking import Chunk, make_chunks
from training.data_cache import cached, data_key
from training.data_files import facts, iter_rows, iter_text
from training.dataset_format import dataset_format, format_file
from training.documents import HeldOut, find_documents, hold_out, parts, pieces
from training.encoding import Encoder
from training.errors import UserError
from training.formats import AUTO, FORMAT_FILE_SUFFIX, chat_template_of
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders, data_files
from training.prepared import Examples, Record, Records, RecordWriter
from training.rows import RAW_TEXT, RowReader, Source
from training.settings import Settings

Count = Callable[[int], None]  # is told how many records there are, now and then
_COUNT_EVERY = 500


@dataclass
class PreparedData:
    """The records of all rows, the examples they make in the order of the files, and what became of every row."""

    records: Records
    train: Examples
    evaluation: Examples
    sources: list[Source]
    evaluation_sources: list[Source] = field(default_factory=list)  # of an evaluation file
    also_trained: int = 0  # evaluation examples that are equal to one that is trained

    @property
    def all_sources(self) -> list[Source]:
        """Of the training data and of the evaluation file."""
        return [*self.sources, *self.evaluation_sources]

    def warnings(self) -> list[str]:
        """Sentences about what was left out, and what would make the evaluation too good."""
        said = [summary for source in self.all_sources if (summary := source.summary())]
        if self.also_trained:
            said.append(
                f"{self.also_trained:,} of {len(self.evaluation):,} evaluation examples are trained on too, so the "
                "evaluation loss will look better than it is: take them out of one of the files."
            )
        return said


def set_template(tokenizer: PreTrainedTokenizerBase, settings: Settings, folders: Folders) -> str:
    """Put the chat template of the settings on the tokenizer; returns what the user should know about it.

    A format file brings its own, so that chat writes questions as the training did.
    """
    if settings.data_format.endswith(FORMAT_FILE_SUFFIX) and settings.chat_template == OWN and not settings.raw_text:
        template = chat_template_of(format_file(folders, settings.data_format))
        if template:
            put_template(tokenizer, ChatTemplate(settings.data_format, "", template))
            return f"Chat will write questions as {settings.data_format} does: that is saved with the LoRA."
    return use_template(tokenizer, folders, settings.chat_template)


def prepare(
    settings: Settings, folders: Folders, tokenizer: PreTrainedTokenizerBase, count: Count = lambda _: None
) -> PreparedData:
    """Read, encode and divide the data as the settings say; raises UserError where nothing is left to train on.

    The tokenizer has its chat template already. `count` may raise to end the work; nothing is left behind then.
    """
    data = inspect(settings, folders, tokenizer, count)
    if not len(data.train):
        raise UserError(nothing_left(settings, data.sources))
    return data


def inspect(
    settings: Settings, folders: Folders, tokenizer: PreTrainedTokenizerBase, count: Count = lambda _: None
) -> PreparedData:
    """As `prepare`, but also data of which nothing can be trained, to show why."""
    names = settings.raw_text or settings.dataset
    held_out = bool(settings.held_out_share and not settings.evaluation_file)
    records, sources = _records(names, settings, folders, tokenizer, count, held_out=held_out)
    evaluated = _held_out(records, settings) if held_out else np.zeros(len(records), dtype=bool)
    used = records.column("kept") > 0
    train = Examples(records, np.flatnonzero(used & ~evaluated))
    evaluation = Examples(records, np.flatnonzero(used & evaluated))
    if settings.evaluation_file:
        apart, more = _records([settings.evaluation_file], settings, folders, tokenizer, count, held_out=False)
        evaluation = Examples(apart, np.flatnonzero(apart.column("kept") > 0))
        if not len(evaluation):
            raise UserError(f"Evaluation file: {nothing_left(settings, more)}")
        also_trained = int(np.isin(evaluation.digests(), train.digests()).sum())
        return PreparedData(records, train, evaluation, sources, more, also_trained)
    return PreparedData(records, train, evaluation, sources)


def _records(
    names: Sequence[str],
    settings: Settings,
    folders: Folders,
    tokenizer: PreTrainedTokenizerBase,
    count: Count,
    *,
    held_out: bool,
) -> tuple[Records, list[Source]]:
    """The records of these files, from the cache where it has them, and what became of each file."""
    files = data_files(folders, names, TEXT_SUFFIXES if settings.raw_text else DATASET_SUFFIXES)

    def write(writer: RecordWriter) -> list[Source]:
        if settings.raw_text:
            read = _text_files(files, settings, tokenizer, held_out=held_out)
        else:
            read = _row_files(files, settings, folders, tokenizer)
        sources = []
        for source, records in read:
            sources.append(source)
            for written, record in enumerate(records, start=1):
                writer.add(record)
                if written % _COUNT_EVERY == 0:
                    count(_COUNT_EVERY)
        return sources

    return cached(folders, data_key(files, settings, folders, tokenizer, held_out=held_out), write)


_Read = Iterator[tuple[Source, Iterator[Record]]]


def _row_files(
    files: Sequence[Path], settings: Settings, folders: Folders, tokenizer: PreTrainedTokenizerBase
) -> _Read:
    """Each file's records. A source is complete when its records have been gone through."""
    reader = RowReader(settings, Encoder(tokenizer, settings.train_on))
    for number, path in enumerate(files):
        chosen = dataset_format(path, iter_rows(path), settings.data_format, folders)
        source = Source(path.name, facts(path).sha256, facts(path).encoding, chosen.name)
        yield source, reader.records(path, number, chosen, source)


def _text_files(
    files: Sequence[Path], settings: Settings, tokenizer: PreTrainedTokenizerBase, *, held_out: bool
) -> _Read:
    """Each text's chunks. The texts are read twice: what is held out depends on all their documents."""
    documents = [
        document
        for number, path in enumerate(files)
        for document in find_documents(number, pieces(iter_text(path), settings.hard_cut_string))
        if not document.is_blank
    ]
    share = settings.held_out_share if held_out else 0.0
    division = hold_out(documents, share, settings.seed) if share else HeldOut()

    def records(number: int, own: set[int], source: Source) -> Iterator[Record]:
        read = pieces(iter_text(files[number]), settings.hard_cut_string)
        divided = parts(number, (piece for piece in read if piece.document in own), division)
        for chunk in make_chunks(tokenizer, divided, settings):
            record = _chunk_record(number, chunk, settings.minimum_length)
            source.note(record)
            yield record

    for number, path in enumerate(files):
        own = {document.number for document in documents if document.file == number}
        source = Source(path.name, facts(path).sha256, facts(path).encoding, RAW_TEXT, rows_read=len(own))
        yield source, records(number, own, source)


def _chunk_record(number: int, chunk: Chunk, minimum_length: int) -> Record:
    length = len(chunk.input_ids)
    # Of one token alone, nothing is learnt.
    too_short = length < (max(minimum_length, 2) if chunk.is_whole else 2)
    return Record(
        file=number,
        row=chunk.document,
        text=chunk.text,
        input_ids=chunk.input_ids,
        trained=[(0, length)],
        kept=0 if too_short else length,
        reason=f"a document of {length} tokens only" if too_short else "",
        character=chunk.character,
        held_out=chunk.held_out,
    )


def _held_out(records: Records, settings: Settings) -> np.ndarray[Any, Any]:
    """Which records are held out: for rows drawn by the seed, equal ones together; for texts it is decided already."""
    if settings.raw_text:
        return records.column("held_out")
    kept = np.flatnonzero(records.column("kept") > 0)
    _, first, group = np.unique(records.column("digest")[kept], return_index=True, return_inverse=True)
    groups = np.argsort(first)  # in the order of the file
    held_out = np.zeros(len(records), dtype=bool)
    if len(groups) > 1:
        count = min(max(1, round(len(groups) * settings.held_out_share)), len(groups) - 1)
        drawn = random.Random(settings.seed).sample(range(len(groups)), count)
        held_out[kept[np.isin(group, groups[drawn])]] = True
    return held_out


def nothing_left(settings: Settings, sources: Sequence[Source]) -> str:
    """Why there is no example, and what to do."""
    said = " ".join(summary for source in sources if (summary := source.summary()))
    reasons = [left_out.reason for source in sources for left_out in source.dropped]
    if reasons and all("cutoff" in reason for reason in reasons):
        hint = "Raise the cutoff length."
    elif not reasons:
        hint = "Lower the held-out share, or add rows."
    elif settings.data_format != AUTO and not settings.raw_text:
        hint = "Is it the right data format? auto finds it."
    else:
        hint = "Check the data on the Datasets tab."
    return f"Nothing is left to train on. {said}{' ' if said else ''}{hint}"
