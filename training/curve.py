"""A curve of any length in a bounded number of points: the first, the last, and the lowest, highest and first broken
value of each stretch of steps. The stretches double when there are too many points."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import groupby
from typing import Annotated, Generic, Protocol, TypeVar

from pydantic import Field

MOST_POINTS = 1500  # some two for each pixel: more would cost traffic each second and show nothing
MOST_PINNED = 250
_UNPINNED = 50
_SPARE = 4  # points that the open stretch may still add


class Point(Protocol):
    """What a curve is made of."""

    @property
    def step(self) -> int: ...
    @property
    def loss(self) -> float: ...


P = TypeVar("P", bound=Point)


@dataclass
class Curve(Generic[P]):
    """Points in the order of their steps. Up to `MOST_POINTS` less the pinned ones are all kept."""

    kept: list[P] = field(default_factory=list)  # the first one of all, then what each stretch keeps
    pinned: dict[int, P] = field(default_factory=dict)  # points that stay for another reason, by step
    last: P | None = None
    width: Annotated[int, Field(ge=1)] = 1  # steps in a stretch

    def __post_init__(self) -> None:
        self._stretch = self._open = 0  # the stretch of the last point, and where what it keeps begins
        self._low, self._high = math.inf, -math.inf  # of its finite values
        self._reopen()

    def __bool__(self) -> bool:
        return self.last is not None

    @property
    def points(self) -> list[P]:
        """The points as they are to be drawn, never more than `MOST_POINTS`."""
        there = {point.step for point in self.kept}
        more = {**self.pinned, self.last.step: self.last} if self.last else self.pinned
        return sorted([*self.kept, *(p for step, p in more.items() if step not in there)], key=lambda p: p.step)

    @property
    def settled(self) -> float:
        """The points before this step stay as they are, whatever is added."""
        return math.inf if self.width == 1 else self._stretch * self.width

    def add(self, point: P) -> None:
        """Take in the next point."""
        self.last, stretch, loss = point, point.step // self.width, point.loss
        if not self.kept:
            self.kept.append(point)
            return
        if stretch != self._stretch:
            self._begin(stretch)
            while len(self.kept) + len(self.pinned) > MOST_POINTS - _SPARE:
                self._widen()
        elif self._low <= loss <= self._high:
            return
        self.kept[self._open :] = _extremes([*self.kept[self._open :], point])
        if math.isfinite(loss):
            self._low, self._high = min(self._low, loss), max(self._high, loss)

    def pin(self, point: P) -> None:
        """Keep a point whatever its value; the points pinned first make room for those pinned last."""
        self.pinned[point.step] = point
        if len(self.pinned) > MOST_PINNED:  # several at once: pages are sent the whole curve when one goes
            self.pinned = dict(list(self.pinned.items())[_UNPINNED:])

    def forget_after(self, step: int) -> None:
        """Go back to this step. Of a stretch that it cuts, the points that were kept up to there stay."""
        points = [point for point in self.points if point.step <= step]
        self.kept = [point for point in self.kept if point.step <= step]
        self.pinned = {at: point for at, point in self.pinned.items() if at <= step}
        self.last = points[-1] if points else None
        if not self.kept:
            self.width = 1
        self._reopen()

    def _begin(self, stretch: int) -> None:
        self._stretch, self._open = stretch, len(self.kept)
        self._low, self._high = math.inf, -math.inf

    def _widen(self) -> None:
        self.width *= 2
        stretches = groupby(self.kept[1:], key=lambda point: point.step // self.width)
        self.kept[1:] = [point for _, points in stretches for point in _extremes(list(points))]
        self._reopen()

    def _reopen(self) -> None:
        """Go on with the stretch of the last point, which may hold points already."""
        if self.last is None:
            self._begin(0)
            return
        self._begin(self.last.step // self.width)
        while self._open > 1 and self.kept[self._open - 1].step // self.width == self._stretch:
            self._open -= 1
        finite = [point.loss for point in self.kept[max(self._open, 1) :] if math.isfinite(point.loss)]
        self._low, self._high = min(finite, default=math.inf), max(finite, default=-math.inf)


def _extremes(points: list[P]) -> list[P]:
    """The lowest, the highest and the first broken one of these points, in their order, each once."""
    finite = [index for index, point in enumerate(points) if math.isfinite(point.loss)]
    kept = {next((index for index, point in enumerate(points) if not math.isfinite(point.loss)), None)}
    if finite:
        kept |= {min(finite, key=lambda i: points[i].loss), max(finite, key=lambda i: points[i].loss)}
    return [points[index] for index in sorted(index for index in kept if index is not None)]
