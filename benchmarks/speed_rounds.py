"""Measures the rows of a speed table in turns, so that a noisy machine disturbs all alike, and what each has learnt."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

from benchmarks.speed_cases import Options
from benchmarks.speed_job import Job
from benchmarks.speed_outcomes import Outcome, Row, RowFailed, is_tight
from benchmarks.speed_rows import JUDGE, MATRIX
from benchmarks.speed_trials import Tell, rows


@dataclass
class Measured:
    """All rows of one precision, Graft's first; what the machine multiplies a second in it, by round; the loss before.

    `in_turns` says that the rows took turns, and did not follow one another.
    """

    outcomes: list[Outcome]
    limits: list[float]
    loss_before: float | None
    in_turns: bool

    @property
    def precision(self) -> str:
        """Of all rows."""
        return self.outcomes[0].job.precision


class _Tight(Exception):  # noqa: N818 - ends the attempt to keep all rows in memory
    """The rows do not fit into memory together."""


def measure(graft: Job, options: Options, tell: Tell) -> Measured:
    """All rows of a precision: warmed up, then round after round, and what each has learnt."""
    outcomes, in_turns = rows(graft, options, tell), not options.apart
    with Row(replace(graft, kind=MATRIX, folder=f"{graft.folder}-matrix"), options) as matrix:
        if in_turns:
            try:
                limits = _in_turns(outcomes, matrix, options, tell)
            except _Tight:
                tell("the rows do not fit into memory together: one after the other instead of in turns")
                in_turns = False
        if not in_turns:
            limits = _apart(outcomes, matrix, options, tell)
    return Measured(outcomes, limits, _judge(outcomes, options, tell), in_turns)


def _in_turns(outcomes: list[Outcome], matrix: Row, options: Options, tell: Tell) -> list[float]:
    """Rounds in which every row has its turn."""
    limits = []
    with ExitStack() as stack:
        started: list[Row] = []
        for number, outcome in enumerate(outcomes):
            for ahead in outcomes[len(started) : number + 2]:  # the next one loads while this one warms up
                started.append(stack.enter_context(Row(ahead.job, options)))
            outcome.take(started[number], 1, counts=False)
            if is_tight(max(o.peak for o in outcomes), options):
                raise _Tight
        for number in range(options.rounds):
            tell(f"round {number + 1} of {options.rounds}")
            limits.append(matrix.ask({})["rate"])
            for row, outcome in zip(started, outcomes, strict=True):
                if not outcome.failed:
                    outcome.take(row, options.steps)
    return limits


def _apart(outcomes: list[Outcome], matrix: Row, options: Options, tell: Tell) -> list[float]:
    """All rounds of a row before the next row begins."""
    limits = [matrix.ask({})["rate"] for _ in range(options.rounds)]
    for outcome in outcomes:
        tell(f"{outcome.job.kind}, micro-batch {outcome.job.micro_batch}")
        outcome.failed = ""  # of the attempt to keep all in memory
        with Row(outcome.job, options) as row:
            outcome.take(row, 1, counts=False)
            for _ in range(0 if outcome.failed else options.rounds):
                outcome.take(row, options.steps)
    return limits


def _judge(outcomes: list[Outcome], options: Options, tell: Tell) -> float | None:
    """Give each row the loss of what it has learnt; returns the loss before. None where it cannot be computed.

    In 32 bits for all where the base model lies in a folder; one made on the GPU exists only as the rows have it.
    """
    job = outcomes[0].job
    if job.base:
        job = replace(job, precision="32-bit")
    with Row(replace(job, kind=JUDGE, folder=f"{job.folder}-judge"), options) as judge:
        try:
            for outcome in outcomes:
                if outcome.job.trained.is_file():
                    outcome.loss = judge.ask({"adapter": str(outcome.job.trained)})["loss"]
            return float(judge.ask({"adapter": job.adapter})["loss"])
        except RowFailed as failed:
            tell(f"no loss could be computed ({failed})")
            return None
