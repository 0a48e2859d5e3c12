"""Whether a training keeps what its layers computed for the way back, or computes it again to need less memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from training.errors import UserError
from training.estimate import LIBRARIES_ON_GPU, Estimate, estimate
from training.prepared import Examples
from training.settings import ALWAYS, NEVER, WHEN_NEEDED, Settings

_SHARE = 0.9  # of what is free: the estimate may be a tenth too low
# What an architecture of its own kind may raise when it is run without weights.
_CANNOT_COUNT = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """Whether gradient checkpointing is on, and why, in words that follow "because"."""

    on: bool
    because: str

    def applied_to(self, settings: Settings) -> Settings:
        """The settings with nothing left to decide."""
        return settings.model_copy(update={"gradient_checkpointing": ALWAYS if self.on else NEVER})


def as_decided(
    settings: Settings, numbers: Callable[[Settings], Estimate], free: int | None
) -> tuple[Estimate, Decision]:
    """The numbers of a training as it will run where `free` bytes can be had (None: not known), and what decides it.

    `numbers` estimates for settings with nothing left to decide; what it raises is raised.
    """
    if settings.gradient_checkpointing != WHEN_NEEDED:
        return numbers(settings), Decision(settings.gradient_checkpointing == ALWAYS, "the settings say so")
    without, on = Decision(False, ""), Decision(True, "")
    plain = numbers(without.applied_to(settings))
    if settings.method == "prefix tuning":
        return plain, Decision(False, "prefix tuning does not work with it")
    if free is None:
        return plain, Decision(False, "how much memory is free is not known")
    needed = f"without it the training needs about {_gb(plain.memory.total)}; {_gb(free)} are free"
    if plain.memory.total <= _SHARE * free:
        return plain, Decision(False, needed)
    spared = numbers(on.applied_to(settings))
    if spared.memory.total >= plain.memory.total:
        return plain, Decision(False, "the training would need no less memory with it")
    return spared, Decision(True, f"{needed}, and a tenth of that is kept in reserve")


def decide(settings: Settings, source: str, train: Examples, earlier: Path | None) -> Decision:
    """What this process, which is about to load the base model in the folder `source`, trains these examples with.

    `earlier` is the adapter that is trained further. The random numbers go on as if nothing had been done.
    """
    if settings.gradient_checkpointing != WHEN_NEEDED:
        return Decision(settings.gradient_checkpointing == ALWAYS, "the settings say so")
    try:
        with torch.random.fork_rng(devices=[]):
            _, decision = as_decided(
                settings, lambda s: estimate(s, source, len(train), train.longest, earlier=earlier), _free_here()
            )
    except (UserError, *_CANNOT_COUNT) as error:  # it may be trained all the same
        log.info("the memory cannot be estimated", exc_info=error)
        return Decision(False, "what the training needs cannot be estimated")
    log.info("gradient checkpointing is %s, because %s", "on" if decision.on else "off", decision.because)
    return decision


def _free_here() -> int:
    """Bytes that this process can have in all, with what it has already."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return free + LIBRARIES_ON_GPU
    return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)


def _gb(size: int) -> str:
    return f"{size / 2**30:.1f} GB"
