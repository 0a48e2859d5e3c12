"""What a run's events add up to: the curves, the progress and the notes that the monitor and the command line show."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.events import CheckpointSaved, Downloading, Evaluation, Event, Note, Preparing, Started, Step

_RECENT_STEPS = 20  # enough to smooth the speed, few enough to follow a change


@dataclass
class History:
    """The story of a run so far."""

    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    checkpoints: list[CheckpointSaved] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    total_steps: int = 0
    records_prepared: int = 0  # rows or chunks, while the data is being read
    downloaded: tuple[int, int] | None = None  # bytes of the base model, and how many it has

    def add(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case Downloading():
                self.downloaded = event.done, event.total
            case Preparing():
                self.records_prepared = event.records
            case Started():
                self.total_steps = event.total_steps
                self._forget_after(event.from_step)
            case Step():
                self.steps.append(event)
            case Evaluation():
                self.evaluations.append(event)
            case CheckpointSaved():
                self.checkpoints.append(event)
            case Note():
                if event.text not in {note.text for note in self.notes}:  # a continued run says it again
                    self.notes.append(event)

    def copy(self) -> History:
        """The story as it is now, which the events to come do not change."""
        return History(
            list(self.steps),
            list(self.evaluations),
            list(self.checkpoints),
            list(self.notes),
            self.total_steps,
            self.records_prepared,
            self.downloaded,
        )

    def _forget_after(self, step: int) -> None:
        """A run that goes on from a checkpoint does the steps after it once more."""
        self.steps = [e for e in self.steps if e.step <= step]
        self.evaluations = [e for e in self.evaluations if e.step <= step]
        self.checkpoints = [e for e in self.checkpoints if e.step <= step]

    @property
    def step(self) -> int:
        """Steps done."""
        return self.steps[-1].step if self.steps else 0

    @property
    def progress(self) -> float:
        """Share of the steps that are done, 0 to 1."""
        return self.step / self.total_steps if self.total_steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed over the last steps; 0 before the first."""
        recent = self.steps[-_RECENT_STEPS:]
        seconds = sum(e.seconds for e in recent)
        return sum(e.tokens for e in recent) / seconds if seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the remaining steps take at the speed of the last ones; None before the first."""
        recent = self.steps[-_RECENT_STEPS:]
        if not recent:
            return None
        return (self.total_steps - self.step) * sum(e.seconds for e in recent) / len(recent)


def smoothed(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with the bias of its first values corrected (Kingma and Ba, 2015, section 3)."""
    average, result = 0.0, []
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        result.append(average / (1 - weight**count))
    return result
