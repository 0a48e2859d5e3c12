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
from benchmarks.speed_rounds import Measured, Outcome

_MEBIBYTE = 2**20
_LIBRARIES = {"transformers": "transformers", "peft": "peft", "trl": "trl", "flash_attn": "flash-attn"}


def heading(job: Job, case: Case, options: Options, measured: Measured) -> str:
    """What was measured, with what, and this machine's limit."""
    plan = Plan.read(job.plan)
    rows = [row for step in range(len(plan.steps)) for row in plan.rows(step)]
    mean, longest = sum(length for length, _ in rows) / len(rows), max(length for length, _ in rows)
    on = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    found = [f"{name} {version(name)}" for module, name in _LIBRARIES.items() if importlib.util.find_spec(module)]
    before = "unknown" if measured.loss_before is None else f"{measured.loss_before:.5f}"
    limits = f"{min(measured.limits) / 1e9:,.0f} to {max(measured.limits) / 1e9:,.0f} GFLOP/s"
    return (
        f"**{job.shape}, {case.name}, {job.precision}**: batch {job.batch}, cutoff {job.cutoff}, rows of {mean:.0f} "
        f"tokens on average and {longest} at most, LoRA rank {job.rank} on all linear layers, "
        f"{options.rounds * options.steps} steps in {options.rounds} rounds"
        f"{', row by row' if options.apart else ' in turns'}; matrix multiplication {limits}; loss "
        f"before {before}; {on}, torch {torch.__version__}, {', '.join(found)}."
    )


def table(measured: Measured) -> str:
    """A row for each trainer; the last two columns say how many times a row's speed and memory Graft has."""
    graft = measured.outcomes[0]
    steps = graft.job.loss_after
    head = (
        "Trainer",
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
    lines = [head, ("---",) + ("---:",) * (len(head) - 1)]
    lines += [_cells(outcome, graft, measured.limits) for outcome in measured.outcomes]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(outcome: Outcome, graft: Outcome, limits: Sequence[float]) -> tuple[str, ...]:
    job = outcome.job
    name = job.kind + (" (own order)" if job.kind in OWN_ORDER else "")
    micro_batch = f"{job.micro_batch}{' (its best)' if outcome.is_best else ''}"
    if outcome.failed or not outcome.rounds:
        return (name, micro_batch, f"failed: {outcome.failed[:120].replace('|', '/')}", *[""] * 7)
    steps = outcome.steps
    cells = [
        f"{statistics.median(step.tokens / step.seconds for step in steps):,.0f}",
        f"{statistics.median(step.answers / step.seconds for step in steps):,.0f}",
        f"{1 - sum(step.tokens for step in steps) / sum(step.computed for step in steps):.0%}",
        f"{outcome.peak / _MEBIBYTE:,.0f}",
        "" if outcome.loss is None else f"{outcome.loss:.5f}",
        f"{share_of_limit(outcome, limits):.0%}",
    ]
    if outcome is graft or not graft.rounds:
        return (name, micro_batch, *cells, "", "")
    return (name, micro_batch, *cells, ratio(graft, outcome), f"{graft.peak / outcome.peak:.2f}")


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
