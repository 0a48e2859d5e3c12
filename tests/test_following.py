"""A run's events are taken in as they come, and what they add up to is kept for the next server."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from training import following
from training.events import CheckpointSaved, Evaluation, Note, Started, Step
from training.following import LOOK_BYTES, SUMMARY_FILE, Following
from training.history import History
from training.runs import EventReader, Run


def step(number: int) -> Step:
    loss = math.nan if number % 997 == 0 else 2 + math.sin(number)
    return Step(
        step=number, epoch=1, loss=loss, learning_rate=1e-4, grad_norm=math.inf, tokens=9, seconds=0.5, memory=7
    )


def write(run: Run, first: int, last: int) -> None:
    """Steps from the first to the last, with an evaluation at each hundredth."""
    with run.events_file.open("a") as file:
        for number in range(first, last + 1):
            file.write(step(number).model_dump_json() + "\n")
            if number % 100 == 0:
                file.write(Evaluation(step=number, loss=2.0).model_dump_json() + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "first")
    run.folder.mkdir()
    run.append(Started(from_step=0, total_steps=50_000, epochs=1))
    return run


def whole(found: Following, run: Run) -> History:
    """The history once all is in it."""
    size = run.events_file.stat().st_size
    while found.look(size) < size:
        pass
    with found.lock:
        return found.history


def plain(run: Run) -> History:
    history = History()
    for event in EventReader(run).read_new():
        history.add(event)
    return history


def tells(history: History) -> str:
    """All that it says, in a form that can be compared: NaN is not equal to itself."""
    return following._Summary(layout=0, offset=0, digest="", history=history).model_dump_json()


def test_a_look_is_bounded_and_a_thread_takes_in_the_rest(run: Run) -> None:
    write(run, 1, 9000)
    found, size = Following(run), run.events_file.stat().st_size
    assert LOOK_BYTES <= found.look(size) < size / 2
    assert tells(whole(found, run)) == tells(plain(run))
    write(run, 9001, 9100)
    assert found.look(size) == size, "what was added after the size was taken is for the next look"
    assert tells(whole(found, run)) == tells(plain(run))


def test_the_next_server_goes_on_from_the_summary(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, 1, 9000)
    whole(Following(run), run)
    write(run, 9001, 9500)
    run.append(CheckpointSaved(step=9500, loss=None, evaluation_loss=1.0))
    run.append(Note(text="It goes on."))
    read: list[int] = []
    original = EventReader.read_new

    def counting(reader: EventReader, most: int = -1) -> object:
        read.append(-reader.offset)
        result = original(reader, most)
        read[-1] += reader.offset
        return result

    expected = tells(plain(run))
    monkeypatch.setattr(EventReader, "read_new", counting)
    again = Following(run)
    assert again.offset > 2**20
    assert tells(whole(again, run)) == expected
    assert sum(read) < run.events_file.stat().st_size - 2**20


def test_going_on_from_a_checkpoint_is_the_same_from_a_summary(run: Run) -> None:
    write(run, 1, 8000)
    run.append(CheckpointSaved(step=8000, loss=1.0, evaluation_loss=1.0))
    whole(Following(run), run)
    assert (run.folder / SUMMARY_FILE).is_file()
    run.append(Started(from_step=8000, total_steps=60_000, epochs=2))
    write(run, 8001, 8050)
    assert tells(whole(Following(run), run)) == tells(plain(run))


@pytest.mark.parametrize(
    "damage",
    ["torn", "empty", "of another layout", "too large", "a folder", "wrong width", "of other events", "of more events"],
)
def test_a_summary_that_does_not_fit_is_thrown_away(run: Run, damage: str) -> None:
    write(run, 1, 9000)
    whole(Following(run), run)
    file = run.folder / SUMMARY_FILE
    text = file.read_text()
    if damage == "torn":
        file.write_text(text[:-100])
    elif damage == "empty":
        file.write_text("")
    elif damage == "too large":
        file.write_text(text + " " * following._LARGEST_SUMMARY)
    elif damage == "a folder":
        file.unlink()
        file.mkdir()
    elif damage.startswith("of "):
        events = run.events_file.read_text().splitlines(keepends=True)
        if damage == "of other events":
            run.events_file.write_text("".join(events).replace('"loss":2.', '"loss":3.'))
        elif damage == "of more events":
            run.events_file.write_text("".join(events[:-6000]))
        else:
            file.write_text(json.dumps(json.loads(text) | {"layout": 0}))
    else:
        summary = json.loads(text)
        summary["history"]["training"]["width"] = 0
        file.write_text(json.dumps(summary))
    again = Following(run)
    assert again.offset == 0
    assert tells(whole(again, run)) == tells(plain(run))


def test_a_short_run_has_no_summary(run: Run) -> None:
    write(run, 1, 100)
    whole(Following(run), run)
    assert not (run.folder / SUMMARY_FILE).exists()


def test_a_folder_that_cannot_be_written_or_has_no_room_is_only_slower(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, 1, 9000)
    monkeypatch.setattr(following, "free_bytes", lambda _: 0)
    assert whole(Following(run), run).step == 9000

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(following, "free_bytes", lambda _: 2**40)
    monkeypatch.setattr(following, "write_atomically", refuse)
    assert whole(Following(run), run).step == 9000
    assert not (run.folder / SUMMARY_FILE).exists()


def test_events_that_got_shorter_are_others(run: Run) -> None:
    write(run, 1, 10)
    found = Following(run)
    whole(found, run)
    assert not found.is_outdated()
    run.events_file.write_text("")
    assert found.is_outdated()
