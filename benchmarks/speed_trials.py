"""Which rows a speed table has: Graft and its peers at the common micro-batch, and where each is fastest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.speed_cases import Options, peers
from benchmarks.speed_job import Job
from benchmarks.speed_outcomes import Outcome, Row, RowFailed, is_tight, own_folder
from benchmarks.speed_rows import GRAFT

_TRIED = (1, 2, 4, 8)  # micro-batches
_EXAMPLES = max(_TRIED)  # of a step in the trial: a few micro-batches
_BRIEFLY = 2  # such steps of each, after one to warm up
Tell = Callable[[str], None]


def rows(graft: Job, options: Options, tell: Tell) -> list[Outcome]:
    """All rows, still empty: at the common micro-batch, Graft first, then those at the best one where that is another.

    Graft has a row at micro-batch 1 as well, which takes the least memory.
    """
    common = [Outcome(job) for job in (graft, *peers(graft))]
    more = []
    for outcome in common:
        if outcome.job.kind == GRAFT or outcome.job.kind in options.own_best:
            more += _at_its_best(outcome, options, tell)
    if graft.micro_batch != 1 and not any(o.job.kind == GRAFT and o.job.micro_batch == 1 for o in more):
        more.insert(0, Outcome(replace(graft, micro_batch=1)))
    found = [*common, *more]
    for outcome in found[1:]:
        outcome.job = replace(outcome.job, folder=own_folder(outcome.job, outcome.job.micro_batch))
    return found


def _at_its_best(outcome: Outcome, options: Options, tell: Tell) -> list[Outcome]:
    """A row at the trainer's best micro-batch; none where this row has it, which it is then told."""
    try:
        size = best_micro_batch(outcome.job, options, tell)
    except RowFailed as failed:
        tell(f"{outcome.job.kind}: no micro-batch could be tried ({failed})")
        return []
    if size == outcome.job.micro_batch:
        outcome.is_best = True
        return []
    return [Outcome(replace(outcome.job, micro_batch=size), is_best=True)]


def best_micro_batch(job: Job, options: Options, tell: Tell) -> int:
    """The micro-batch at which a row is fastest, after brief tries in turns; raises RowFailed where none works."""
    outcomes = {
        size: Outcome(replace(job, micro_batch=size, batch=_EXAMPLES, folder=f"{own_folder(job, size)}-tried"))
        for size in _TRIED
    }
    try_all = _try_apart if options.apart else _try_in_turns
    try_all(list(outcomes.values()), options)
    speeds = {size: sum(rates) / len(rates) for size, outcome in outcomes.items() if (rates := outcome.rates())}
    if not speeds:
        raise RowFailed(next((outcome.failed for outcome in outcomes.values() if outcome.failed), "nothing fits"))
    tell(f"{job.kind}: " + ", ".join(f"{speed:,.0f} tokens/s at {size}" for size, speed in speeds.items()))
    return max(speeds, key=speeds.__getitem__)


def _try_apart(outcomes: list[Outcome], options: Options) -> None:
    for outcome in outcomes:
        with Row(outcome.job, options) as row:
            outcome.take(row, 1, counts=False)
            if not outcome.failed:
                outcome.take(row, _brief_steps(options))


def _try_in_turns(outcomes: list[Outcome], options: Options) -> None:
    """All start at once, which takes the least time, but one that would not fit beside the others is left out."""
    largest = 0
    with ExitStack() as stack:
        tried = []
        for outcome, row in [(outcome, stack.enter_context(Row(outcome.job, options))) for outcome in outcomes]:
            if is_tight(2 * largest, options):
                break
            outcome.take(row, 1, counts=False)
            largest = max(largest, outcome.peak)
            tried.append((outcome, row))
        for _ in range(_brief_steps(options)):
            for outcome, row in tried:
                if not outcome.failed:
                    outcome.take(row, 1)


def _brief_steps(options: Options) -> int:
    """No more than the plan has examples for."""
    return min(_BRIEFLY, options.total_steps - 1)
