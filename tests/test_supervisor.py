"""What starts, waits and is taken over, with pretended workers and with real ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training import gpus, supervisor
from training.errors import SettingsError, UserError
from training.events import Step
from training.paths import PROJECT, Folders
from training.run_state import Reason, Status
from training.run_store import NameInUse
from training.runs import EventReader, Run, list_runs
from training.supervisor import Supervisor, active_run, worker_command

TIMEOUT = 60  # seconds: a crowded machine starts a Python slowly
WAIT = """
import sys, time
from pathlib import Path
from training.run_state import Status
from training.runs import Run
run = Run(Path(sys.argv[1]))
run.set_state(Status.TRAINING)
while not run.stop_requested():
    time.sleep(0.01)
run.set_state(Status.STOPPED)
"""


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


def until(true: Callable[[], object]) -> None:
    """Wait until something is so; fails where it never is."""
    deadline = time.monotonic() + TIMEOUT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_command_names_the_run_and_the_folders(folders: Folders) -> None:
    command = worker_command(Run(folders.loras / "x"), folders)
    assert command[:3] == [sys.executable, "-m", "training.worker"]
    places = (folders.models, folders.datasets, folders.formats, folders.templates, folders.hub_cache)
    assert {str(folders.loras / "x"), *(str(place) for place in places)} <= set(command)
    several = worker_command(Run(folders.loras / "x"), folders, 3)
    assert several[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    assert several[5:] == command[1:]


@pytest.fixture
def ready(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folders]:
    """Folders in which a training can start, with a worker that waits for the stop."""
    add_base(folders)
    add_dataset(folders)
    monkeypatch.setattr(supervisor, "worker_command", lambda run, *_: [sys.executable, "-c", WAIT, str(run.folder)])
    yield folders
    for run in list_runs(folders):
        run.request_stop()
    until(lambda: active_run(folders) is None)


def stop(keeper: Supervisor, run: Run) -> None:
    """Ask a run to stop and wait until its thread is gone, which first starts the next."""
    thread = keeper.thread_of(run)
    run.request_stop()
    assert thread
    thread.join(TIMEOUT)
    assert run.state().status is Status.STOPPED


# One after the other


def test_second_run_waits_and_starts_when_the_first_has_ended(ready: Folders) -> None:
    keeper = Supervisor(ready)
    assert active_run(ready) is None
    first = keeper.submit(make_settings(name="first"))
    second, third = (keeper.submit(make_settings(name=name)) for name in ("second", "third"))
    busy = active_run(ready)
    assert busy is not None and busy.name == "first"
    assert [run.name for run in keeper.queue.runs()] == ["second", "third"]
    keeper.queue.move("third", -1)
    stop(keeper, first)
    until(lambda: third.state().status is Status.TRAINING)
    assert [run.name for run in keeper.queue.runs()] == ["second"]
    keeper.queue.remove("second")
    stop(keeper, third)
    assert active_run(ready) is None and second.state().status is Status.STOPPED


def test_queue_outlives_its_program(ready: Folders) -> None:
    """What a server that is gone had in line is started by the next."""
    with Supervisor(ready).queue.locked():
        pass
    gone = Supervisor(ready)
    first = gone.submit(make_settings(name="first"))
    gone.submit(make_settings(name="second"))
    gone.close(stop_runs=False)
    first.request_stop()
    until(lambda: first.state().status is Status.STOPPED)
    assert Run(ready.loras / "second").state().status is Status.QUEUED
    heir = Supervisor(ready)
    until(lambda: (heir.look(), active_run(ready))[1])
    busy = active_run(ready)
    assert busy is not None and busy.name == "second"


def test_two_supervisors_start_each_run_once(ready: Folders) -> None:
    keepers = [Supervisor(ready) for _ in range(2)]
    names = [f"run-{n}" for n in range(4)]
    for number, name in enumerate(names):
        keepers[number % 2].submit(make_settings(name=name))
    for name in names:
        run = Run(ready.loras / name)
        until(lambda run=run: [keeper.look() for keeper in keepers] and run.state().status is Status.TRAINING)
        active = [other.name for other in list_runs(ready) if other.state().status.active]
        assert active == [name]
        assert sum(keeper.thread_of(run) is not None for keeper in keepers) == 1
        run.request_stop()
        until(lambda run=run: run.state().status is Status.STOPPED)
    assert all(Run(ready.loras / name).log_tail().count("Traceback") == 0 for name in names)


def test_memory_is_given_back_before_each_training(ready: Folders) -> None:
    keeper = Supervisor(ready)
    seen: list[str] = []
    keeper.before_training(lambda: seen.append(",".join(run.state().status for run in list_runs(ready))))
    first = keeper.submit(make_settings(name="first"))
    keeper.submit(make_settings(name="second"))
    assert seen == ["queued"]
    stop(keeper, first)
    until(lambda: len(seen) == 2)


def test_memory_is_given_back_to_a_training_of_another_program(ready: Folders) -> None:
    keeper, other = Supervisor(ready), Supervisor(ready)
    given: list[None] = []
    keeper.before_training(lambda: given.append(None))
    keeper.look()
    assert given == []
    run = other.submit(make_settings())
    keeper.look()
    keeper.look()
    assert len(given) == 1
    stop(other, run)


def test_launch_that_fails_is_tried_again(ready: Folders) -> None:
    keeper = Supervisor(ready)
    troubles = [OSError("No space left on device")]

    def trouble() -> None:
        if troubles:
            raise troubles.pop()

    keeper.before_training(trouble)
    with pytest.raises(OSError, match="No space"):
        keeper.submit(make_settings())
    run = Run(ready.loras / "test")
    assert run.state().status is Status.QUEUED
    keeper.look()
    until(lambda: run.state().status is Status.TRAINING)


def test_run_in_line_whose_settings_are_gone_does_not_hold_the_others_up(ready: Folders) -> None:
    keeper = Supervisor(ready)
    first, second, third = (keeper.submit(make_settings(name=name)) for name in ("first", "second", "third"))
    (second.folder / "settings.json").write_text("{")
    stop(keeper, first)
    until(lambda: third.state().status is Status.TRAINING)
    assert second.state().reason is Reason.REFUSED and "not JSON" in second.state().cause


def test_next_waits_until_the_worker_has_left(ready: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its last word and its end, or the next one that takes less, a worker still has the memory."""
    lingering = WAIT + "while not (run.folder / 'leave').exists():\n    time.sleep(0.01)"
    command: Callable[..., list[str]] = lambda run, *_: [sys.executable, "-c", lingering, str(run.folder)]  # noqa: E731
    monkeypatch.setattr(supervisor, "worker_command", command)
    keeper, other = Supervisor(ready), Supervisor(ready)
    first = keeper.submit(make_settings(name="first"))
    second = keeper.submit(make_settings(name="second"))
    first.request_stop()
    until(lambda: first.state().status is Status.STOPPED)
    keeper.look()
    other.look()
    assert second.state().status is Status.QUEUED
    (first.folder / "leave").touch()
    (second.folder / "leave").touch()
    until(lambda: second.state().status is Status.TRAINING)


