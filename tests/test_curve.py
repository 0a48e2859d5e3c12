"""A curve of any length keeps what matters of it in a bounded number of points."""

from __future__ import annotations

import math
import random
from collections import defaultdict

import pytest

from training.curve import MOST_PINNED, MOST_POINTS, Curve
from training.events import Evaluation

Point = Evaluation


def curve_of(points: list[Point]) -> Curve[Point]:
    curve: Curve[Point] = Curve()
    for point in points:
        curve.add(point)
    return curve


def random_points(rnd: random.Random, count: int, first: int = 1) -> list[Point]:
    """Losses with a drift, spikes and a few that are no number, at steps that may have gaps."""
    gap, level = rnd.choice([1, 1, 3]), rnd.uniform(-2, 2)
    points = []
    for step in range(first, first + count * gap, gap):
        loss = level + step * rnd.uniform(-1e-4, 1e-4) + rnd.gauss(0, 0.1) + (rnd.random() < 0.001) * rnd.gauss(0, 9)
        broken = rnd.random() < 0.0005
        points.append(Point(step=step, loss=rnd.choice([math.nan, math.inf, -math.inf]) if broken else loss))
    return points


def assert_tells(curve: Curve[Point], truth: list[Point]) -> None:
    """The points are true, few, in order, and hold the first, the last and each stretch's extremes."""
    shown = curve.points
    at = {point.step: point for point in truth}
    assert len(shown) <= MOST_POINTS
    assert all(point is at[point.step] for point in shown)
    assert [point.step for point in shown] == sorted({point.step for point in shown})
    assert (shown[0], shown[-1]) == (truth[0], truth[-1])
    stretches: defaultdict[int, list[Point]] = defaultdict(list)
    for point in truth[1:]:
        stretches[point.step // curve.width].append(point)
    ids = {id(point) for point in shown}
    for points in stretches.values():
        finite = [point for point in points if math.isfinite(point.loss)]
        wanted = [min(finite, key=lambda p: p.loss), max(finite, key=lambda p: p.loss)] if finite else []
        wanted += [point for point in points if not math.isfinite(point.loss)][:1]
        assert ids.issuperset(map(id, wanted))


@pytest.mark.parametrize("count", [0, 1, 2, MOST_POINTS - MOST_PINNED])
def test_a_short_curve_is_kept_whole(count: int) -> None:
    points = random_points(random.Random(count), count)
    curve = curve_of(points)
    for point in points[-MOST_PINNED:]:
        curve.pin(point)
    assert curve.points == points
    assert bool(curve) == bool(points)


@pytest.mark.parametrize("seed", range(12))
def test_a_long_curve_keeps_the_extremes_of_each_stretch(seed: int) -> None:
    rnd = random.Random(seed)
    points = random_points(rnd, rnd.randint(1_000, 12_000), first=rnd.choice([0, 1, 977]))
    curve = curve_of(points)
    assert_tells(curve, points)
    if len(points) > MOST_POINTS:
        assert len(curve.points) > MOST_POINTS / 3, "thinned more than needed"


def test_it_tells_at_any_moment_and_what_is_settled_stays() -> None:
    points = random_points(random.Random(5), 4000)
    curve: Curve[Point] = Curve()
    before: list[Point] = []
    width, settled = curve.width, curve.settled
    for count, point in enumerate(points, start=1):
        curve.add(point)
        if count % 37 == 0:
            assert_tells(curve, points[:count])
            if curve.width == width:  # only wider stretches change what was settled
                assert [p for p in curve.points if p.step < settled][: len(before)] == before
            width, settled = curve.width, curve.settled
            before = [p for p in curve.points if p.step < settled]


def test_all_values_broken() -> None:
    points = [Point(step=step, loss=math.nan) for step in range(10_000)]
    curve = curve_of(points)
    assert MOST_POINTS / 3 < len(curve.points) <= MOST_POINTS
    assert all(point is points[point.step] for point in curve.points)


def test_pinned_points_stay_and_the_oldest_make_room() -> None:
    points = [Point(step=step, loss=1.0) for step in range(1, 50_001)]
    curve: Curve[Point] = Curve()
    for point in points:
        curve.add(point)
        if point.step % 100 == 0:
            curve.pin(point)
    steps = {point.step for point in curve.points}
    assert MOST_PINNED / 2 < len(curve.pinned) <= MOST_PINNED and len(steps) <= MOST_POINTS
    assert steps.issuperset(range(50_000 - 100 * (MOST_PINNED // 2), 50_001, 100))


@pytest.mark.parametrize("seed", range(8))
def test_steps_done_again_take_the_place_of_the_first_ones(seed: int) -> None:
    rnd = random.Random(seed)
    truth = random_points(rnd, 6000)
    curve = curve_of(truth)
    for _ in range(4):
        pinned = rnd.choice(truth[-150:])  # as for a checkpoint
        curve.pin(pinned)
        back_to = rnd.choice([pinned.step, rnd.randrange(truth[-1].step)])
        curve.forget_after(back_to)
        truth = [point for point in truth if point.step <= back_to]
        assert all(point.step <= back_to for point in curve.points)
        if back_to == pinned.step:
            assert curve.last is pinned
        again = random_points(rnd, rnd.randint(1, 3000), first=back_to + 1)
        for point in again:
            curve.add(point)
        truth += again
        at = {point.step: point for point in truth}
        shown = curve.points
        assert all(point is at[point.step] for point in shown) and len(shown) <= MOST_POINTS
        assert shown[-1] is truth[-1] and shown[0] is truth[0]
        # From the next stretch on nothing is missing.
        after = [point for point in truth if point.step // curve.width > back_to // curve.width]
        for extreme in (min, max):
            finite = [point for point in after if math.isfinite(point.loss)]
            if finite:
                value = extreme(point.loss for point in finite)
                assert value in [point.loss for point in shown]


def test_going_back_to_the_start_begins_anew() -> None:
    curve = curve_of(random_points(random.Random(0), 9000))
    curve.forget_after(0)
    assert not curve and curve.points == [] and curve.width == 1
    again = random_points(random.Random(1), 100)
    for point in again:
        curve.add(point)
    assert curve.points == again
