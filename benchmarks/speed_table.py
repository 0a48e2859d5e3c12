"""The speed table as Markdown."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence
from importlib.metadata import version

import torch

from benchmarks.peers import OWN_ORDER
from benchmarks.shapes import SHAPES
from benchmarks.speed_cases import Case, Options
from benchmarks.speed_job import Job, Plan
from benchmarks.speed_outcomes import Outcome
from benchmarks.speed_rounds import Measured
from benchmarks.speed_rows import GRAFT

_MEBIBYTE = 2**20
_LIBRARIES = {"transformers": "transformers", "peft": "peft", "trl": "trl", "flash_attn": "flash-attn"}


def heading(job: Job, case: Case, options: Options, measured: Sequence[Measured]) -> str:
    """What was measured, with what, and for each precision this machine's limit and how the rows were run."""
    plan = Plan.read(job.plan)
    rows = [row for step in range(len(plan.steps)) for row in plan.rows(step)]
    mean, longest = sum(length for length, _ in rows) / len(rows), max(length for length, _ in rows)
    on = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    found = [f"{name} {version(name)}" for module, name in _LIBRARIES.items() if importlib.util.find_spec(module)]
    return (
        f"**{job.shape}, {case.name}**: batch {job.batch}, cutoff {job.cutoff}, rows of {mean:.0f} tokens on average "
        f"and {longest} at most, LoRA rank {job.rank} on all linear layers, {options.rounds * options.steps} steps in "
        f"{options.rounds} rounds; {'; '.join(_conditions(one) for one in measured)}; {on}, torch "
        f"{torch.__version__}, {', '.join(found)}."
    )


def _conditions(measured: Measured) -> str:
    before = "unknown" if measured.loss_before is None else f"{measured.loss_before:.5f}"
    return (
        f"{measured.precision}: {'in turns' if measured.in_turns else 'one row after the other'}, matrix "
        f"multiplication {min(measured.limits) / 1e9:,.0f} to {max(measured.limits) / 1e9:,.0f} GFLOP/s, loss before "
        f"{before}"
    )


def table(measured: Sequence[Measured]) -> str:
    """A row for each trainer and precision; the last two columns say how many times its speed and memory Graft has."""
    steps = measured[0].outcomes[0].job.loss_after
    head = (
        "Trainer",
        "Precision",
        "Micro-batch",
        "Tokens/s",
        "Answer tokens/s",
        "Padding",
        "Peak memory, MiB",
        f"Loss after {steps} steps",
        "Share of the limit",
        "Graft's speed",
        "Graft's memory",
    )
    lines = [head, ("---",) * 2 + ("---:",) * (len(head) - 2)]
    lines += [_cells(outcome, one) for one in measured for outcome in one.outcomes]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(outcome: Outcome, measured: Measured) -> tuple[str, ...]:
    job = outcome.job
    name = job.kind + (" (own order)" if job.kind in OWN_ORDER else "")
    which = (name, job.precision, f"{job.micro_batch}{' (its best)' if outcome.is_best else ''}")
    if outcome.failed or not outcome.rounds:
        return (*which, f"failed: {outcome.failed[:120].replace('|', '/')}", *[""] * 7)
    steps = outcome.steps
    cells = [
        f"{statistics.median(step.tokens / step.seconds for step in steps):,.0f}",
        f"{statistics.median(step.answers / step.seconds for step in steps):,.0f}",
        f"{1 - sum(step.tokens for step in steps) / sum(step.computed for step in steps):.0%}",
        f"{outcome.peak / _MEBIBYTE:,.0f}",
        "" if outcome.loss is None else f"{outcome.loss:.5f}",
        f"{share_of_limit(outcome, measured.limits):.0%}",
    ]
    graft = None if job.kind == GRAFT else beside(outcome, measured)
    if not graft:
        return (*which, *cells, "", "")
    at = "" if graft.job.micro_batch == job.micro_batch else f", Graft at {graft.job.micro_batch}"
    return (*which, *cells, ratio(graft, outcome) + at, f"{graft.peak / outcome.peak:.2f}")


def beside(peer: Outcome, measured: Measured) -> Outcome | None:
    """Graft's row to compare a peer's with: at the common micro-batch, Graft's at that one.

    Else the fastest of those that took no more memory than the peer, or where none did the one that took the least.
    """
    rows = [o for o in measured.outcomes if o.job.kind == GRAFT and o.rounds and not o.failed]
    common = measured.outcomes[0].job.micro_batch
    if peer.job.micro_batch == common:
        return next((row for row in rows if row.job.micro_batch == common), None)
    within = [row for row in rows if row.peak <= peer.peak]
    if within:
        return max(within, key=lambda row: statistics.median(row.rates()))
    return min(rows, key=lambda row: row.peak, default=None)


def ratio(graft: Outcome, peer: Outcome) -> str:
    """How many times the peer's tokens a second Graft has: the median over the rounds, least and most."""
    ratios = [own / other for own, other in zip(graft.rates(), peer.rates(), strict=False)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def share_of_limit(outcome: Outcome, limits: Sequence[float]) -> float:
    """The operations that the real tokens take, as a share of what the machine multiplies in that time."""
    shape, rank = SHAPES[outcome.job.shape], outcome.job.rank
    shares = [
        sum(shape.operations(rank, step.rows) for step in steps) / sum(step.seconds for step in steps) / limit
        for steps, limit in zip(outcome.rounds, limits, strict=True)
    ]
    return statistics.median(shares)
