"""The worker's own words about how a run ended. Its life in a process of its own is in test_supervisor.py."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training import pipeline, worker
from training.errors import Diverged, UserError
from training.events import Note, Preparing, Started
from training.paths import Folders
from training.post_mortem import ALREADY_TRAINED
from training.run_state import Reason, Status
from training.run_store import create_run
from training.runs import EventReader, Run


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    # What the worker does to its process must not stay with the tests.
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    made = make_folders(tmp_path)
    add_base(made)
    add_dataset(made)
    return made


def work(folders: Folders, run: Run, monkeypatch: pytest.MonkeyPatch) -> int:
    flags = {"models": folders.models, "datasets": folders.datasets, "formats": folders.formats}
    arguments = [text for name, folder in flags.items() for text in (f"--{name}-dir", str(folder))]
    monkeypatch.setattr(sys, "argv", ["worker", str(run.folder), *arguments])
    return worker.main()


def test_run_to_its_end(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(folders, make_settings(epochs=1))
    assert work(folders, run, monkeypatch) == 0
    assert run.state().status is Status.DONE and run.has_result()


def test_stopped_run(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(folders, make_settings())
    run.request_stop()
    assert work(folders, run, monkeypatch) == 0
    assert run.state().status is Status.STOPPED


def many_rows(folders: Folders) -> None:
    add_dataset(folders, [{"question": f"Q{n}", "answer": "yes"} for n in range(1200)])


def test_stop_while_the_data_is_prepared(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the data, nor load the model, and nothing half prepared is left."""
    many_rows(folders)
    monkeypatch.setattr(pipeline.model, "load_base", lambda *_: pytest.fail("the model is loaded"))
    run = create_run(folders, make_settings())
    run.request_stop()
    assert work(folders, run, monkeypatch) == 0
    state = run.state()
    assert state.status is Status.STOPPED and "before the first step" in state.cause
    assert not run.receipt_file.exists() and not run.checkpoints()
    assert list((folders.datasets / ".prepared").iterdir()) == []
    assert not any(isinstance(event, Started) for event in EventReader(run).read_new())


def test_preparation_says_how_far_it_is(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    many_rows(folders)
    monkeypatch.setattr(pipeline, "_SECONDS_BETWEEN_COUNTS", 0)
    monkeypatch.setattr(pipeline.model, "load_base", lambda *_: (_ for _ in ()).throw(UserError("far enough")))
    run = create_run(folders, make_settings())
    assert work(folders, run, monkeypatch) == 1
    events = EventReader(run).read_new()
    assert [event.records for event in events if isinstance(event, Preparing)] == [500, 1000]
    assert work(folders, run, monkeypatch) == 1  # all is prepared: there is nothing to say
    assert [event.records for event in EventReader(run).read_new() if isinstance(event, Preparing)] == [500, 1000]


@pytest.mark.parametrize(
    ("error", "reason", "cause"),
    [
        (UserError("The reason."), Reason.REFUSED, "The reason."),
        (torch.OutOfMemoryError("CUDA out of memory"), Reason.MEMORY, "Memory ran out."),
        (RuntimeError("odd"), Reason.UNKNOWN, "An unexpected error ended the training (RuntimeError): odd"),
    ],
)
def test_failed_run_leaves_its_cause(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: Reason, cause: str
) -> None:
    def fail(run: Run, _: Folders) -> bool:
        run.set_state(Status.TRAINING)
        raise error

    monkeypatch.setattr(pipeline, "train_run", fail)
    run = create_run(folders, make_settings())
    assert work(folders, run, monkeypatch) == 1
    state = run.state()
    assert (state.status, state.reason, state.stage) == (Status.FAILED, reason, Status.TRAINING)
    assert state.cause.startswith(cause)
    assert ("RuntimeError: odd" in state.traceback) == (reason is Reason.UNKNOWN)


def test_training_that_diverged_is_paused(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any) -> bool:
        raise Diverged("The loss became nan.")

    monkeypatch.setattr(pipeline, "train_run", diverge)
    run = create_run(folders, make_settings())
    assert work(folders, run, monkeypatch) == 0
    assert (run.state().status, run.state().reason) == (Status.STOPPED, Reason.DIVERGED)


def test_run_that_another_worker_trains_is_left_to_it(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_LOCK_TIMEOUT", 0)
    run = create_run(folders, make_settings())
    code = (
        "import sys; from filelock import FileLock\n"
        "lock = FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run.folder / ".worker.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout and other.stdin
        other.stdout.readline()
        assert work(folders, run, monkeypatch) == ALREADY_TRAINED
        other.stdin.close()
    assert run.stored_state().status is Status.QUEUED and not run.events_file.exists()


def test_signals_ask_for_a_stop(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(worker.signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(pipeline, "train_run", lambda *_: True)
    run = create_run(folders, make_settings())
    work(folders, run, monkeypatch)
    assert set(handlers) == {signal.SIGTERM, signal.SIGINT}
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert run.stop_requested()


def test_receipt_says_what_ran(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    add_dataset(folders, [{"question": f"Q{n}", "answer": "yes" if n else ""} for n in range(11)])
    run = create_run(folders, make_settings(held_out_share=0.2, batch_size=4, micro_batch_size=2, warmup=1))
    assert work(folders, run, monkeypatch) == 0, run.state().cause
    receipt = json.loads(run.receipt_file.read_text())
    assert receipt["settings"] == make_settings(warmup=1).model_dump(mode="json")
    assert (receipt["train_examples"], receipt["evaluation_examples"]) == (8, 2)
    assert (receipt["steps_per_epoch"], receipt["total_steps"], receipt["warmup_steps"]) == (2, 4, 1)
    assert receipt["gradient_accumulation"] == 2
    assert receipt["data"][0]["rows_read"] == 11
    assert receipt["data"][0]["dropped"] == [{"row": 1, "reason": "'answer' is missing or empty"}]
    assert len(receipt["data"][0]["sha256"]) == 64
    # "yes" and the end token of each, but not the question.
    assert receipt["trained_tokens_per_epoch"] == 8 * 4
    assert receipt["tokens_per_epoch"] > receipt["trained_tokens_per_epoch"]
    # Rank 4 on two layers of a model 64 wide, 128 within, and 32 for keys and values.
    widths = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
    assert receipt["trainable_parameters"] == 2 * 4 * sum(a + b for a, b in widths)
    assert receipt["end_token"] == "<|im_end|>" and "im_start" in receipt["chat_template"]
    assert receipt["packages"]["torch"] == torch.__version__
    notes = [e for e in EventReader(run).read_new() if isinstance(e, Note)]
    assert [(n.level, n.text) for n in notes] == [
        ("warning", "1 of 11 rows of pairs.json was dropped: 'answer' is missing or empty (row 1)."),
        (
            "warning",
            "This training has only 4 steps, so the model will hardly change: "
            "lower the batch size or raise the epochs.",
        ),
    ]
