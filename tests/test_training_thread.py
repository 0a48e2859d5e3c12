"""The training thread against pretended workers: whatever they do, the run ends in a state that is true."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tiny import make_folders, make_settings
from training.events import Note
from training.paths import Folders
from training.post_mortem import ALREADY_TRAINED
from training.run_state import Reason, Status
from training.run_store import create_run
from training.runs import EventReader, Run
from training.training_thread import GRACES, Graces, TrainingThread, Watch, seconds_until_ended

TIMEOUT = 60  # seconds: a crowded machine starts a Python slowly
WORKER = """
import os, signal, sys, time
from pathlib import Path
from training.run_state import Status
from training.runs import Run
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


def followed(run: Run, command: list[str], process: psutil.Process | None = None, **graces: float) -> Run:
    """The run after its worker, launched or taken over by a training thread, has ended."""
    watch = Watch(run)
    assert watch.take()
    thread = TrainingThread(run, lambda _: command, watch, process=process, graces=Graces(**graces))
    if process is None:
        thread.launch()
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert watch.take()  # whoever comes next may watch
    watch.give_back()
    return run


def ended(run: Run, script: str, **graces: float) -> Run:
    return followed(run, command_of(run, script), **graces)


@pytest.mark.parametrize("status", [Status.DONE, Status.STOPPED])
def test_last_word_is_believed(run: Run, status: Status) -> None:
    state = ended(run, f"run.set_state(Status('{status}'))").state()
    assert (state.status, state.cause) == (status, "")


def test_worker_tells_its_own_failure(run: Run) -> None:
    state = ended(run, "run.set_state(Status.FAILED, 'The disk is full.'); sys.exit(1)").state()
    assert (state.status, state.cause) == (Status.FAILED, "The disk is full.")


def test_crash_is_a_failure_and_in_the_log(run: Run) -> None:
    state = ended(run, "print('working'); raise ValueError('the reason')").state()
    assert state.status is Status.FAILED and "exit code 1" in state.cause
    assert "working" in run.log_tail() and "the reason" in run.log_tail()


def test_leaving_with_success_but_no_last_word_is_a_failure(run: Run) -> None:
    state = ended(run, "").state()
    assert state.status is Status.FAILED and "exit code 0" in state.cause


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
@pytest.mark.parametrize(
    ("number", "words"), [(9, "killed by the system or by another program"), (11, "crashed (signal 11)")]
)
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
    state = ended(run, script, stop=0.3).state()
    assert state.status is Status.FAILED and "gave no sign of life" in state.cause


@pytest.mark.parametrize("status", [Status.DONE, Status.FAILED])
def test_worker_that_stays_after_its_last_word_is_ended_and_believed(run: Run, status: Status) -> None:
    state = ended(run, f"run.set_state(Status('{status}'), 'so it was')\n{HANG}", exit=0.2).state()
    assert (state.status, state.cause) == (status, "so it was")


def test_worker_that_cannot_be_started(run: Run) -> None:
    state = followed(run, [str(run.folder / "no such program")]).state()
    assert state.status is Status.FAILED
    assert "could not be started (No such file or directory)" in state.cause


def test_last_word_said_at_once_is_not_overwritten(run: Run) -> None:
    """The worker may be quicker than the thread that started it."""
    script = "from training.run_state import Reason\nrun.set_state(Status.FAILED, 'at once', Reason.DISK)"
    state = ended(run, script).state()
    assert (state.cause, state.reason) == ("at once", Reason.DISK)


@pytest.mark.parametrize("grandchildren", [0, 2])
def test_cancel_ends_the_worker_and_all_that_it_started(run: Run, grandchildren: int) -> None:
    script = f"""
        import subprocess
        children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
                    for _ in range({grandchildren})]
        (run.folder / "children").write_text(" ".join(str(child.pid) for child in children))
        run.request_cancel()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    """
    state = ended(run, script).state()
    assert state.status is Status.STOPPED and "cancelled" in state.cause
    pids = [int(pid) for pid in (run.folder / "children").read_text().split()]
    assert len(pids) == grandchildren and not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_second_worker_leaves_the_state_alone(run: Run) -> None:
    """The one that came too late must not say of the other's run that it failed."""
    script = f"sys.exit({ALREADY_TRAINED})"
    assert ended(run, script).stored_state().status is Status.TRAINING


# Taking over


