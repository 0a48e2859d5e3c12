"""What becomes of a training when the server ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server import running_server
from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training.run_queue import RunQueue
from training.run_state import Status
from training.run_store import create_run

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
TIMEOUT = 120.0  # seconds


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [[], ["--stop-runs-on-exit"]])
def test_runs_go_on_unless_the_server_is_told_otherwise(tmp_path: Path, options: list[str], number: int) -> None:
    folders = make_folders(tmp_path)
    add_base(folders)
    add_dataset(folders)
    run = create_run(folders, make_settings(epochs=10_000, save_every=0, evaluate_every=0))
    RunQueue(folders).add(run)  # what waits is started by whichever server comes
    with running_server(folders, tmp_path / "server.log", *options) as server:
        until(lambda: run.events_file.is_file() and b'"type":"step"' in run.events_file.read_bytes())
        server.process.send_signal(number)
        assert server.process.wait(TIMEOUT) == 0
        said = server.log.read_text()
    if options:
        assert run.state().status is Status.STOPPED and run.has_result() and run.checkpoints()
        assert "Stopping 'test' and saving" in said
        return
    assert run.state().status is Status.TRAINING and "'test' goes on training" in said
    run.request_stop()
    until(lambda: run.state().status is Status.STOPPED)
