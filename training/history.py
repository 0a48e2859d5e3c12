"""What a run's events add up to: the curves, the progress and the notes that the monitor and the command line show.

A history stays of one size however long the run is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import ConfigDict

from training.curve import Curve
from training.events import CheckpointSaved, Downloading, Evaluation, Event, Note, Preparing, Started, Step

_RECENT_STEPS = 20  # enough to smooth the speed, few enough to follow a change
_LATELY = 200  # steps among which the one that a checkpoint or an evaluation belongs to is looked for
_MOST_CHECKPOINTS = 1000
MOST_NOTES = 100
_WEIGHT = 0.9  # of the past in the smoothed loss


@dataclass(slots=True)
class Trained:
    """A step and what had added up with it."""

    event: Step
    seconds: float  # of all steps so far
    average: float  # the moving average of the finite losses, still biased towards 0
    count: int  # how many losses are in it

    @property
    def step(self) -> int:
        return self.event.step

    @property
    def loss(self) -> float:
        return self.event.loss

    @property
    def smoothed(self) -> float | None:
        """The moving average with the bias of its first values corrected; a gap where the loss is no number."""
        return self.average / (1 - _WEIGHT**self.count) if math.isfinite(self.event.loss) else None


@dataclass
class History:
    """The story of a run so far."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(ser_json_inf_nan="constants")

    training: Curve[Trained] = field(default_factory=Curve)
    evaluation: Curve[Evaluation] = field(default_factory=Curve)
    saved: dict[int, CheckpointSaved] = field(default_factory=dict)  # by step: one may be saved twice if that was asked
    said: dict[str, Note] = field(default_factory=dict)  # by text
    lately: deque[Trained] = field(default_factory=deque)
    total_steps: int = 0
    records_prepared: int = 0  # rows or chunks, while the data is being read
    downloaded: tuple[int, int] | None = None  # bytes of the base model, and how many it has

    def __post_init__(self) -> None:
        self.lately = deque(self.lately, maxlen=_LATELY)

    def add(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case Step():
                self._add_step(event)
            case Downloading():
                self.downloaded = event.done, event.total
            case Preparing():
                self.records_prepared = event.records
            case Started():
                self.total_steps = event.total_steps
                self._forget_after(event.from_step)
            case Evaluation():
                self.evaluation.add(event)
                self._pin(event.step)
            case CheckpointSaved():
                self.saved.pop(event.step, None)
                self.saved[event.step] = event
                if len(self.saved) > _MOST_CHECKPOINTS:
                    del self.saved[next(iter(self.saved))]
                self._pin(event.step)
            case Note():
                self.said.setdefault(event.text, event)  # a continued run says it again
                if len(self.said) > MOST_NOTES:
                    del self.said[next(iter(self.said))]

    def _add_step(self, event: Step) -> None:
        last = self.training.last
        seconds, average, count = (last.seconds, last.average, last.count) if last else (0.0, 0.0, 0)
        if math.isfinite(event.loss):  # one NaN would swallow all that follow
            average, count = _WEIGHT * average + (1 - _WEIGHT) * event.loss, count + 1
        trained = Trained(event, seconds + event.seconds, average, count)
        self.training.add(trained)
        self.lately.append(trained)

    def _pin(self, step: int) -> None:
        """Keep the training's point of a step that has a marker: the chart tells all curves there, and a run that
        goes on from a checkpoint goes on with what had added up by then."""
        found = next((trained for trained in reversed(self.lately) if trained.step <= step), None)
        if found and found.step == step:
            self.training.pin(found)

    def _forget_after(self, step: int) -> None:
        """A run that goes on from a checkpoint does the steps after it once more."""
        self.training.forget_after(step)
        self.evaluation.forget_after(step)
        self.saved = {at: event for at, event in self.saved.items() if at <= step}
        left = [trained for trained in self.lately if trained.step <= step]
        self.lately = deque(left or self.training.points[-_RECENT_STEPS:], maxlen=_LATELY)

    @property
    def steps(self) -> list[Step]:
        """The steps whose points are kept."""
        return [trained.event for trained in self.training.points]

    @property
    def evaluations(self) -> list[Evaluation]:
        """The evaluations whose points are kept."""
        return self.evaluation.points

    @property
    def checkpoints(self) -> list[CheckpointSaved]:
        """The checkpoints saved, by step; of very many the last thousand."""
        return sorted(self.saved.values(), key=lambda event: event.step)

    @property
    def notes(self) -> list[Note]:
        """What was noted, each text once; of very many the last hundred."""
        return list(self.said.values())

    @property
    def step(self) -> int:
        """Steps done."""
        return self.training.last.step if self.training.last else 0

    @property
    def seconds(self) -> float:
        """How long all steps took."""
        return self.training.last.seconds if self.training.last else 0.0

    @property
    def progress(self) -> float:
        """Share of the steps that are done, 0 to 1."""
        return self.step / self.total_steps if self.total_steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed over the last steps; 0 before the first."""
        recent = self._recent()
        seconds = sum(e.seconds for e in recent)
        return sum(e.tokens for e in recent) / seconds if seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the remaining steps take at the speed of the last ones; None before the first."""
        recent = self._recent()
        if not recent:
            return None
        return (self.total_steps - self.step) * sum(e.seconds for e in recent) / len(recent)

    def _recent(self) -> list[Step]:
        return [self.lately[index].event for index in range(-min(_RECENT_STEPS, len(self.lately)), 0)]
