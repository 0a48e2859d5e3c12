"""The run folder: its state, its events, its checkpoints, and the list of runs."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_folders, make_settings
from training import disk, runs
from training.errors import UserError
from training.events import CheckpointSaved, Evaluation, Event, Note, Started, Step
from training.paths import Folders
from training.run_state import Status
from training.run_store import create_run
from training.runs import EventReader, Run, find_run, list_runs


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
    assert status.active == (status in ("preparing", "training", "saving"))
    assert status.ended == (status in ("done", "stopped", "failed"))


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


class Disk:
    """Refuses the first writes, as a full one does."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals

    def __call__(self, *_: object) -> None:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOSPC, "No space left on device")


def test_worker_waits_for_room_and_the_page_does_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_POLL", 0)
    full = Disk(3)
    monkeypatch.setattr(runs, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        run.set_state(Status.TRAINING)
    Run(run.folder, waits_for_room=True).set_state(Status.TRAINING)
    assert full.refusals == 0


def test_other_trouble_is_not_waited_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(runs, "write_atomically", refuse)
    with pytest.raises(PermissionError):
        Run(run.folder, waits_for_room=True).set_state(Status.TRAINING)


# Stop, checkpoints, log


def test_requests_are_made_and_withdrawn(run: Run) -> None:
    asked = (run.stop_requested, run.save_requested, run.cancel_requested)
    assert not any(request() for request in asked) and run.stop_requested_at() is None
    for _ in range(2):
        run.request_stop()
        run.request_save()
        run.request_cancel()
    assert all(request() for request in asked) and run.stop_requested_at()
    run.save_answered()
    assert not run.save_requested() and run.stop_requested()
    for _ in range(2):
        run.withdraw_requests()
    assert not any(request() for request in asked)


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of the runs; its only value may be changed."""
    now = [1000.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    return now


def test_steps_reach_the_file_together(run: Run, clock: list[float]) -> None:
    reader = EventReader(run)
    with run.in_batches():
        run.append(EVENTS[0])
        assert reader.read_new() == EVENTS[:1]
        for number in (1, 2, 3):
            run.append(step(number))
        assert reader.read_new() == []
        clock[0] += 0.3
        run.append(step(4))
        assert numbers(reader) == [1, 2, 3, 4]
        run.append(step(5))
        assert numbers(reader) == []
        run.append_waiting()
        assert numbers(reader) == [5]
        run.append(step(6))
    assert numbers(reader) == [6]
    run.append(step(7))  # nothing waits outside
    assert numbers(reader) == [7]


def numbers(reader: EventReader) -> list[int]:
    return [event.step for event in reader.read_new() if isinstance(event, Step)]


@pytest.mark.parametrize("event", [event for event in EVENTS if not isinstance(event, Step)])
def test_other_events_are_there_at_once_and_in_order(run: Run, clock: list[float], event: Event) -> None:
    reader = EventReader(run)
    with run.in_batches():
        run.append(EVENTS[0])
        run.append(EVENTS[1])
        run.append(event)
        assert reader.read_new() == [EVENTS[0], EVENTS[1], event]


def test_error_loses_no_step(run: Run, clock: list[float]) -> None:
    def break_off() -> None:
        with run.in_batches():
            run.append(EVENTS[0])
            run.append(EVENTS[1])
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert EventReader(run).read_new() == EVENTS[:2]


def test_events_of_many_threads_stay_whole(run: Run) -> None:
    def tell(thread: int) -> None:
        for number in range(100):
            run.append(Note(text=f"{thread} {number}" * 100) if number % 7 == 0 else step(1000 * thread + number))

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(4)]
    with run.in_batches():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    told = EventReader(run).read_new()
    assert len(told) == 400
    for number in range(4):
        own = [e.step for e in told if isinstance(e, Step) and e.step // 1000 == number]
        assert own == sorted(own)


def test_batch_that_a_full_disk_cuts_off_is_written_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_POLL", 0)
    worker = Run(run.folder, waits_for_room=True)
    worker.append(EVENTS[0])
    opened = Path.open
    refusals = [2]

    class Full:
        """Takes a part of what is written and then no more."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: memoryview) -> int:
            if not refusals[0]:
                return int(self._file.write(data))
            if len(data) <= 200:
                refusals[0] -= 1
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self._file.write(data[: len(data) - 200]))

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(Path, "open", lambda path, *rest, **options: Full(opened(path, *rest, **options)))
    steps: list[Event] = [step(number) for number in range(1, 6)]
    with worker.in_batches():
        for event in steps:
            worker.append(event)
    monkeypatch.undo()
    assert refusals == [0]
    assert run.events_file.read_bytes().count(b"\n") == 6
    assert EventReader(run).read_new() == [EVENTS[0], *steps]


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
