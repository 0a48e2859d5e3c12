"""From the rows of a dataset to records: read, converted, encoded, fitted into the cutoff, each with its fate."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from training.data_files import iter_rows
from training.encoding import Converted, Encoder
from training.formats import Conversation, EmptyAnswer, Format, Row, RowError
from training.parallel_encoding import encode_in_processes, usable_processes
from training.prepared import Record
from training.settings import Settings
from training.token_spans import Encoded

RAW_TEXT = "raw text"  # what stands for the format where no rows are read
_BATCH = 2_000  # rows encoded at once
_LARGE = 4 * 10**6  # bytes of a file from which on several processes are faster than one
_SHOWN_CHARACTERS = 4_000  # of a row that cannot be used
_SHOWN_ROWS = 5  # rows named in a message; the receipt lists all


@dataclass(frozen=True)
class LeftOut:
    """A row that is not trained as it stands, and why."""

    row: int  # counted from 1
    reason: str


@dataclass
class Source:
    """What became of one data file, for the receipt and the check. Rows are documents where it is a raw text."""

    file: str
    sha256: str
    encoding: str
    format: str
    rows_read: int = 0
    dropped: list[LeftOut] = field(default_factory=list)
    cut: list[LeftOut] = field(default_factory=list)
    duplicates: list[LeftOut] = field(default_factory=list)  # equal to an earlier row and kept
    empty_answers: list[int] = field(default_factory=list)  # their rows, which are among the dropped

    def summary(self) -> str:
        """Sentences about what was dropped or cut; empty when nothing was."""
        what = "document" if self.format == RAW_TEXT else "row"
        return " ".join(
            f"{len(rows):,} of {self.rows_read:,} {what}s of {self.file} {'was' if len(rows) == 1 else 'were'} {verb}: "
            f"{_reasons(rows, what)}."
            for verb, rows in (("dropped", self.dropped), ("cut", self.cut))
            if rows
        )

    def note(self, record: Record) -> None:
        """Write down what became of a record, if it is not used whole."""
        if record.reason:
            (self.cut if record.kept else self.dropped).append(LeftOut(record.row, record.reason))


class RowReader:
    """Makes records of the rows of one file; what became of them is counted in `source`."""

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        self._settings = settings
        self._encoder = encoder
        self._seen: dict[int, tuple[str, int]] = {}  # by digest, the file and row where it stood first

    def records(self, path: Path, file: int, chosen: Format, source: Source) -> Iterator[Record]:
        """A record for each row of the file, in order; `file` is its number among those that are read."""
        read: deque[list[tuple[int, Row, Converted | RowError]]] = deque()

        def batches() -> Iterator[list[Converted]]:
            rows = enumerate(iter_rows(path), start=1)
            while batch := [(n, row, _converted(chosen, n, row, source)) for n, row in islice(rows, _BATCH)]:
                read.append(batch)
                yield [one for _, _, one in batch if not isinstance(one, RowError)]

        for encoded in self._encoded(path, batches()):
            results = iter(encoded)
            for number, row, one in read.popleft():
                result = one if isinstance(one, RowError) else next(results)
                if isinstance(one, RowError) or isinstance(result, RowError):
                    record = Record(file, number, _as_it_stands(row), reason=str(result))
                else:
                    record = Record(file, number, result.text, result.input_ids, result.trained, len(result.input_ids))
                    record = self._without_copies(self._within_cutoff(record, one), source)
                source.rows_read += 1
                source.note(record)
                yield record

    def _encoded(self, path: Path, batches: Iterator[list[Converted]]) -> Iterator[list[Encoded | RowError]]:
        processes = usable_processes() if path.stat().st_size >= _LARGE else 1
        if processes > 1:
            return encode_in_processes(self._encoder, batches, processes)
        return self._encoder.encode_all(batches)

    def _within_cutoff(self, record: Record, converted: Converted) -> Record:
        """The record, shortened or dropped as the settings say when it is over the cutoff."""
        cutoff = self._settings.cutoff_length
        if record.kept > cutoff:
            too_long = f"longer than the cutoff of {cutoff:,} tokens"
            if self._settings.too_long == "cut its end":
                record = replace(record, kept=cutoff, reason=too_long)
                if record.trained_tokens == 0:
                    return replace(record, kept=0, reason=f"nothing to learn before the cutoff of {cutoff:,} tokens")
            elif self._settings.too_long == "keep the last turns" and isinstance(converted, Conversation):
                return self._last_turns(record, converted, too_long)
            else:
                return replace(record, kept=0, reason=too_long)
        if record.trained_tokens == 0:
            return replace(record, kept=0, reason="too short to learn anything from")
        return record

    def _last_turns(self, record: Record, conversation: Conversation, too_long: str) -> Record:
        """The conversation from the earliest question on from which it fits; its system prompt stays."""
        messages = conversation.messages
        system = [m for m in messages[:1] if m["role"] == "system"]
        last = max((number for number, m in enumerate(messages) if m["role"] == "assistant"), default=0)
        beginnings = [n for n, m in enumerate(messages) if m["role"] == "user" and len(system) < n < last]

        def encoded_from(number: int) -> Encoded | RowError:
            return self._encoder.encode([replace(conversation, messages=[*system, *messages[number:]])])[0]

        def fits(encoded: Encoded | RowError) -> bool:
            return isinstance(encoded, RowError) or len(encoded.input_ids) <= self._settings.cutoff_length

        # The later it begins the shorter it is, so that few of what may be hundreds of beginnings have to be tried.
        for number in beginnings[bisect_left(beginnings, True, key=lambda number: fits(encoded_from(number))) :]:
            encoded = encoded_from(number)
            if isinstance(encoded, Encoded) and fits(encoded):
                return replace(
                    record,
                    text=encoded.text,
                    input_ids=encoded.input_ids,
                    trained=encoded.trained,
                    kept=len(encoded.input_ids),
                    reason=f"{too_long}: the first {number - len(system)} turns were left out",
                    whole_length=len(record.input_ids),
                )
        return replace(record, kept=0, reason=f"{too_long}, its last turns alone too")

    def _without_copies(self, record: Record, source: Source) -> Record:
        """The record, or when an earlier one is equal and copies are unwanted, one that is dropped."""
        digest = record.digest
        if digest not in self._seen:
            self._seen[digest] = source.file, record.row
            return record
        file, row = self._seen[digest]
        reason = f"the same as row {row:,} of {file}"
        if self._settings.drop_duplicates and record.kept:
            return replace(record, kept=0, reason=reason)
        source.duplicates.append(LeftOut(record.row, reason))
        return record


def _as_it_stands(row: Row) -> str:
    """A row that cannot be used, to be looked at."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    return text[:_SHOWN_CHARACTERS].encode(errors="replace").decode()


def _converted(chosen: Format, number: int, row: Row, source: Source) -> Converted | RowError:
    try:
        return chosen.convert(row)
    except RowError as error:
        if isinstance(error, EmptyAnswer):
            source.empty_answers.append(number)
        return error


def _reasons(rows: list[LeftOut], what: str) -> str:
    """The reasons with the rows they concern, the most frequent first."""
    by_reason: dict[str, list[int]] = {}
    for left_out in rows:
        by_reason.setdefault(left_out.reason, []).append(left_out.row)
    parts = []
    for reason, numbers in sorted(by_reason.items(), key=lambda item: -len(item[1]))[:_SHOWN_ROWS]:
        shown = ", ".join(f"{number:,}" for number in numbers[:_SHOWN_ROWS])
        shown += ", ..." if len(numbers) > _SHOWN_ROWS else ""
        parts.append(f"{reason} ({what}{'s' if len(numbers) > 1 else ''} {shown})")
    return "; ".join(parts) + ("; and more" if len(by_reason) > _SHOWN_ROWS else "")
