"""Runs the rows of a speed table in turns, each in a process of its own, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.peers import PADDED
from benchmarks.speed_cases import Options, peers
from benchmarks.speed_job import Job, Request, Step
from benchmarks.speed_rows import GRAFT, JUDGE, MATRIX
from training.allocator import training_environment
from training.paths import PROJECT

_TRIED = (1, 2, 4, 8)  # micro-batches
_BRIEFLY = 2  # steps of each, of half a batch
_SAFE = 1.25  # times a row's peak must be free while the others wait
Tell = Callable[[str], None]


class RowFailed(Exception):  # noqa: N818 - says what became of a row
    """A row's process ended by itself; the message is the last that it said."""


class Row:
    """A row's process; a context manager, at whose end it is ended."""

    def __init__(self, job: Job, options: Options) -> None:
        as_graft = job.kind == GRAFT or options.same_allocator
        path = job.write()
        self._errors = path.with_name("errors.txt")
        with self._errors.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.training_speed", "--row", str(path)],
                cwd=PROJECT,
                env=training_environment() if as_graft else dict(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it has nothing left to save, and may be in the midst of a step
        self._process.communicate()

    def ask(self, request: Request) -> dict[str, Any]:
        """What the process answers; raises RowFailed when it has ended instead."""
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self._errors.read_text(encoding="utf-8").splitlines()
            raise RowFailed(next((words for words in reversed(said) if words.strip()), "it ended without a word"))
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass
class Outcome:
    """What a row's rounds took; `failed` says why there are none."""

    job: Job
    is_best: bool = False  # the peer's own best micro-batch
    rounds: list[list[Step]] = field(default_factory=list)
    peak: int = 0  # bytes
    loss: float | None = None
    failed: str = ""

    @property
    def steps(self) -> list[Step]:
        """Of all rounds."""
        return [step for steps in self.rounds for step in steps]

    def rates(self) -> list[float]:
        """Real tokens a second of each round."""
        return [sum(step.tokens for step in steps) / sum(step.seconds for step in steps) for steps in self.rounds]

    def take(self, row: Row, count: int, *, counts: bool = True) -> None:
        """Let the row take so many steps; the first ones of all do not count."""
        try:
            answer = row.ask({"steps": count})
        except RowFailed as failed:
            self.failed = str(failed)
            return
        self.peak = answer["peak"]
        if counts:
            self.rounds.append([Step(**step) for step in answer["steps"]])


@dataclass
class Measured:
    """A whole table: its rows, Graft's first; what the machine multiplies a second, by round; the loss before."""

    outcomes: list[Outcome]
    limits: list[float]
    loss_before: float | None


class _Tight(Exception):  # noqa: N818 - ends the attempt to keep all rows in memory
    """The rows do not fit into memory together."""


def measure(graft: Job, options: Options, tell: Tell) -> Measured:
    """All rows of a table: warmed up, then round after round, and what each has learnt."""
    outcomes = _outcomes(graft, options, tell)
    with Row(replace(graft, kind=MATRIX, folder=f"{graft.folder}-matrix"), options) as matrix:
        if options.apart:
            limits = _apart(outcomes, matrix, options, tell)
        else:
            try:
                limits = _in_turns(outcomes, matrix, options, tell)
            except _Tight:
                tell("the rows do not fit into memory together: one after the other instead of in turns")
                limits = _apart(outcomes, matrix, options, tell)
    return Measured(outcomes, limits, _judge(outcomes, options, tell))


def _outcomes(graft: Job, options: Options, tell: Tell) -> list[Outcome]:
    """The rows, all empty: Graft, its peers, and peers at the micro-batch that is best for them."""
    beside = [Outcome(job) for job in peers(graft)]
    best = []
    for outcome in beside:
        if options.every_best or outcome.job.kind == PADDED:
            try:
                size = best_micro_batch(outcome.job, options, tell)
            except RowFailed as failed:
                tell(f"{outcome.job.kind}: no micro-batch could be tried ({failed})")
                continue
            if size == outcome.job.micro_batch:
                outcome.is_best = True
            else:
                best.append(
                    Outcome(replace(outcome.job, micro_batch=size, folder=_folder(outcome.job, size)), is_best=True)
                )
    outcomes = [Outcome(graft), *beside, *best]
    for outcome in outcomes[1:]:
        outcome.job = replace(outcome.job, folder=_folder(outcome.job, outcome.job.micro_batch))
    return outcomes


def _folder(job: Job, micro_batch: int) -> str:
    """A folder of the row's own, beside Graft's."""
    kind = "".join(c for c in job.kind if c.isalnum())
    return str(Path(job.folder).parent / f"{kind}-{micro_batch}")


def best_micro_batch(job: Job, options: Options, tell: Tell) -> int:
    """The micro-batch at which a peer is fastest, after brief tries in turns; raises RowFailed where none works."""
    why, largest = "nothing fits", 0
    batch = max(job.batch // 2, min(job.batch, _TRIED[-1]))
    tried: dict[int, tuple[Row, Outcome]] = {}
    with ExitStack() as stack:
        for size in _TRIED:
            if batch % size or _is_tight(2 * largest, options):
                continue
            outcome = Outcome(replace(job, micro_batch=size, batch=batch, folder=f"{_folder(job, size)}-tried"))
            row = stack.enter_context(Row(outcome.job, options))
            outcome.take(row, 1, counts=False)
            largest, why = max(largest, outcome.peak), outcome.failed or why
            if not outcome.failed:
                tried[size] = row, outcome
            if options.apart and not outcome.failed:
                outcome.take(row, min(_BRIEFLY, options.total_steps - 1))
                stack.close()
        for _ in range(0 if options.apart else min(_BRIEFLY, options.total_steps - 1)):
            for row, outcome in tried.values():
                outcome.take(row, 1)
    speeds = {size: sum(rates) / len(rates) for size, (_, outcome) in tried.items() if (rates := outcome.rates())}
    if not speeds:
        raise RowFailed(why)
    tell(f"{job.kind}: " + ", ".join(f"{speed:,.0f} tokens/s at {size}" for size, speed in speeds.items()))
    return max(speeds, key=speeds.__getitem__)


def _in_turns(outcomes: list[Outcome], matrix: Row, options: Options, tell: Tell) -> list[float]:
    """Rounds in which every row has its turn."""
    limits = []
    with ExitStack() as stack:
        rows = []
        for outcome in outcomes:
            rows.append(stack.enter_context(Row(outcome.job, options)))
            outcome.take(rows[-1], 1, counts=False)
            if _is_tight(max(o.peak for o in outcomes), options):
                raise _Tight
        for number in range(options.rounds):
            tell(f"round {number + 1} of {options.rounds}")
            limits.append(matrix.ask({})["rate"])
            for row, outcome in zip(rows, outcomes, strict=True):
                if not outcome.failed:
                    outcome.take(row, options.steps)
    return limits


def _apart(outcomes: list[Outcome], matrix: Row, options: Options, tell: Tell) -> list[float]:
    """All rounds of a row before the next row begins."""
    limits = [matrix.ask({})["rate"] for _ in range(options.rounds)]
    for outcome in outcomes:
        tell(outcome.job.kind)
        with Row(outcome.job, options) as row:
            outcome.take(row, 1, counts=False)
            for _ in range(0 if outcome.failed else options.rounds):
                outcome.take(row, options.steps)
    return limits


def _is_tight(peak: int, options: Options) -> bool:
    """Whether so many bytes could not be had beside what waits."""
    return not options.apart and psutil.virtual_memory().available < peak * _SAFE


def _judge(outcomes: list[Outcome], options: Options, tell: Tell) -> float | None:
    """Give each row the loss of what it has learnt; returns the loss before. None where it cannot be computed."""
    job = outcomes[0].job
    with Row(replace(job, kind=JUDGE, folder=f"{job.folder}-judge"), options) as judge:
        try:
            for outcome in outcomes:
                if outcome.job.trained.is_file():
                    outcome.loss = judge.ask({"adapter": str(outcome.job.trained)})["loss"]
            return float(judge.ask({"adapter": job.adapter})["loss"])
        except RowFailed as failed:
            tell(f"no loss could be computed ({failed})")
            return None
