"""The monitor's HTML tells what the run folder says, with the user's text as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.events import CheckpointSaved, Evaluation, Note, Started, Step
from training.history import MOST_NOTES, History
from training.run_state import Reason, State, Status
from training.runs import Run
from ui.lookout import Overview, Seen
from ui.monitor import Histories, checkpoints_html, duration, queue_html, status_html


def _step(step: int, loss: float = 2.0) -> Step:
    return Step(
        step=step, epoch=step / 10, loss=loss, learning_rate=1e-4, grad_norm=1, tokens=1000, seconds=0.5, memory=2**30
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "my-run")
    run.folder.mkdir()
    return run


@pytest.fixture
def history() -> History:
    history = History()
    for event in (Started(from_step=0, total_steps=20, epochs=2), _step(1), _step(2), Evaluation(step=2, loss=1.5)):
        history.add(event)
    return history


def _html(run: Run, history: History, status: Status, *, cause: str = "", reason: Any = None, **seen: Any) -> str:
    return status_html(Seen(run, State(status=status, cause=cause, reason=reason), **seen), history)


def test_running_shows_progress_speed_and_time_left(run: Run, history: History) -> None:
    html = _html(run, history, Status.TRAINING)
    for text in ("Training", "my-run", "2 / 20", "width:10.0%", "2,000", "time left", "9s", "1.0 GB", "1.500"):
        assert text in html


def test_failed_shows_its_cause_once(run: Run, history: History) -> None:
    history.add(Note(level="error", text="The disk is full."))
    html = _html(run, history, Status.FAILED, cause="The disk is full.")
    assert html.count("The disk is full.") == 1
    assert "Failed" in html and "graft-note-error" in html
    assert "Done" not in html


def test_a_run_that_waits_for_room_has_not_failed(run: Run, history: History) -> None:
    html = _html(run, history, Status.TRAINING, cause="The disk is full.")
    assert "Waiting" in html and "graft-waiting" in html and "graft-note-warning" in html
    assert "time left" not in html and "time trained" in html
    assert "graft-note-error" not in html


def test_a_full_disk_is_told_even_where_the_worker_cannot_say_it(run: Run, history: History) -> None:
    html = _html(run, history, Status.SAVING, little_room=True)
    assert "The disk is nearly full" in html and "graft-waiting" in html and "<strong>Saving" in html
    html = _html(run, history, Status.SAVING, little_room=True, disk_full=True)
    assert "The disk is full: the training waits" in html and "<strong>Waiting" in html


def test_a_loss_that_broke_pauses_the_run(run: Run, history: History) -> None:
    html = _html(run, history, Status.STOPPED, cause="The loss is no number.", reason=Reason.DIVERGED)
    assert "Paused" in html and "graft-note-error" in html
    html = _html(run, history, Status.STOPPED, cause="It was taken out of the queue.")
    assert "Stopped" in html and "graft-note-info" in html


def test_stopping_is_said_with_its_grace_while_the_worker_is_at_it(run: Run, history: History) -> None:
    html = _html(run, history, Status.TRAINING, stopping=True, ended_in=580)
    assert "Stopping after this step, then saving" in html
    assert "A worker that gives no sign of life is ended in 9m 40s." in html
    assert "Cancelling" in _html(run, history, Status.TRAINING, stopping=True, ended_in=580, cancelling=True)
    assert "Stopping" not in _html(run, history, Status.STOPPED)


def test_a_place_in_the_queue(run: Run) -> None:
    html = _html(run, History(), Status.QUEUED, place=2, waiting=3)
    assert "Waits in the queue, place 2 of 3" in html


def test_text_of_the_user_is_never_markup(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    history = History()
    history.add(Note(text="<script>alert(2)</script>"))
    html = _html(Run(tmp_path / name), history, Status.FAILED, cause="<b>bold</b>")
    html += queue_html(Overview(waiting=(name,)))
    assert html.count("&lt;img") == 2
    for markup in ("<img", "<script", "<b>bold"):
        assert markup not in html


def test_the_queue_is_listed_in_its_order() -> None:
    assert queue_html(Overview()) == ""
    assert "<li>b</li><li>a</li>" in queue_html(Overview(waiting=("b", "a")))


def test_checkpoints_on_disk_are_listed_newest_first() -> None:
    history = History()
    for step in (10, 20, 30, 30):  # the last was saved once more, because that was asked for
        history.add(CheckpointSaved(step=step, loss=1.0, evaluation_loss=None))
    html = checkpoints_html({20, 30}, history)  # the first was deleted to keep the last two
    assert html.index("checkpoint-30") < html.index("checkpoint-20")
    assert "checkpoint-10" not in html and html.count("checkpoint-30") == 1 and "older ones" not in html


def test_of_very_many_checkpoints_the_oldest_are_counted() -> None:
    history = History()
    for step in range(1, 1201):
        history.add(CheckpointSaved(step=step, loss=1.0, evaluation_loss=None))
    html = checkpoints_html(range(1, 1201), history)
    assert html.count("<code>") == 1000 and "and 200 older ones" in html


def test_of_very_many_notes_the_last_are_shown(run: Run, history: History) -> None:
    for number in range(MOST_NOTES - 1):
        history.add(Note(text=f"note {number}."))
    assert "events.jsonl" not in _html(run, history, Status.DONE)
    for number in range(MOST_NOTES, MOST_NOTES + 5):
        history.add(Note(text=f"note {number}."))
    html = _html(run, history, Status.DONE)
    assert "What was noted before is in the run&#x27;s events.jsonl." in html
    assert "note 104." in html and "note 1." not in html


def test_events_that_are_not_read_yet_are_said(run: Run, history: History) -> None:
    seen = Seen(run, State(status=Status.TRAINING), events_size=10_000_000)
    assert "Reading what this run has reported: 60 %." in status_html(seen, history, 4_000_000)
    assert "Reading" not in status_html(seen, history, 100)


def test_histories_take_in_each_event_once_and_notice_a_new_run_of_the_same_name(run: Run) -> None:
    histories = Histories()

    def steps() -> list[int]:
        histories.look(run, run.events_file.stat().st_size)
        return histories.draw(run, lambda history, _: [event.step for event in history.steps])

    run.append(_step(1))
    assert steps() == [1]
    run.append(_step(2))
    assert steps() == [1, 2]
    run.folder.rename(run.folder.with_name("old"))
    run.folder.mkdir()
    run.append(_step(1))
    assert steps() == [1]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59, "59s"), (61, "1m 01s"), (3661, "1h 01m")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
