"""The data check: the very preparation that training does, kept open to be looked at row by row."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from training.base_models import context_length, cutoff_warning, local_base_model
from training.data import Count, PreparedData, inspect, set_template
from training.data_report import DataReport, make_report
from training.earlier import training_tokenizer
from training.paths import Folders
from training.prepared import Record
from training.settings import Settings
from training.token_view import Show, Token, tokens_of


@dataclass(frozen=True)
class Shown:
    """A record as the page shows it, and what becomes of it."""

    record: Record
    file: str
    tokens: list[Token]
    held_out: bool


class DataCheck:
    """What a check found. Records are counted from 0, in the order of the files."""

    def __init__(
        self, settings: Settings, tokenizer: PreTrainedTokenizerBase, notes: list[str], data: PreparedData, source: str
    ) -> None:
        self.settings = settings
        self.notes = notes  # sentences about the model and its template
        self.report: DataReport = make_report(data, settings, context_length(source))
        self._tokenizer = tokenizer
        self._data = data
        self._held_out = np.zeros(len(data.records), dtype=bool)
        if not settings.evaluation_file:
            self._held_out[data.evaluation.numbers] = True

    def show(self, number: int) -> Shown:
        """The record with this number, with its tokens."""
        record = self._data.records[number]
        return Shown(
            record,
            self.report.sources[record.file].file,
            tokens_of(self._tokenizer, record, self.settings.cutoff_length),
            bool(self._held_out[number]),
        )

    def numbers(self, which: Show) -> np.ndarray:
        """The records of a kind."""
        kept = self._data.records.column("kept")
        reason = pc.not_equal(self._data.records.reasons(), "").to_numpy(zero_copy_only=False)
        kinds = {
            Show.ALL: np.ones(len(kept), dtype=bool),
            Show.USED: kept > 0,
            Show.DROPPED: kept == 0,
            Show.CUT: (kept > 0) & reason,
            Show.HELD_OUT: self._held_out,
        }
        return np.flatnonzero(kinds[which])

    def row(self, row: int, file: int = 0) -> int | None:
        """The first record of this row, or document, of a file; None when there is none."""
        records = self._data.records
        found = np.flatnonzero((records.column("row") == row) & (records.column("file") == file))
        return int(found[0]) if len(found) else None

    def search(self, text: str, after: int = -1) -> int | None:
        """The next record behind `after` with this text in it, in whatever case, beginning anew at the end."""
        hits = pc.match_substring(self._data.records.texts(), text, ignore_case=True).to_numpy(zero_copy_only=False)
        found = np.flatnonzero(hits)
        later = found[found > after]
        return int(later[0]) if len(later) else int(found[0]) if len(found) else None

    def left_out_csv(self) -> str:
        """Every row that was dropped, cut or doubled, with the reason, as a table."""
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(("file", "row", "what", "reason"))
        for source in self.report.sources:
            for what, rows in (("dropped", source.dropped), ("cut", source.cut), ("duplicate", source.duplicates)):
                table.writerows((source.file, left_out.row, what, left_out.reason) for left_out in rows)
        return text.getvalue()


def check_data(settings: Settings, folders: Folders, count: Count = lambda _: None) -> DataCheck:
    """Prepare the data as training would, and keep it for a look; raises UserError for data that cannot be read."""
    source = local_base_model(folders, settings.base_model, run_code=settings.trust_remote_code)
    tokenizer = training_tokenizer(source, settings, folders)
    about_template = set_template(tokenizer, settings, folders)
    notes = [cutoff_warning(settings, source), "" if settings.raw_text else about_template]
    data = inspect(settings, folders, tokenizer, count)
    return DataCheck(settings, tokenizer, [note for note in notes if note], data, source)
