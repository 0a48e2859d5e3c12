"""Checkpoints are written beside the training: nothing of that shows in what is saved, told and answered."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training import checkpoints, trainer
from training.checkpoint_files import why_damaged
from training.errors import Diverged, UserError
from training.events import CheckpointSaved, Event, Step
from training.paths import Folders
from training.pipeline import train_run
from training.run_state import Status
from training.run_store import create_run
from training.runs import ADAPTER_WEIGHTS, EventReader, Run
from training.trainer import Trainer

PATIENCE = 30.0  # seconds


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = make_folders(tmp_path)
    add_base(made)
    add_dataset(made)
    return made


def new_run(folders: Folders, name: str = "run", **changes: Any) -> Run:
    """A run of 5 steps an epoch, of which only those asked for are saved."""
    values = {"name": name, "batch_size": 2, "save_every": 0, "evaluate_every": 0, "held_out_share": 0, "epochs": 1}
    return create_run(folders, make_settings(**(values | {"save_minutes": 0, "keep_last": 0} | changes)))


class SlowDisk:
    """Keeps each checkpoint from being written until `go_on` is set; `begun` are the steps of those."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.begun: list[int] = []
        self.threads: set[str] = set()
        save = checkpoints.save_checkpoint

        def slowly(run: Run, model: Any, snapshot: Any, *rest: Any) -> Any:
            self.begun.append(snapshot.progress.step)
            self.threads.add(threading.current_thread().name)
            assert self.go_on.wait(PATIENCE)
            return save(run, model, snapshot, *rest)

        monkeypatch.setattr(trainer, "save_checkpoint", slowly)


def on_event(monkeypatch: pytest.MonkeyPatch, reaction: Callable[[Run, Event], None]) -> None:
    append = Run.append

    def append_and_react(run: Run, event: Event) -> None:
        append(run, event)
        reaction(run, event)

    monkeypatch.setattr(Run, "append", append_and_react)


def steps_done(run: Run) -> list[int]:
    return [event.step for event in EventReader(run).read_new() if isinstance(event, Step)]


def test_training_goes_on_while_a_checkpoint_is_written(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = new_run(folders, "plain", save_every=3, lora_dropout=0.2)
    assert train_run(plain, folders)
    disk = SlowDisk(monkeypatch)
    run = new_run(folders, save_every=3, lora_dropout=0.2)
    there: list[int] = []

    def look(run: Run, event: Event) -> None:
        if isinstance(event, Step) and event.step == 5:
            there.extend(checkpoint.step for checkpoint in run.checkpoints())
            disk.go_on.set()

    on_event(monkeypatch, look)
    assert train_run(run, folders)
    assert there == [] and disk.begun == [3, 5] and disk.threads == {"background_0"}
    for step in (3, 5):  # as they are where the training waits, whatever came after
        ours, theirs = (r.folder / f"checkpoint-{step}" for r in (run, plain))
        assert (ours / ADAPTER_WEIGHTS).read_bytes() == (theirs / ADAPTER_WEIGHTS).read_bytes()
        assert json.loads((ours / "progress.json").read_text()) == json.loads((theirs / "progress.json").read_text())
        assert why_damaged(ours) == ""


def test_next_checkpoint_waits_for_the_one_before(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(monkeypatch)
    writing = 0
    save = trainer.save_checkpoint

    def one_at_a_time(*given: Any) -> Any:
        nonlocal writing
        writing += 1
        assert writing == 1
        saved = save(*given)
        writing -= 1
        return saved

    monkeypatch.setattr(trainer, "save_checkpoint", one_at_a_time)
    disk.go_on.set()
    run = new_run(folders, save_every=1)
    assert train_run(run, folders)
    assert disk.begun == [1, 2, 3, 4, 5] == [c.step for c in run.checkpoints()]


def test_whole_model_is_written_while_the_training_waits(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(monkeypatch)
    disk.go_on.set()
    run = new_run(folders, save_every=2, method="full fine-tuning", learning_rate=1e-4)
    assert train_run(run, folders)
    assert disk.begun == [2, 4, 5] and disk.threads == {threading.current_thread().name}


def test_request_is_answered_when_the_checkpoint_is_there(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(monkeypatch)
    still_asked: list[bool] = []

    def ask_and_look(run: Run, event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            run.request_save()
        if isinstance(event, Step) and event.step == 4:
            still_asked.append(run.save_requested())
            disk.go_on.set()
        if isinstance(event, CheckpointSaved) and event.step == 2:
            assert [c.step for c in run.checkpoints()] == [2] and run.save_requested()

    on_event(monkeypatch, ask_and_look)
    run = new_run(folders)
    assert train_run(run, folders)
    assert still_asked == [True] and not run.save_requested()
    assert disk.begun == [2, 5]  # and not again at each step until it was answered


def test_request_made_while_another_is_written_gets_one_of_its_own(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    asked_after: dict[int, bool] = {}

    def ask(run: Run, event: Event) -> None:
        if isinstance(event, Step) and event.step == 4:
            run.request_save()
            disk.go_on.set()
        if isinstance(event, CheckpointSaved):
            asked_after[event.step] = run.save_requested()

    on_event(monkeypatch, ask)
    run = new_run(folders, save_every=3, epochs=4)
    assert train_run(run, folders)
    assert asked_after[3] and not asked_after[20] and not run.save_requested()


@pytest.mark.parametrize("error", [UserError("It cannot be written."), MemoryError("no more")])
def test_error_of_the_writing_ends_the_training_as_itself(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(trainer, "save_checkpoint", fail)
    run = new_run(folders, save_every=20, epochs=6)
    with pytest.raises(type(error)) as caught:
        train_run(run, folders)
    assert caught.value is error
    assert run.stored_state().status is Status.TRAINING and not run.has_result()
    done = steps_done(run)
    assert done == list(range(1, len(done) + 1)) and 20 <= len(done) < 30  # none is lost, and not all are done


def test_divergence_waits_for_what_is_being_written(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(monkeypatch)
    loss_sum = Trainer._accumulate

    def spoilt(self: Trainer, *rest: Any) -> float:
        if self.progress.step < 3:
            return loss_sum(self, *rest)
        threading.Timer(0.1, disk.go_on.set).start()
        return float("nan")

    monkeypatch.setattr(Trainer, "_accumulate", spoilt)
    run = new_run(folders, save_every=2)
    with pytest.raises(Diverged, match="as it was at step 2"):
        train_run(run, folders)
    assert [c.step for c in run.checkpoints()] == [2] and disk.begun == [2]
    ours, saved = load_file(run.folder / ADAPTER_WEIGHTS), load_file(run.checkpoints()[0].folder / ADAPTER_WEIGHTS)
    assert ours.keys() == saved.keys() and all(ours[name].equal(saved[name]) for name in ours)


def test_steps_before_a_checkpoint_are_in_the_file_before_it_is(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed right after goes on behind them, and would never tell of them."""
    monkeypatch.setattr("training.runs._BETWEEN_BATCHES", 3600.0)
    told: list[list[int]] = []
    save = checkpoints.save_checkpoint

    def look(run: Run, *rest: Any) -> Any:
        told.append(steps_done(run))
        return save(run, *rest)

    monkeypatch.setattr(trainer, "save_checkpoint", look)
    run = new_run(folders, save_every=4)
    assert train_run(run, folders)
    assert [steps[:4] for steps in told] == [[1, 2, 3, 4]] * 2 and told[1] == [1, 2, 3, 4, 5]