def left_behind(run: Run, script: str) -> psutil.Process:
    """A worker whose server is gone: nobody's child here."""
    starter = (
        "import subprocess, sys; nowhere = subprocess.DEVNULL\n"
        "print(subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=nowhere, stderr=nowhere).pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", starter, *command_of(run, script)], capture_output=True, text=True, check=True
    )
    process = psutil.Process(int(done.stdout))
    while run.stored_state().pid != process.pid:
        assert process.is_running()
        os.sched_yield()
    return process


def test_worker_taken_over_is_followed_to_its_end(run: Run) -> None:
    script = "while not run.stop_requested():\n    time.sleep(0.01)\nrun.set_state(Status.DONE)"
    process = left_behind(run, script)
    run.request_stop()
    assert followed(run, [], process).state().status is Status.DONE


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_worker_taken_over_that_is_killed(run: Run) -> None:
    process = left_behind(run, HANG)
    process.kill()
    state = followed(run, [], process).state()
    assert (state.status, state.reason, state.stage) == (Status.FAILED, Reason.LOST, Status.TRAINING)


def test_worker_taken_over_is_cancelled(run: Run) -> None:
    process = left_behind(run, HANG)
    run.request_cancel()
    assert followed(run, [], process).state().status is Status.STOPPED
    assert not is_running(process.pid)


def test_one_watches_at_a_time(run: Run) -> None:
    first, second = Watch(run), Watch(run)
    assert first.take() and not second.take()
    first.give_back()
    assert second.take()
    second.give_back()


# Memory runs out

OOM = """
from training.run_state import Reason
from training.events import Step
with open(run.folder / "sizes", "a") as file:
    file.write(f"{run.settings().micro_batch_size} ")
if run.settings().micro_batch_size > LIMIT:
    run.set_state(Status.FAILED, "Memory ran out.", Reason.MEMORY)
    sys.exit(1)
run.set_state(Status.DONE)
"""


def tried_with(run: Run, size: int, limit: int, **changes: Any) -> list[int]:
    """The micro-batch sizes that were tried, where at most `limit` fits."""
    run.write_settings(make_settings(batch_size=32, micro_batch_size=size, **changes))
    ended(run, OOM.replace("LIMIT", str(limit)))
    return [int(tried) for tried in (run.folder / "sizes").read_text().split()]


@pytest.mark.parametrize(
    ("size", "limit", "tried"), [(8, 2, [8, 4, 2]), (6, 1, [6, 3, 1]), (4, 0, [4, 2, 1]), (1, 0, [1])]
)
def test_micro_batch_is_halved_until_it_fits(run: Run, size: int, limit: int, tried: list[int]) -> None:
    assert tried_with(run, size, limit) == tried
    state = run.state()
    assert state.status is (Status.DONE if limit else Status.FAILED)
    assert run.settings().micro_batch_size == tried[-1] and run.settings().batch_size == 32
    notes = [event.text for event in EventReader(run).read_new() if isinstance(event, Note)]
    assert len(notes) == len(tried) - 1
    assert all(f"size of {before}:" in note for before, note in zip(tried, notes, strict=False))


def test_the_reader_may_not_want_it(run: Run) -> None:
    assert tried_with(run, 8, 2, retry_smaller=False) == [8]
    assert run.state().reason is Reason.MEMORY


def test_memory_that_ran_out_before_training_is_not_helped_by_less(run: Run) -> None:
    run.write_settings(make_settings(micro_batch_size=4))
    script = OOM.replace("LIMIT", "0").replace("if run", "run.set_state(Status.PREPARING)\nif run")
    ended(run, script)
    assert (run.folder / "sizes").read_text().split() == ["4"] and run.state().stage is Status.PREPARING


def test_stop_ends_the_trying(run: Run) -> None:
    run.write_settings(make_settings(micro_batch_size=4))
    ended(run, "run.request_stop()\n" + textwrap.dedent(OOM.replace("LIMIT", "0")))
    assert (run.folder / "sizes").read_text().split() == ["4"]


def test_time_until_a_silent_worker_is_ended(run: Run) -> None:
    assert seconds_until_ended(run) is None
    run.request_stop()
    left = seconds_until_ended(run)
    assert left is not None and GRACES.stop - 60 < left <= GRACES.stop
    long_ago = time.time() - 10_000
    os.utime(run.folder / "stop", (long_ago, long_ago))
    assert seconds_until_ended(run) == 0
    run.append(Note(text="still here"))
    left = seconds_until_ended(run)
    assert left is not None and left > GRACES.stop - 60


def test_log_goes_on(run: Run) -> None:
    ended(run, "print('first')")
    ended(run, "print('second')")
    assert "first" in run.log_tail() and "second" in run.log_tail()
