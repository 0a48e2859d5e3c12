"""The training thread against pretended workers: whatever they do, the run ends in a state that is true."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training import supervisor
from training.errors import SettingsError, UserError
from training.paths import Folders
from training.runs import Run, Status, create_run, list_runs
from training.supervisor import TrainingThread, active_run, exit_cause, start, worker_command

TIMEOUT = 60  # seconds: a crowded machine starts a Python slowly
WORKER = """
import os, signal, sys, time
from pathlib import Path
from training.runs import Run, Status
run = Run(Path(sys.argv[1]))
run.set_state(Status.TRAINING)
"""
HANG = "while True:\n    time.sleep(1)"


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


@pytest.fixture
def run(folders: Folders) -> Run:
    return create_run(folders, make_settings())


def command_of(run: Run, script: str) -> list[str]:
    return [sys.executable, "-c", WORKER + textwrap.dedent(script), str(run.folder)]


def ended(run: Run, script: str, **graces: Any) -> Run:
    """The run after a worker with this script, watched by a training thread, has ended."""
    thread = TrainingThread(run, command_of(run, script), **graces)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    return run


@pytest.mark.parametrize("status", [Status.DONE, Status.STOPPED])
def test_last_word_is_believed(run: Run, status: Status) -> None:
    state = ended(run, f"run.set_state(Status('{status}'))").state()
    assert (state.status, state.cause) == (status, "")


def test_worker_tells_its_own_failure(run: Run) -> None:
    state = ended(run, "run.set_state(Status.FAILED, 'Memory ran out.'); sys.exit(1)").state()
    assert (state.status, state.cause) == (Status.FAILED, "Memory ran out.")


def test_crash_is_a_failure_and_in_the_log(run: Run) -> None:
    state = ended(run, "print('working'); raise ValueError('the reason')").state()
    assert state.status is Status.FAILED and "exit code 1" in state.cause
    assert "working" in run.log_tail() and "the reason" in run.log_tail()


def test_leaving_with_success_but_no_last_word_is_a_failure(run: Run) -> None:
    state = ended(run, "").state()
    assert state.status is Status.FAILED and "exit code 0" in state.cause


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
@pytest.mark.parametrize(("number", "words"), [(9, "main memory ran out"), (11, "crashed (signal 11)")])
def test_killed_worker(run: Run, number: int, words: str) -> None:
    state = ended(run, f"os.kill(os.getpid(), {number})").state()
    assert state.status is Status.FAILED and words in state.cause


def test_stop_that_is_obeyed(run: Run) -> None:
    run.request_stop()
    script = """
        while not run.stop_requested():
            time.sleep(0.01)
        run.set_state(Status.STOPPED)
    """
    assert ended(run, script).state().status is Status.STOPPED


def test_stop_that_is_ignored_ends_after_its_grace(run: Run) -> None:
    script = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\nrun.request_stop()\n{HANG}"
    state = ended(run, script, stop_grace=0.3).state()
    assert state.status is Status.FAILED and "gave no sign of life" in state.cause


@pytest.mark.parametrize("status", [Status.DONE, Status.FAILED])
def test_worker_that_stays_after_its_last_word_is_ended_and_believed(run: Run, status: Status) -> None:
    state = ended(run, f"run.set_state(Status('{status}'), 'so it was')\n{HANG}", exit_grace=0.2).state()
    assert (state.status, state.cause) == (status, "so it was")


def test_worker_that_cannot_be_started(run: Run) -> None:
    thread = TrainingThread(run, [str(run.folder / "no such program")])
    thread.start()
    thread.join(TIMEOUT)
    assert run.state().status is Status.FAILED
    assert "could not be started (No such file or directory)" in run.state().cause


def test_log_goes_on(run: Run) -> None:
    ended(run, "print('first')")
    ended(run, "print('second')")
    assert "first" in run.log_tail() and "second" in run.log_tail()


def test_exit_causes() -> None:
    assert "memory" in exit_cause(-9)
    assert "signal 6" in exit_cause(-6)
    assert "exit code 3" in exit_cause(3)
    # Windows gives what a crash left as a large positive number.
    assert "3221225477" in exit_cause(3221225477)


def test_command_names_the_run_and_the_folders(run: Run, folders: Folders) -> None:
    command = worker_command(run, folders)
    assert command[:3] == [sys.executable, "-m", "training.worker"]
    assert {
        str(run.folder),
        str(folders.models),
        str(folders.datasets),
        str(folders.formats),
        str(folders.templates),
    } <= set(command)


# start()


@pytest.fixture
def ready(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Folders in which a training can start, with a worker that waits for the stop."""
    add_base(folders)
    add_dataset(folders)
    script = "while not run.stop_requested():\n    time.sleep(0.01)\nrun.set_state(Status.STOPPED)"
    monkeypatch.setattr(supervisor, "worker_command", lambda run, _: command_of(run, script))
    return folders


def test_one_run_at_a_time(ready: Folders) -> None:
    assert active_run(ready) is None
    first = start(make_settings(), ready)
    try:
        busy = active_run(ready)
        assert busy is not None and busy.name == "test"
        with pytest.raises(UserError, match="'test' is being trained at this moment"):
            start(make_settings(name="other"), ready)
        assert [r.name for r in list_runs(ready)] == ["test"]
    finally:
        first.training_run.request_stop()
        first.join(TIMEOUT)
    assert active_run(ready) is None
    assert first.training_run.state().status is Status.STOPPED


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
        start(make_settings(**changes), ready)
    assert list(ready.loras.iterdir()) == []


def test_all_that_is_missing_is_told_at_once(ready: Folders) -> None:
    with pytest.raises(SettingsError) as caught:
        start(make_settings(name="", dataset="", base_model=""), ready)
    assert set(caught.value.problems) == {"name", "dataset", "base_model"}


def test_full_disk_is_told_before_anything_is_made(ready: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(supervisor.shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**6))
    with pytest.raises(UserError, match="has 1 MB left and a training needs at least 200 MB"):
        start(make_settings(), ready)
    assert list(ready.loras.iterdir()) == []


def test_missing_loras_folder_is_made(ready: Folders) -> None:
    ready.loras.rmdir()
    thread = start(make_settings(), ready)
    thread.training_run.request_stop()
    thread.join(TIMEOUT)
    assert thread.training_run.state().status is Status.STOPPED


# The real worker


def test_whole_training_in_its_own_process(folders: Folders) -> None:
    add_base(folders)
    add_dataset(folders)
    thread = start(make_settings(batch_size=8, epochs=2), folders)
    thread.join(4 * TIMEOUT)
    run = thread.training_run
    assert run.state().status is Status.DONE, run.log_tail()
    assert run.has_result() and run.receipt_file.is_file()
    assert [c.step for c in run.checkpoints()] == [2]
    assert "done" in run.log_tail()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_signal_to_the_worker_saves_and_stops(folders: Folders) -> None:
    add_base(folders)
    add_dataset(folders)
    thread = start(make_settings(epochs=10_000, save_every=0, evaluate_every=0), folders)
    run = thread.training_run
    while thread.is_alive() and not (run.events_file.exists() and b'"step"' in run.events_file.read_bytes()):
        thread.join(0.05)
    pid = run.state().pid
    assert pid not in (None, os.getpid()), run.log_tail()
    os.kill(int(pid or 0), signal.SIGTERM)
    thread.join(TIMEOUT)
    assert run.state().status is Status.STOPPED, run.log_tail()
    assert run.checkpoints() and run.has_result()