def test_ended_run_goes_on(ready: Folders) -> None:
    keeper = Supervisor(ready)
    run = keeper.submit(make_settings())
    stop(keeper, run)
    (run.folder / "checkpoint-2").mkdir()
    keeper.go_on(run, epochs=5, micro_batch_size=1)
    until(lambda: run.state().status is Status.TRAINING)
    assert (run.settings().epochs, run.settings().micro_batch_size) == (5, 1)
    with pytest.raises(UserError, match="being trained at this moment"):
        keeper.go_on(run)
    stop(keeper, run)
    with pytest.raises(UserError, match="Micro-batch size"):
        keeper.go_on(run, micro_batch_size=999)
    assert run.state().status is Status.STOPPED


def test_several_gpus_train_several_runs(ready: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "gpu_names", lambda: ("0", "1"))
    keeper = Supervisor(ready)
    runs = [keeper.submit(make_settings(name=name)) for name in ("a", "b", "c")]
    both = keeper.submit(make_settings(name="both", gpus="all"))
    until(lambda: [run.state().status for run in runs[:2]] == [Status.TRAINING] * 2)
    assert [run.state().gpus for run in runs[:2]] == [["0"], ["1"]]
    assert [run.name for run in keeper.queue.runs()] == ["c", "both"]
    stop(keeper, runs[1])
    until(lambda: runs[2].state().status is Status.TRAINING)
    assert runs[2].state().gpus == ["1"]
    stop(keeper, runs[0])
    assert both.state().status is Status.QUEUED  # it waits for all
    stop(keeper, runs[2])
    until(lambda: both.state().status is Status.TRAINING)
    assert both.state().gpus == ["0", "1"]


