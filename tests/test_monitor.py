"""The monitor's HTML tells what the run folder says, with the user's text as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.events import CheckpointSaved, Evaluation, Note, Started, Step
from training.history import History
from training.runs import Run, State, Status
from ui.monitor import Histories, checkpoints_html, duration, status_html


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


def test_running_shows_progress_speed_and_time_left(run: Run, history: History) -> None:
    html = status_html(run, State(status=Status.TRAINING), history, stopping=False)
    for text in ("Training", "my-run", "2 / 20", "width:10.0%", "2,000", "time left", "9s", "1.0 GB", "1.500"):
        assert text in html


def test_failed_shows_its_cause_once(run: Run, history: History) -> None:
    history.add(Note(level="error", text="The disk is full."))
    html = status_html(run, State(status=Status.FAILED, cause="The disk is full."), history, stopping=False)
    assert html.count("The disk is full.") == 1
    assert "Failed" in html
    assert "Done" not in html


def test_stopping_is_said_while_the_worker_is_at_it(run: Run, history: History) -> None:
    assert "Stopping" in status_html(run, State(status=Status.TRAINING), history, stopping=True)
    assert "Stopping" not in status_html(run, State(status=Status.STOPPED), history, stopping=True)


def test_text_of_the_user_is_never_markup(tmp_path: Path) -> None:
    run = Run(tmp_path / "<img src=x onerror=alert(1)>")
    history = History()
    history.add(Note(text="<script>alert(2)</script>"))
    html = status_html(run, State(status=Status.FAILED, cause="<b>bold</b>"), history, stopping=False)
    for markup in ("<img", "<script", "<b>bold"):
        assert markup not in html


def test_checkpoints_on_disk_are_listed_newest_first(run: Run) -> None:
    history = History()
    for step in (10, 20, 30):
        history.add(CheckpointSaved(step=step, loss=1.0, evaluation_loss=None))
    for step in (20, 30):  # the first was deleted to keep the last two
        (run.folder / f"checkpoint-{step}").mkdir()
    html = checkpoints_html(run, history)
    assert html.index("checkpoint-30") < html.index("checkpoint-20")
    assert "checkpoint-10" not in html


def test_histories_read_each_event_once_and_notice_a_new_run_of_the_same_name(run: Run) -> None:
    histories = Histories()
    run.append(_step(1))
    assert histories.read(run).step == 1
    run.append(_step(2))
    assert [e.step for e in histories.read(run).steps] == [1, 2]
    run.folder.rename(run.folder.with_name("old"))
    run.folder.mkdir()
    run.append(_step(1))
    assert [e.step for e in histories.read(run).steps] == [1]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59, "59s"), (61, "1m 01s"), (3661, "1h 01m")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
