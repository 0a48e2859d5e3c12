"""How runs are made, continued, replaced, deleted and brought back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_folders, make_settings
from training.errors import UserError
from training.paths import Folders
from training.run_state import Status
from training.run_store import (
    NameInUse,
    continue_run,
    create_run,
    delete_run,
    empty_trash,
    extended,
    restore_run,
    trashed_runs,
)
from training.runs import Run, find_run, list_runs


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


@pytest.fixture
def run(folders: Folders) -> Run:
    run = create_run(folders, make_settings())
    run.set_state(Status.STOPPED)
    return run


def add_checkpoint(run: Run, number: int) -> Path:
    folder = run.folder / f"checkpoint-{number}"
    folder.mkdir()
    return folder


def add_adapter(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").touch()


# New runs where the name exists


def test_new_version_leaves_the_old_one(folders: Folders, run: Run) -> None:
    run.set_state(Status.DONE)
    add_adapter(run.folder)
    second, third = (create_run(folders, make_settings(if_exists="new version")) for _ in range(2))
    assert (second.name, third.name) == ("test-2", "test-3")
    assert second.settings().name == "test-2"
    assert run.state().status is Status.DONE


@pytest.mark.parametrize("status", [Status.DONE, Status.QUEUED, Status.TRAINING])
def test_name_in_use_asks_and_makes_nothing(folders: Folders, run: Run, status: Status) -> None:
    add_adapter(run.folder)
    run.set_state(status)
    with pytest.raises(NameInUse, match="a LoRA called 'test' already") as caught:
        create_run(folders, make_settings())
    assert caught.value.run.name == "test"
    assert [run.name for run in list_runs(folders)] == ["test"] and run.state().status is status


def test_new_version_leaves_a_foreign_folder(folders: Folders) -> None:
    (folders.loras / "test").mkdir()
    (folders.loras / "test" / "precious.txt").touch()
    assert create_run(folders, make_settings(if_exists="new version")).name == "test-2"
    assert (folders.loras / "test" / "precious.txt").exists()


def test_attempt_that_learnt_nothing_gives_its_name_back(folders: Folders, run: Run) -> None:
    run.set_state(Status.FAILED, "no such file")
    assert create_run(folders, make_settings()).name == "test"
    assert len(list((folders.loras / ".replaced").iterdir())) == 1


def test_overwritten_runs_are_all_kept_aside(folders: Folders, run: Run) -> None:
    for number in range(3):
        run.set_state(Status.DONE)
        (run.folder / f"mark-{number}").touch()
        run = create_run(folders, make_settings(if_exists="overwrite"))
        assert run.name == "test" and not list(run.folder.glob("mark-*"))
    aside = list((folders.loras / ".replaced").iterdir())
    assert len(aside) == 3
    assert {p.name for folder in aside for p in folder.glob("mark-*")} == {"mark-0", "mark-1", "mark-2"}
    assert [r.name for r in list_runs(folders)] == ["test"]


@pytest.mark.parametrize("if_exists", ["overwrite", "continue"])
def test_run_in_training_is_left_alone(folders: Folders, run: Run, if_exists: str) -> None:
    add_checkpoint(run, 5)
    run.set_state(Status.TRAINING)
    with pytest.raises(UserError, match="is being trained at this moment"):
        create_run(folders, make_settings(if_exists=if_exists))
    assert run.folder.is_dir()


def test_unsafe_name_makes_no_folder(folders: Folders) -> None:
    with pytest.raises(UserError):
        create_run(folders, make_settings().model_copy(update={"name": "../up"}))
    assert list(folders.loras.iterdir()) == []


# Going on


def continued(folders: Folders, **changes: Any) -> Run:
    return create_run(folders, make_settings(if_exists="continue", **changes))


@pytest.mark.parametrize("status", [Status.STOPPED, Status.FAILED])
def test_run_goes_on_in_its_folder(folders: Folders, run: Run, status: Status) -> None:
    add_checkpoint(run, 5)
    run.set_state(status)
    run.request_stop()
    same = continued(folders, micro_batch_size=1, save_every=7)
    assert same.folder == run.folder
    assert same.state().status is Status.QUEUED and not same.stop_requested()
    assert same.settings().save_every == 7
    assert [c.step for c in same.checkpoints()] == [5]


def test_run_that_saved_nothing_begins_anew_with_any_settings(folders: Folders, run: Run) -> None:
    same = continued(folders, lora_rank=8)
    assert same.folder == run.folder and same.state().status is Status.QUEUED
    assert same.settings().lora_rank == 8


def test_result_without_checkpoints_cannot_go_on(folders: Folders, run: Run) -> None:
    add_adapter(run.folder)
    with pytest.raises(UserError, match="no checkpoint to continue from"):
        continued(folders)


def test_run_in_the_queue_cannot_go_on_or_be_replaced(folders: Folders, run: Run) -> None:
    run.set_state(Status.QUEUED)
    for if_exists in ("continue", "overwrite"):
        with pytest.raises(UserError, match="waits in the queue: take it out first"):
            create_run(folders, make_settings(if_exists=if_exists))


def test_foreign_adapter_cannot_go_on(folders: Folders) -> None:
    add_adapter(folders.loras / "test")
    with pytest.raises(UserError, match="no checkpoint"):
        continued(folders)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora_rank": 8}, "LoRA rank"),
        ({"cutoff_length": 99}, "Cutoff length"),
        ({"dataset": "other.json"}, "Dataset"),
        ({"lora_rank": 8, "seed": 1}, "LoRA rank, Seed"),
    ],
)
def test_other_settings_cannot_go_on(folders: Folders, run: Run, changes: dict[str, Any], named: str) -> None:
    add_checkpoint(run, 5)
    run.set_state(Status.STOPPED)
    before = json.loads((run.folder / "settings.json").read_text())
    with pytest.raises(UserError) as caught:
        continued(folders, **changes)
    assert f"({named})" in str(caught.value)
    assert json.loads((run.folder / "settings.json").read_text()) == before
    assert run.state().status is Status.STOPPED


def test_run_that_is_done_goes_on_with_more_epochs_only(folders: Folders, run: Run) -> None:
    add_checkpoint(run, 5)
    run.set_state(Status.DONE)
    with pytest.raises(UserError, match="is done as it was asked: raise Epochs"):
        continued(folders)
    assert continued(folders, epochs=3).state().status is Status.QUEUED


def test_new_name_to_go_on_with_is_a_new_run(folders: Folders) -> None:
    assert continued(folders).state().status is Status.QUEUED


def test_continue_run_is_all_or_nothing(folders: Folders, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    add_checkpoint(run, 5)
    run.set_state(Status.STOPPED)
    refuse: Callable[..., None] = lambda *_: (_ for _ in ()).throw(OSError("disk"))  # noqa: E731
    monkeypatch.setattr(Run, "write_settings", refuse)
    with pytest.raises(OSError, match="disk"):
        continue_run(run, make_settings())
    assert run.state().status is Status.STOPPED


def test_done_early_goes_on_where_the_reason_is_taken_away(folders: Folders, run: Run) -> None:
    early = make_settings(patience=2, stop_at_loss=1.0)
    run.write_settings(early)
    add_checkpoint(run, 5)
    run.set_state(Status.DONE)
    for same in ({}, {"patience": 1}, {"stop_at_loss": 2.0}):
        with pytest.raises(UserError, match="raise Epochs and lower Stop at loss and raise Early stopping"):
            continued(folders, **{"patience": 2, "stop_at_loss": 1.0} | same)
    for other in ({"patience": 0}, {"patience": 3}, {"stop_at_loss": 0}, {"epochs": 3}):
        assert continued(folders, **{"patience": 2, "stop_at_loss": 1.0} | other).state().status is Status.QUEUED
        run.write_settings(early)
        run.set_state(Status.DONE)


@pytest.mark.parametrize(
    ("amount", "unit", "epochs"), [(2, "epochs", 4.0), (0.5, "epochs", 2.5), (3, "steps", 3.5), (1, "steps", 2.5)]
)
def test_extending(run: Run, amount: float, unit: str, epochs: float) -> None:
    (run.folder / "receipt.json").write_text(json.dumps({"steps_per_epoch": 2}))
    assert extended(run, amount, unit) == {"epochs": epochs}


@pytest.mark.parametrize(("amount", "unit"), [(0, "epochs"), (-1, "steps"), (float("nan"), "epochs")])
def test_extending_by_nothing_is_refused(run: Run, amount: float, unit: str) -> None:
    (run.folder / "receipt.json").write_text(json.dumps({"steps_per_epoch": 2}))
    with pytest.raises(UserError, match="more than 0"):
        extended(run, amount, unit)


def test_extending_by_steps_without_a_receipt(run: Run) -> None:
    with pytest.raises(UserError, match="by epochs instead"):
        extended(run, 3, "steps")


# Trash


def test_deleted_run_can_be_brought_back(folders: Folders, run: Run) -> None:
    add_adapter(run.folder)
    trashed = delete_run(run)
    assert list_runs(folders) == [] and trashed.name == "test" and trashed_runs(folders) == [trashed]
    back = restore_run(folders, trashed)
    assert back.name == "test" and find_run(folders, "test").has_result()
    assert trashed_runs(folders) == []


def test_brought_back_beside_a_new_one_of_its_name(folders: Folders, run: Run) -> None:
    add_adapter(run.folder)
    trashed = delete_run(run)
    create_run(folders, make_settings())
    back = restore_run(folders, trashed)
    assert back.name == back.settings().name == "test-2"
    with pytest.raises(UserError, match="not in the trash any more"):
        restore_run(folders, trashed)


def test_trash_keeps_all_of_one_name_and_is_emptied_when_asked(folders: Folders) -> None:
    for _ in range(3):
        run = create_run(folders, make_settings(name="my-20261121-101010"))
        run.set_state(Status.DONE)
        delete_run(run)
    assert [trashed.name for trashed in trashed_runs(folders)] == ["my-20261121-101010"] * 3
    empty_trash(folders)
    assert trashed_runs(folders) == [] and list_runs(folders) == []


@pytest.mark.parametrize(
    ("status", "says"), [(Status.TRAINING, "being trained at this moment"), (Status.QUEUED, "waits in the queue")]
)
def test_busy_run_is_not_deleted(run: Run, status: Status, says: str) -> None:
    run.set_state(status)
    with pytest.raises(UserError, match=says):
        delete_run(run)
    assert run.folder.is_dir()
