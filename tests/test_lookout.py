"""What all pages see is read once and drawn once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import make_folders, make_settings
from training.checkpoint_files import SPARE_BYTES
from training.paths import Folders
from training.run_queue import RunQueue
from training.run_state import Status
from training.run_store import create_run, delete_run
from training.runs import Run
from ui import lookout
from ui.lookout import LATEST, Lookout
from ui.monitor import queue_html


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


@pytest.fixture
def watch(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> Lookout:
    monkeypatch.setattr(lookout, "_FRESH", 3600.0)
    return Lookout(folders, RunQueue(folders))


def add(folders: Folders, name: str, status: Status) -> Run:
    run = create_run(folders, make_settings(name=name))
    run.set_state(status)
    if status is Status.QUEUED:
        RunQueue(folders).add(run)
    return run


def test_a_look_serves_all_pages_until_it_is_old_or_something_was_changed(folders: Folders, watch: Lookout) -> None:
    first = watch.overview()
    add(folders, "new", Status.DONE)
    assert watch.overview() is first
    watch.forget()
    assert [seen.run.name for seen in watch.overview().runs] == ["new"]


def test_latest_is_what_trains_then_what_comes_next_then_the_newest(folders: Folders, watch: Lookout) -> None:
    def latest() -> str:
        watch.forget()
        seen = watch.overview().find(LATEST)
        return seen.run.name if seen else ""

    assert latest() == ""
    running, waiting, _ = (
        add(folders, name, status)
        for name, status in (("running", Status.TRAINING), ("waiting", Status.QUEUED), ("newest", Status.DONE))
    )
    assert latest() == "running"
    running.set_state(Status.FAILED)
    assert latest() == "waiting"
    waiting.set_state(Status.STOPPED)
    assert latest() == "newest"


def test_choices_say_what_trains_and_what_waits(folders: Folders, watch: Lookout) -> None:
    for name, status in (("a", Status.TRAINING), ("b", Status.QUEUED), ("c", Status.DONE)):
        add(folders, name, status)
    overview = watch.overview()
    assert sorted(overview.choices)[1:] == [("a (training)", "a"), ("b (waits, place 1)", "b"), ("c", "c")]
    assert overview.busy and overview.waiting == ("b",)


def test_what_was_asked_of_a_worker_is_seen(folders: Folders, watch: Lookout) -> None:
    run = add(folders, "a", Status.TRAINING)
    before = watch.overview().runs[0]
    assert not (before.stopping or before.saving or before.cancelling) and before.ended_in is None
    run.request_stop()
    run.request_save()
    run.request_cancel()
    watch.forget()
    seen = watch.overview().runs[0]
    assert seen.stopping and seen.saving and seen.cancelling and seen.key != before.key
    assert seen.ended_in is not None and 500 < seen.ended_in <= 600


def test_a_full_disk_matters_to_a_run_that_trains(
    folders: Folders, watch: Lookout, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [0]
    monkeypatch.setattr(lookout, "free_bytes", lambda _: free[0])
    run = add(folders, "a", Status.TRAINING)
    seen = []
    for free[0] in (SPARE_BYTES, SPARE_BYTES - 1, 0):
        seen.append(watch.overview().runs[0])
        watch.forget()
    assert [(s.little_room, s.disk_full) for s in seen] == [(False, False), (True, False), (True, True)]
    assert len({s.key for s in seen}) == 3
    run.set_state(Status.DONE)
    assert not watch.overview().runs[0].little_room


def test_the_trash_is_seen(folders: Folders, watch: Lookout) -> None:
    trashed = delete_run(add(folders, "a", Status.DONE))
    assert watch.overview().trash == (trashed,)


def test_a_part_is_drawn_once_for_each_key(watch: Lookout) -> None:
    drawn: list[int] = []

    def draw() -> int:
        drawn.append(1)
        return len(drawn)

    assert [watch.drawn("chart", "a", key, draw) for key in (1, 1, 2, 2, 1)] == [1, 1, 2, 2, 3]
    assert watch.drawn("log", "a", 1, draw) == watch.drawn("log", "a", 1, draw) == 4


def test_many_pages_look_less_often_and_a_few_each_second(watch: Lookout, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(lookout.time, "monotonic", lambda: clock[0])

    def settle(pages: int) -> set[int]:
        """The periods of so many pages after a minute and a half."""
        due = [(clock[0], 1)] * pages
        end = clock[0] + 90
        while clock[0] < end:
            due.sort()
            when, period = due[0]
            clock[0] = max(clock[0], when)
            period = watch.pace(period)
            due[0] = clock[0] + period, period
        return {period for _, period in due}

    assert settle(1) == {1} and settle(3) == {1}
    assert settle(40) == {10}
    assert settle(2) == {1}, "and each second again when the others have gone"


def test_failure_that_the_next_run_would_hide_is_told(folders: Folders, watch: Lookout) -> None:
    failed = add(folders, "first", Status.FAILED)
    assert watch.overview().failed_before == ""  # it is on display itself
    add(folders, "next", Status.TRAINING)
    watch.forget()
    overview = watch.overview()
    assert overview.failed_before == failed.name and failed.name in queue_html(overview)
    assert (f"{failed.name} (failed)", failed.name) in overview.choices
    failed.set_state(Status.STOPPED)
    watch.forget()
    assert watch.overview().failed_before == "" and queue_html(watch.overview()) == ""
