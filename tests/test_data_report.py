"""The numbers of a data check are those that counting by hand gives."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tiny import make_settings
from training.data import PreparedData
from training.data_report import DataReport, make_report
from training.optimization import make_optimizer, make_scheduler, warmup_steps
from training.prepared import Examples, Record, Records, RecordWriter
from training.rows import LeftOut, Source
from training.schedule import Schedule


def data_of(
    folder: Path, records: list[Record], held_out: int = 0, sources: list[Source] | None = None
) -> PreparedData:
    """Prepared data of these records, of which the last `held_out` are for evaluation."""
    with RecordWriter(folder / "records.arrow") as writer:
        for record in records:
            writer.add(record)
    stored = Records.open(folder / "records.arrow")
    used = np.flatnonzero(stored.column("kept") > 0)
    border = len(used) - held_out
    return PreparedData(stored, Examples(stored, used[:border]), Examples(stored, used[border:]), sources or [])


def of_length(length: int, kept: int | None = None) -> Record:
    return Record(0, 1, "", [1] * length, [(0, length)], length if kept is None else kept)


def report_of(lengths: list[int], **changes: Any) -> DataReport:
    with TemporaryDirectory() as folder:
        return make_report(data_of(Path(folder), [of_length(n) for n in lengths]), make_settings(**changes))


LENGTHS = st.lists(st.integers(0, 40) | st.integers(0, 3_000), max_size=30)


@settings(max_examples=50, deadline=None)
@given(LENGTHS)
@example([1])
@example([31, 32, 33])
@example([32])
@example([0, 0])
def test_bars_count_every_record_with_tokens_and_reach_the_longest(lengths: list[int]) -> None:
    report = report_of(lengths)
    with_tokens = [n for n in lengths if n]
    assert report.longest == max(lengths, default=0)
    assert sum(bar.count for bar in report.bars) == len(with_tokens)
    for bar in report.bars:
        assert bar.count == sum(bar.start <= n < bar.end for n in with_tokens)
    if with_tokens:
        assert len(report.bars) <= 32
        assert report.bars[0].start == 0 and report.bars[-1].start <= report.longest < report.bars[-1].end
        assert all(bar.end == after.start for bar, after in zip(report.bars, report.bars[1:], strict=False))
        assert len({bar.end - bar.start for bar in report.bars}) == 1


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(8, 4_000))
def test_what_each_cutoff_would_cost(lengths: list[int], cutoff: int) -> None:
    report = report_of(lengths, cutoff_length=cutoff)
    lengths = [n for n in lengths if n]
    for lost in report.lost_at:
        over = [n - lost.cutoff for n in lengths if n > lost.cutoff]
        assert lost.examples == pytest.approx(len(over) / len(lengths))
        assert lost.tokens == pytest.approx(sum(over) / sum(lengths))
    cutoffs = [lost.cutoff for lost in report.lost_at]
    assert cutoffs == sorted(set(cutoffs))
    assert not lengths or (cutoff in cutoffs and report.lost_at[-1].examples == 0), "one that costs nothing is offered"


def test_cutoffs_end_with_the_first_that_costs_nothing() -> None:
    report = report_of([100, 200], cutoff_length=150)
    assert [(lost.cutoff, lost.examples) for lost in report.lost_at] == [(128, 0.5), (150, 0.5), (256, 0)]
    assert report.lost_at[0].tokens == pytest.approx(72 / 300)
    assert [lost.cutoff for lost in report_of([100], cutoff_length=600).lost_at] == [128, 256, 512, 600]


def test_tokens_are_those_that_are_trained_on(tmp_path: Path) -> None:
    records = [
        of_length(10),
        of_length(20, kept=8),  # cut
        of_length(30, kept=0),  # dropped
        Record(0, 4, "", [1] * 6, [(2, 4)], 6),
        of_length(50),  # held out
    ]
    report = make_report(data_of(tmp_path, records, held_out=1), make_settings())
    assert (report.train_examples, report.held_out_examples) == (3, 1)
    assert report.tokens == 10 + 8 + 6
    assert report.trained_tokens == 9 + 7 + 2, "nothing comes before the first token of a text"
    assert report.trained_share == pytest.approx(18 / 24)
    assert report.longest == 50


def test_counts_of_all_files_together(tmp_path: Path) -> None:
    left = [LeftOut(1, "why"), LeftOut(2, "why")]
    sources = [
        Source("a.json", "", "UTF-8", "alpaca", 5, dropped=left, cut=left[:1], empty_answers=[1]),
        Source("b.json", "", "UTF-8", "alpaca", 7, dropped=left[:1], duplicates=left, empty_answers=[3, 4]),
    ]
    report = make_report(data_of(tmp_path, [of_length(3)], sources=sources), make_settings())
    assert (report.rows_read, report.dropped, report.cut, report.duplicates, report.empty_answers) == (12, 3, 1, 2, 3)
    assert report.problem == ""
    assert report.sources == sources and not report.is_raw_text
    assert report.warnings[0].startswith("2 of 5 rows of a.json were dropped: why (rows 1, 2)")


@pytest.mark.parametrize("scheduler", ["linear", "constant", "cosine"])
@pytest.mark.parametrize(("examples", "batch", "epochs", "warmup"), [(10, 4, 2.5, 0.3), (3, 4, 0.2, 5), (7, 1, 1, 2)])
def test_steps_are_those_of_the_trainer(
    scheduler: str, examples: int, batch: int, epochs: float, warmup: float
) -> None:
    changes: dict[str, Any] = {"batch_size": batch, "micro_batch_size": 1, "epochs": epochs, "warmup": warmup}
    report = report_of([5] * examples, scheduler=scheduler, **changes)
    asked = make_settings(scheduler=scheduler, **changes)
    schedule = Schedule(examples, batch, epochs, asked.seed)
    assert (report.steps_per_epoch, report.total_steps) == (schedule.steps_per_epoch, schedule.total_steps)
    assert report.warmup_steps == warmup_steps(asked, schedule.total_steps)
    # The rate the trainer really uses rises for so many steps.
    rates = learning_rates(asked, report.total_steps)
    rising = [n for n in range(1, len(rates)) if rates[n] > rates[n - 1]]
    assert rising == list(range(1, report.warmup_steps + 1))


def learning_rates(asked: Any, steps: int) -> list[float]:
    import torch

    optimizer = make_optimizer(torch.nn.Linear(1, 1), asked)
    scheduler = make_scheduler(optimizer, asked, steps)
    rates = []
    for _ in range(steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("longest", "context", "fitting"),
    [(100, None, 112), (112, None, 112), (113, 4_096, 128), (5_000, 4_096, 4_096), (90, 80, 80), (0, None, 16)],
)
def test_the_cutoff_that_fits_is_round_and_what_the_model_reads(
    tmp_path: Path, longest: int, context: int | None, fitting: int
) -> None:
    report = make_report(
        data_of(tmp_path, [of_length(longest), of_length(3)]), make_settings(cutoff_length=32), context
    )
    assert report.fitting_cutoff == fitting
    assert all(lost.cutoff <= (context or 512) for lost in report.lost_at)


def test_nothing_to_train_makes_no_steps(tmp_path: Path) -> None:
    report = make_report(data_of(tmp_path, [of_length(9, kept=0)]), make_settings())
    assert (report.train_examples, report.steps_per_epoch, report.total_steps, report.warmup_steps) == (0, 0, 0, 0)
    assert report.problem.startswith("Nothing is left to train on.")
    assert report.trained_share == 0 and report.longest == 9 and sum(bar.count for bar in report.bars) == 1
    none = report_of([])
    assert (none.bars, none.lost_at, none.longest, none.total_steps) == ([], [], 0, 0)
