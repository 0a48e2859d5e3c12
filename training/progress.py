"""How far a training is and how it goes: what decides when it ends early, kept in each checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from training.errors import Diverged
from training.settings import Settings

ALL_STEPS, LOW_LOSS, EARLY, STOPPED = "all steps", "stop at loss", "early stopping", "stop asked for"
_FIRST_STEPS = 10  # what is usual for a training shows in these
_TOO_HIGH = 2.0  # times the mean of the first losses, and one nat more
_MAX_HIGH_STEPS = 10  # on end; single ones are bad examples


@dataclass
class Progress:
    """Optimizer steps done, the losses of the last of them, and what is counted over many."""

    step: int = 0
    loss: float | None = None
    evaluation_loss: float | None = None  # of this very step
    evaluation_owed: bool = False  # it was due at this step and a stop came first
    evaluations: dict[int, float] = field(default_factory=dict)  # by step, from the first on
    lowest: float | None = None  # among those that were due
    without_gain: int = 0  # evaluations on end that were not lower
    first_losses: list[float] = field(default_factory=list)
    high_in_a_row: int = 0  # steps on end with a loss far above the first
    skipped_in_a_row: int = 0  # steps that float16's scaler left out

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """What `to_json` gave; raises ValueError or TypeError for anything else."""
        content: dict[str, Any] = json.loads(text)
        evaluations = content.pop("evaluations", {})
        return cls(**content, evaluations={int(step): float(loss) for step, loss in evaluations.items()})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def took_step(self, loss: float) -> None:
        """Note a step of this loss, in nats a token."""
        self.step += 1
        self.loss = loss
        self.evaluation_loss = None  # that of an earlier step is not this one's
        if len(self.first_losses) < _FIRST_STEPS:
            self.first_losses.append(loss)
        else:
            self.high_in_a_row = self.high_in_a_row + 1 if loss > self._too_high else 0

    @property
    def _too_high(self) -> float:
        return _TOO_HIGH * math.fsum(self.first_losses) / len(self.first_losses) + 1

    @property
    def in_trouble(self) -> bool:
        """Whether the last step was one of those that end the training when they go on."""
        return self.high_in_a_row > 0 or self.skipped_in_a_row > 0

    @property
    def last_good_step(self) -> int:
        """Of a training that went wrong: the last step before the one whose result the trouble was met with."""
        return self.step - max(self.high_in_a_row, self.skipped_in_a_row) - 1

    def check_course(self) -> None:
        """Raise Diverged where the loss has been too high for too long."""
        if self.high_in_a_row >= _MAX_HIGH_STEPS:
            raise Diverged(
                f"The loss was above {self._too_high:.2f} for {_MAX_HIGH_STEPS} steps on end up to step {self.step}, "
                "far more than at the beginning, so the training was ended."
            )

    def evaluated(self, loss: float, *, counts: bool) -> None:
        """Note the evaluation of this step; one that was not due counts for nothing but itself."""
        self.evaluation_loss = loss
        if self.step:
            self.evaluations[self.step] = loss
        if not counts:
            return
        self.evaluation_owed = False
        if self.lowest is None or loss < self.lowest:
            self.lowest, self.without_gain = loss, 0
        else:
            self.without_gain += 1

    @property
    def is_new_best(self) -> bool:
        """Whether an evaluation that was due at this step gave the lowest loss so far."""
        return self.step in self.evaluations and self.without_gain == 0

    def go_further(self) -> None:
        """Forget what ended an earlier part, because the user wants more."""
        self.loss, self.without_gain = None, 0

    def ended_by(self, settings: Settings, total_steps: int) -> str:
        """What ends the training after this step, for the receipt; nothing where it goes on."""
        if self.step >= total_steps:
            return ALL_STEPS
        if settings.stop_at_loss > 0 and self.loss is not None and self.loss <= settings.stop_at_loss:
            return LOW_LOSS
        if 0 < settings.patience <= self.without_gain:
            return f"{EARLY}: {self.without_gain} evaluations on end without a lower loss than {self.lowest:.4f}"
        return ""
