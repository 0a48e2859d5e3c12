"""The run folder: its state and whether it is true, its events, and how runs are made, continued and replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tiny import make_folders, make_settings
from training.errors import UserError
from training.events import CheckpointSaved, Evaluation, Event, Note, Started, Step
from training.paths import Folders
from training.runs import EventReader, Run, State, Status, _start_time, continue_run, create_run, find_run, list_runs


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


@pytest.fixture
def run(folders: Folders) -> Run:
    return create_run(folders, make_settings())


def step(number: int) -> Step:
    return Step(step=number, epoch=0.5, loss=1.5, learning_rate=1e-4, grad_norm=0.5, tokens=10, seconds=0.1, memory=1)


def add_checkpoint(run: Run, number: int) -> Path:
    folder = run.folder / f"checkpoint-{number}"
    folder.mkdir()
    return folder


def add_adapter(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").touch()


# State


def test_new_run_is_queued_by_this_process(run: Run) -> None:
    state = run.state()
    assert (state.status, state.pid, state.cause) == (Status.QUEUED, os.getpid(), "")
    assert run.settings() == make_settings()


@pytest.mark.parametrize("status", Status)
def test_state_is_kept(run: Run, status: Status) -> None:
    run.set_state(status, "why")
    assert run.state().status is status
    assert run.state().cause == "why"
    assert status.active == (status in ("queued", "preparing", "training", "saving"))


def ended_process(wait: bool) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()  # ends when the process does
    if wait:
        process.wait()
    else:
        # Linux closes a process's files a moment before it counts as a zombie.
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            os.sched_yield()
    return process


def write_state(run: Run, pid: int | None, started: float | None) -> None:
    state = State(status=Status.TRAINING, pid=pid, process_started=started)
    (run.folder / "state.json").write_text(state.model_dump_json())


def test_run_whose_process_is_gone_has_failed(run: Run) -> None:
    write_state(run, ended_process(wait=True).pid, 1.0)
    assert run.state().status is Status.FAILED
    assert "ended without a word" in run.state().cause
    assert run.stored_state().status is Status.TRAINING


@pytest.mark.skipif(os.name == "nt", reason="Windows has no zombies")
def test_run_whose_process_waits_to_be_buried_has_failed(run: Run) -> None:
    process = ended_process(wait=False)
    write_state(run, process.pid, _start_time(psutil.Process(process.pid)))
    assert run.state().status is Status.FAILED
    process.wait()


def test_process_id_given_to_another_process_does_not_count(run: Run) -> None:
    started = _start_time(psutil.Process())
    write_state(run, os.getpid(), started)
    assert run.state().status is Status.TRAINING
    write_state(run, os.getpid(), started - 100)
    assert run.state().status is Status.FAILED


def test_process_that_may_not_be_looked_at_does_not_count(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: psutil.Process) -> str:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "status", refuse)
    assert run.state().status is Status.FAILED


def test_state_without_a_process_has_failed(run: Run) -> None:
    write_state(run, None, None)
    assert run.state().status is Status.FAILED


def test_state_of_a_process_that_is_gone_can_be_written(run: Run) -> None:
    run.set_state(Status.TRAINING, pid=ended_process(wait=True).pid)
    assert run.state().status is Status.FAILED


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"status": "resting"}', b"\xff\xfe"])
def test_damaged_state_is_a_failure(run: Run, content: bytes) -> None:
    (run.folder / "state.json").write_bytes(content)
    assert run.state().status is Status.FAILED
    assert "damaged" in run.state().cause


def test_reader_never_sees_half_a_state(run: Run) -> None:
    done = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(run.stored_state().cause[:4])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        run.set_state(Status.TRAINING, "long" * (1 + number % 2 * 20_000))
    done.set()
    reader.join()
    assert seen <= {"", "long"}
    assert not list(run.folder.glob(".*"))


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"nonsense": 1}', b"[]", b'{"epochs": "x"}'])
def test_damaged_settings_are_told_in_words(run: Run, content: bytes) -> None:
    (run.folder / "settings.json").write_bytes(content)
    with pytest.raises(UserError):
        run.settings()


# Stop, checkpoints, log


def test_stop_is_asked_and_withdrawn(run: Run) -> None:
    assert not run.stop_requested()
    run.request_stop()
    run.request_stop()
    assert run.stop_requested()
    run.withdraw_stop()
    run.withdraw_stop()
    assert not run.stop_requested()


def test_only_complete_checkpoints_count_in_order_of_step(run: Run) -> None:
    for number in (100, 20, 3):
        add_checkpoint(run, number)
    for name in (".checkpoint-7.partial", "checkpoint-x", "checkpoint-5-copy", ".checkpoint-2.deleted"):
        (run.folder / name).mkdir()
    (run.folder / "checkpoint-9").touch()
    assert [c.step for c in run.checkpoints()] == [3, 20, 100]


def test_log_tail(run: Run) -> None:
    assert run.log_tail() == ""
    run.log_file.write_bytes(b"one\ntwo\n\r10%\r55%\r100%\nbad \xff byte\n")
    assert run.log_tail(lines=2) == "100%\nbad \N{REPLACEMENT CHARACTER} byte"
    run.log_file.write_bytes(b"x" * 100_000 + b"\nlast\n")
    assert run.log_tail().endswith("last") and len(run.log_tail()) < 20_000


# Events

EVENTS: list[Event] = [
    Started(from_step=0, total_steps=10, epochs=1),
    step(1),
    Evaluation(step=1, loss=2.0),
    CheckpointSaved(step=1, loss=1.5, evaluation_loss=None),
    Note(level="warning", text="line\nbreak \u2028 and é"),
]


def test_each_event_is_read_once(run: Run) -> None:
    reader = EventReader(run)
    assert reader.read_new() == []
    for event in EVENTS[:2]:
        run.append(event)
    assert reader.read_new() == EVENTS[:2]
    for event in EVENTS[2:]:
        run.append(event)
    assert reader.read_new() == EVENTS[2:]
    assert reader.read_new() == []
    assert EventReader(run).read_new() == EVENTS


def test_unterminated_line_waits_for_its_end(run: Run) -> None:
    reader = EventReader(run)
    line = EVENTS[1].model_dump_json().encode()
    with run.events_file.open("ab") as file:
        file.write(line[:20])
        file.flush()
        assert reader.read_new() == []
        file.write(line[20:])
        file.flush()
        assert reader.read_new() == []
        file.write(b"\n")
    assert reader.read_new() == [EVENTS[1]]


@pytest.mark.parametrize("torn", [b'{"type": "st', b"\0\0\0\0", b"null", b"{}", b"\xff"])
def test_torn_line_costs_only_itself(run: Run, torn: bytes) -> None:
    run.append(EVENTS[0])
    with run.events_file.open("ab") as file:
        file.write(torn)
    # The run goes on after a crash: what it now reports must not be glued to the torn line.
    run.append(EVENTS[1])
    run.append(EVENTS[2])
    assert EventReader(run).read_new() == EVENTS[:3]


def test_infinite_gradient_can_be_read_back(run: Run) -> None:
    event = step(1).model_copy(update={"grad_norm": float("inf")})
    run.append(event)
    assert EventReader(run).read_new() == [event]


# Lists


def test_newest_run_comes_first(folders: Folders) -> None:
    for number, name in enumerate(["b", "c", "a"]):
        run = create_run(folders, make_settings(name=name))
        os.utime(run.folder / "settings.json", (number, number))
    (folders.loras / "just a folder").mkdir()
    (folders.loras / "file.txt").touch()
    (folders.loras / ".replaced").mkdir()
    (folders.loras / ".replaced" / "settings.json").touch()
    assert [r.name for r in list_runs(folders)] == ["a", "c", "b"]


def test_no_folder_no_runs(tmp_path: Path) -> None:
    nowhere = Folders(loras=tmp_path / "none")
    assert list_runs(nowhere) == []
    with pytest.raises(UserError, match="no LoRA called"):
        find_run(nowhere, "a")


def test_adapter_from_elsewhere_counts_and_is_found(folders: Folders) -> None:
    add_adapter(folders.loras / "org+model@v1")
    (run,) = list_runs(folders)
    assert run.name == "org+model@v1"
    assert find_run(folders, run.name).folder == run.folder
    assert run.state().status is Status.DONE and not run.is_graft()
    with pytest.raises(UserError, match="not trained with Graft"):
        run.settings()


def test_half_an_adapter_from_elsewhere_is_not_done(folders: Folders) -> None:
    folder = folders.loras / "half"
    folder.mkdir()
    (folder / "adapter_config.json").touch()
    assert list_runs(folders)[0].state().status is Status.FAILED


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../models", ".replaced", "none", "a/b", "x" * 5000, "a\0"])
def test_no_such_run(folders: Folders, name: str) -> None:
    (folders.loras / ".replaced").mkdir()
    with pytest.raises(UserError, match="no LoRA called"):
        find_run(folders, name)


# New runs where the name exists


def test_new_version_leaves_the_old_one(folders: Folders, run: Run) -> None:
    run.set_state(Status.DONE)
    add_adapter(run.folder)
    second, third = (create_run(folders, make_settings()) for _ in range(2))
    assert (second.name, third.name) == ("test-2", "test-3")
    assert second.settings().name == "test-2"
    assert run.state().status is Status.DONE


def test_new_version_leaves_a_foreign_folder(folders: Folders) -> None:
    (folders.loras / "test").mkdir()
    (folders.loras / "test" / "precious.txt").touch()
    assert create_run(folders, make_settings()).name == "test-2"
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


def test_run_without_checkpoint_cannot_go_on(folders: Folders, run: Run) -> None:
    run.set_state(Status.STOPPED)
    with pytest.raises(UserError, match="no checkpoint to continue from"):
        continued(folders)


def test_foreign_adapter_cannot_go_on(folders: Folders) -> None:
    add_adapter(folders.loras / "test")
    with pytest.raises(UserError, match="no checkpoint"):
        continued(folders)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lora_rank": 8}, "LoRA rank"),
        ({"learning_rate": 1e-5}, "Learning rate"),
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
