"""Whether the process in charge of a run is still there, and what is true of a run that lost it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.tiny import make_folders, make_settings
from training import run_state
from training.run_state import Reason, State, Status, _start_time
from training.run_store import create_run
from training.runs import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(make_folders(tmp_path), make_settings())


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
    boot = run_state._this_boot()
    run.write_state(State(status=Status.TRAINING, pid=pid, process_started=started, boot=boot))


def test_run_whose_process_is_gone_has_failed(run: Run) -> None:
    write_state(run, ended_process(wait=True).pid, 1.0)
    assert run.state().status is Status.FAILED
    assert "ended without a word" in run.state().cause
    assert (run.state().reason, run.state().stage) == (Reason.LOST, Status.TRAINING)
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

    run.set_state(Status.TRAINING)
    assert run.state().status is Status.TRAINING
    monkeypatch.setattr(psutil.Process, "status", refuse)
    assert run.state().status is Status.FAILED


def test_state_without_a_process_has_failed(run: Run) -> None:
    write_state(run, None, None)
    assert run.state().status is Status.FAILED


def test_state_of_a_process_that_is_gone_can_be_written(run: Run) -> None:
    run.write_state(State(status=Status.TRAINING).with_process(ended_process(wait=True).pid))
    assert run.state().status is Status.FAILED


def test_computer_that_went_down_is_told_apart(run: Run) -> None:
    state = State(status=Status.TRAINING, pid=os.getpid(), process_started=1.0, boot="an earlier one")
    assert "The computer went down" in state.lost().cause
    run.set_state(Status.TRAINING)
    assert run.stored_state().boot == run_state._this_boot()
    assert "nobody watched" in run.stored_state().lost().cause