# Taking over


def test_run_without_a_server_is_taken_over(ready: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.tiny import make_settings\n"
        "from training import supervisor; from training.paths import PROJECT, Folders\n"
        f"supervisor.worker_command = lambda run, *_: [sys.executable, '-c', {WAIT!r}, str(run.folder)]\n"
        f"root = Path({str(ready.loras.parent)!r})\n"
        "folders = Folders(**{n: root / n for n in ('models', 'datasets', 'loras', 'formats', 'templates')})\n"
        "supervisor.Supervisor(folders).submit(make_settings())\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == -signal.SIGKILL
    run = Run(ready.loras / "test")
    until(lambda: run.state().status is Status.TRAINING)
    keeper, other = Supervisor(ready), Supervisor(ready)
    keeper.look()
    other.look()
    assert keeper.thread_of(run) and not other.thread_of(run)
    stop(keeper, run)


def test_run_that_died_unwatched_is_marked(ready: Folders) -> None:
    keeper = Supervisor(ready)
    run = keeper.submit(make_settings())
    stop(keeper, run)
    run.write_state(run.stored_state().model_copy(update={"status": Status.TRAINING, "process_started": 1.0}))
    keeper.look()
    state = run.stored_state()
    assert (state.status, state.reason, state.stage) == (Status.FAILED, Reason.LOST, Status.TRAINING)


def test_closing_stops_the_runs_where_that_is_wanted(ready: Folders) -> None:
    keeper = Supervisor(ready)
    run = keeper.submit(make_settings())
    waiting = keeper.submit(make_settings(name="waiting"))
    until(lambda: run.state().status is Status.TRAINING)
    keeper.close(stop_runs=True)
    assert run.state().status is Status.STOPPED
    assert waiting.state().status is Status.QUEUED


# What cannot start


def test_name_in_use_makes_nothing(ready: Folders) -> None:
    keeper = Supervisor(ready)
    keeper.submit(make_settings())
    with pytest.raises(NameInUse):
        keeper.submit(make_settings())
    assert [run.name for run in list_runs(ready)] == ["test"] and keeper.queue.runs() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "none.json"}, "no file or folder 'none.json'"),
        ({"dataset": "broken.json"}, "broken.json ends in the middle of row 1"),
        ({"dataset": "odd.json"}, "No row has the columns"),
        ({"dataset": "", "raw_text": "none.txt"}, "no file or folder 'none.txt'"),
        ({"dataset": "", "raw_text": "empty.txt"}, "empty.txt is empty"),
        ({"evaluation_file": "none.json"}, "no file or folder 'none.json'"),
        ({"evaluation_file": "odd.json"}, "No row has the columns"),
        ({"dataset": ["pairs.json", "odd.json"]}, "odd.json: No row has the columns"),
        ({"dataset": ["pairs.json", "pairs.json"]}, "chosen twice"),
        ({"dataset": ["empty"]}, "holds no file that ends in"),
        ({"data_format": "columns"}, "are not assigned"),
        ({"data_format": "none.json"}, r"none\.json"),
        ({"chat_template": "none"}, "no chat template 'none'"),
        ({"base_model": "none"}, "no folder 'none'"),
        ({"base_model": "x" * 5000}, "no folder"),
        ({"base_model": "model.gguf"}, "single file"),
        ({"name": ""}, "Name: type a name"),
    ],
)
def test_what_cannot_start_makes_no_folder(ready: Folders, changes: dict[str, Any], message: str) -> None:
    (ready.datasets / "broken.json").write_text("[{")
    (ready.datasets / "odd.json").write_text('[{"frage": 1}]')
    (ready.datasets / "empty.txt").touch()
    (ready.datasets / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        Supervisor(ready).submit(make_settings(**changes))
    assert list(ready.loras.iterdir()) == []


def test_all_that_is_missing_is_told_at_once(ready: Folders) -> None:
    with pytest.raises(SettingsError) as caught:
        Supervisor(ready).submit(make_settings(name="", dataset="", base_model=""))
    assert set(caught.value.problems) == {"name", "dataset", "base_model"}


def test_full_disk_is_told_before_anything_is_made(ready: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "free_bytes", lambda _: 10**6)
    with pytest.raises(UserError, match="has 1 MB left and this training needs at least 200 MB"):
        Supervisor(ready).submit(make_settings())
    assert list(ready.loras.iterdir()) == []


def test_room_for_all_that_is_kept_is_asked_for(ready: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter of rank 4096 on the tiny model takes 14 MB, and its checkpoint with two moments three times that."""
    monkeypatch.setattr(supervisor, "_MIN_FREE_BYTES", 0)
    monkeypatch.setattr(supervisor, "free_bytes", lambda _: 500 * 2**20)
    with pytest.raises(UserError, match="keep fewer checkpoints"):
        Supervisor(ready).submit(make_settings(lora_rank=4096, keep_last=9))
    keeper = Supervisor(ready)
    stop(keeper, keeper.submit(make_settings(lora_rank=4096, keep_last=1)))


def test_missing_loras_folder_is_made(ready: Folders) -> None:
    ready.loras.rmdir()
    keeper = Supervisor(ready)
    stop(keeper, keeper.submit(make_settings()))


# The real worker


def test_whole_training_in_its_own_process(folders: Folders) -> None:
    add_base(folders)
    add_dataset(folders)
    keeper = Supervisor(folders)
    run = keeper.submit(make_settings(batch_size=8, epochs=2))
    thread = keeper.thread_of(run)
    assert thread
    thread.join(4 * TIMEOUT)
    assert run.state().status is Status.DONE, run.log_tail()
    assert run.has_result() and run.receipt_file.is_file()
    assert [c.step for c in run.checkpoints()] == [2]
    assert "done" in run.log_tail()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_signal_to_the_worker_saves_and_stops(folders: Folders) -> None:
    add_base(folders)
    add_dataset(folders)
    keeper = Supervisor(folders)
    run = keeper.submit(make_settings(epochs=10_000, save_every=0, evaluate_every=0))
    thread = keeper.thread_of(run)
    assert thread
    while thread.is_alive() and not (run.events_file.exists() and b'"step"' in run.events_file.read_bytes()):
        thread.join(0.05)
    pid = run.state().pid
    assert pid not in (None, os.getpid()), run.log_tail()
    os.kill(int(pid or 0), signal.SIGTERM)
    thread.join(TIMEOUT)
    assert run.state().status is Status.STOPPED, run.log_tail()
    assert run.checkpoints() and run.has_result()


def test_one_run_over_all_gpus(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each of them, which meet, share the work out and leave one result. Here they are processors."""
    monkeypatch.setattr(gpus, "gpu_names", lambda: ("0", "1"))
    add_base(folders)
    add_dataset(folders)
    keeper = Supervisor(folders)
    run = keeper.submit(make_settings(epochs=1, gpus="all"))
    thread = keeper.thread_of(run)
    assert thread
    thread.join(4 * TIMEOUT)
    assert run.state().status is Status.DONE, run.log_tail()
    receipt = json.loads(run.receipt_file.read_text())
    assert receipt["processes"] == 2 and run.has_result()
    steps = [event.step for event in EventReader(run).read_new() if isinstance(event, Step)]
    assert steps == [1, 2]
