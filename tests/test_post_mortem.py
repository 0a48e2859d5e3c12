"""What is said of a failure, and what a report of one tells and keeps to itself."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tests.tiny import make_folders, make_settings
from training import post_mortem
from training.errors import Diverged, UserError
from training.post_mortem import cause_of, exit_cause, oom_kills, report
from training.run_state import Reason, Status
from training.run_store import create_run
from training.runs import Run


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (UserError("Say this."), Reason.REFUSED, "Say this."),
        (Diverged("The loss became nan."), Reason.DIVERGED, "The loss became nan."),
        (MemoryError(), Reason.MEMORY, "Memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory"), Reason.MEMORY, "Memory ran out"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), Reason.MEMORY, "Memory ran out"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), Reason.MEMORY, "Memory ran out"),
        (RuntimeError("could not create a memory object"), Reason.MEMORY, "Memory ran out"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Reason.MEMORY, "Memory ran out"),
        (OSError(errno.ENOSPC, "No space left on device"), Reason.DISK, "disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Reason.DISK, "disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), Reason.DISK, "disk is full"),
        (OSError(errno.EACCES, "Permission denied"), Reason.UNKNOWN, "(PermissionError): [Errno 13]"),
        (KeyError("x"), Reason.UNKNOWN, "(KeyError): 'x'"),
        (ValueError(), Reason.UNKNOWN, "it gave no reason"),
    ],
)
def test_cause_of_an_error(error: Exception, reason: Reason, words: str) -> None:
    death = cause_of(error)
    assert death.reason is reason and words in death.cause
    assert bool(death.traceback) == (reason is Reason.UNKNOWN)


@pytest.mark.parametrize(
    ("code", "log", "by_killer", "reason", "words"),
    [
        (-9, "", True, Reason.MEMORY, "main memory ran out"),
        (-9, "", False, Reason.KILLED, "killed by the system or by another program"),
        (-6, "terminate called after throwing an instance of 'std::bad_alloc'", False, Reason.MEMORY, "Memory ran out"),
        (1, "libgomp: Thread creation failed: Resource temporarily unavailable", False, Reason.MEMORY, "Memory"),
        (-11, "", False, Reason.CRASHED, "signal 11"),
        (3, "", False, Reason.CRASHED, "exit code 3"),
        # Windows gives what a crash left as a large positive number.
        (3221225477, "", False, Reason.CRASHED, "3221225477"),
    ],
)
def test_cause_of_an_exit(code: int, log: str, by_killer: bool, reason: Reason, words: str) -> None:
    death = exit_cause(code, log, by_killer)
    assert death.reason is reason and words in death.cause


def test_kills_are_counted_where_the_system_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tmp_path / "vmstat"
    monkeypatch.setattr(post_mortem, "_COUNTS", counts)
    assert oom_kills() == 0
    counts.write_text("nr_free_pages 17\noom_kill 3\n")
    assert oom_kills() == 3


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(make_folders(tmp_path), make_settings())


def test_report_tells_what_happened(run: Run) -> None:
    run.log_file.write_text("first\nlast word\n")
    run.set_state(Status.TRAINING)
    run.set_state(Status.FAILED, "Odd.", Reason.UNKNOWN, traceback="Traceback: KeyError: 'x'")
    text = report(run)
    for told in ("failed", "Odd.", "while training", "KeyError: 'x'", "last word", f"torch {torch.__version__}"):
        assert told in text
    assert '"lora_rank": 4' in text and "Python 3" in text


def test_report_keeps_secrets_and_places(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "my very own token")
    home = str(Path.home())
    said = f"hf_{'aB3' * 12} and my very own token in {home}/secret/model, https://me:pass@host/x"
    run.log_file.write_text(said)
    run.set_state(Status.FAILED, said, Reason.UNKNOWN, traceback=said)
    text = report(run)
    for secret in ("hf_aB3", "my very own token", "me:pass", f"{home}/"):
        assert secret not in text
    assert "~/secret/model" in text and "[token]" in text


def test_report_of_a_run_with_damaged_files(run: Run) -> None:
    (run.folder / "settings.json").write_text("{")
    (run.folder / "receipt.json").write_text("{")
    assert "The settings.json of 'test' is damaged" in report(run)
