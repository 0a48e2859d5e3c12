"""The numbers of a data check: what was read, kept and left out, how long examples are, how many steps they make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.data import PreparedData, nothing_left
from training.optimization import warmup_steps
from training.rows import Source
from training.schedule import Schedule
from training.settings import MAX_CUTOFF, Settings

_CUTOFFS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_BARS = 32
_ROUND = 16  # tokens


@dataclass(frozen=True)
class LostAt:
    """What a cutoff would cost: the share of examples that are longer, and that of tokens behind it."""

    cutoff: int  # tokens
    examples: float
    tokens: float


@dataclass(frozen=True)
class Bar:
    """One bar of the histogram: examples of at least `start` and fewer than `end` tokens."""

    start: int
    end: int
    count: int


@dataclass(frozen=True)
class DataReport:
    """All that can be said about the data before a training; rows are documents where it is raw text."""

    is_raw_text: bool
    problem: str  # why nothing can be trained, else empty
    warnings: list[str]  # sentences
    sources: list[Source]
    rows_read: int
    dropped: int
    cut: int
    duplicates: int
    empty_answers: int
    train_examples: int
    held_out_examples: int
    tokens: int  # of the examples to train on
    trained_tokens: int  # those of them that count in the loss
    longest: int  # tokens, before any cutoff
    cutoff: int
    bars: list[Bar]
    lost_at: list[LostAt]
    fitting_cutoff: int  # that would lose as little as the model allows
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int

    @property
    def trained_share(self) -> float:
        """Share of the tokens that count in the loss, 0 to 1."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0


def make_report(data: PreparedData, settings: Settings, context: int | None = None) -> DataReport:
    """The report of prepared data, for a model that reads at most `context` tokens at once."""
    lengths = data.records.lengths()
    lengths = lengths[lengths > 0]
    schedule = Schedule(len(data.train), settings.batch_size, settings.epochs, settings.seed)
    steps = schedule.total_steps if len(data.train) else 0
    return DataReport(
        is_raw_text=bool(settings.raw_text),
        problem="" if len(data.train) else nothing_left(settings, data.sources),
        warnings=data.warnings(),
        sources=data.sources,
        rows_read=sum(s.rows_read for s in data.sources),
        dropped=sum(len(s.dropped) for s in data.sources),
        cut=sum(len(s.cut) for s in data.sources),
        duplicates=sum(len(s.duplicates) for s in data.sources),
        empty_answers=sum(len(s.empty_answers) for s in data.sources),
        train_examples=len(data.train),
        held_out_examples=len(data.evaluation),
        tokens=sum(data.train.lengths),
        trained_tokens=sum(data.train.trained_tokens),
        longest=int(lengths.max(initial=0)),
        cutoff=settings.cutoff_length,
        bars=_bars(lengths),
        lost_at=_lost_at(lengths, settings.cutoff_length, context),
        fitting_cutoff=_fitting_cutoff(lengths, context),
        steps_per_epoch=schedule.steps_per_epoch,
        total_steps=steps,
        warmup_steps=warmup_steps(settings, steps) if steps else 0,
    )


def _bars(lengths: np.ndarray) -> list[Bar]:
    """Equally wide bars from 0 to the longest, of whole tokens."""
    if not len(lengths):
        return []
    width = max(1, -(-(int(lengths.max()) + 1) // _BARS))
    counts = np.bincount(lengths // width)
    return [Bar(n * width, (n + 1) * width, int(count)) for n, count in enumerate(counts)]


def _fitting_cutoff(lengths: np.ndarray, context: int | None) -> int:
    """The least round cutoff at which nothing is too long, or what the model can read if that is less."""
    longest = int(lengths.max(initial=1))
    return min(-(-longest // _ROUND) * _ROUND, context or MAX_CUTOFF, MAX_CUTOFF)


def _lost_at(lengths: np.ndarray, cutoff: int, context: int | None) -> list[LostAt]:
    """What the chosen and the usual cutoffs would cost, up to the first that costs nothing."""
    if not len(lengths):
        return []
    result = []
    for candidate in sorted({cutoff, *(c for c in _CUTOFFS if c <= (context or MAX_CUTOFF))}):
        over = np.maximum(lengths - candidate, 0)
        result.append(LostAt(candidate, float((over > 0).mean()), float(over.sum() / lengths.sum())))
        if not over.any() and candidate >= cutoff:
            break
    return result
