"""Memory checks: what is tried, what counts as too much, and that a real limit of memory is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny import add_base, add_dataset, make_folders, make_settings, make_tokenizer
from training import memory_check, memory_checks
from training.errors import UserError
from training.events import Step
from training.memory_check import MemorySearch, is_out_of_memory, measure
from training.memory_checks import REPORT_FILE, REQUEST_FILE, MemoryCheck, MemoryChecks, Report, Request, Tried
from training.paths import PROJECT, Folders
from training.pipeline import train_run
from training.run_state import Status
from training.run_store import create_run
from training.schedule import Schedule
from training.settings import Settings

TIMEOUT = 120.0  # seconds
WIDTH = 6_000
LENGTHS = [30, 10, 50, 20, 40, 60, 70, 80]
CPU_FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")


# What is tried, with a trainer that only says what it was asked to do


class FakeTrainer:
    """Notes its steps, and runs out of memory above a size."""

    def __init__(self, settings: Settings, fits: int = 1000, error: Exception = CPU_FULL) -> None:
        self.model = nn.Linear(2, 2)
        self.schedule = Schedule(len(LENGTHS), settings.batch_size, settings.epochs, settings.seed)
        self.steps: list[tuple[list[int], int, bool]] = []
        self.skip = 0  # as float16 does at first
        self._fits = fits
        self._error = error

    def step_on(self, batch: Sequence[int], size: int) -> Step:
        self.steps.append((sorted(LENGTHS[n] for n in batch), size, self.model.weight.grad is not None))
        if size > self._fits:
            raise self._error
        self.skip -= 1
        norm = float("inf") if self.skip >= 0 else 1.0
        return Step(step=1, epoch=1, loss=1, learning_rate=1, grad_norm=norm, tokens=300, seconds=3, memory=0)


class FakeGauge:
    """Memory that grows by 10 bytes an example."""

    free = total = 1000

    def __init__(self, trainer: FakeTrainer, room: int = 10**12, enough: int = 10**12) -> None:
        self._trainer, self._room, self._enough = trainer, room, enough
        self.foreseen: list[int] = []

    def begin(self) -> None: ...

    def peak(self) -> int:
        return 10 * self._trainer.steps[-1][1] + 100

    def fits(self, peak: int) -> bool:
        return peak <= self._enough

    def foresees(self, peak: int) -> bool:
        self.foreseen.append(peak)
        return peak <= self._room


def search(trainer: FakeTrainer, settings: Settings, gauge: FakeGauge | None = None, held_out: int = 0) -> Report:
    most = min(settings.batch_size, len(LENGTHS))
    report = Report(asked=min(settings.micro_batch_size, most), most=most)
    prepared: Any = SimpleNamespace(
        train=SimpleNamespace(lengths=LENGTHS), evaluation=SimpleNamespace(lengths=[50] * held_out)
    )
    MemorySearch(trainer, prepared, gauge or FakeGauge(trainer)).run(settings, report, lambda: None)  # type: ignore[arg-type]
    return report


@pytest.mark.parametrize(
    ("batch", "asked", "sizes"),
    [(8, 2, [1, 2, 4, 8]), (8, 3, [1, 2, 3, 4, 8]), (6, 1, [1, 2, 4, 6]), (1, 1, [1]), (50, 40, [1, 2, 4, 8])],
)
def test_sizes_double_up_to_the_batch(batch: int, asked: int, sizes: list[int]) -> None:
    settings = make_settings(batch_size=batch, micro_batch_size=asked)
    trainer = FakeTrainer(settings)
    report = search(trainer, settings)
    assert [tried.micro_batch_size for tried in report.tried] == sizes
    assert all(tried.fits for tried in report.tried) and report.too_large is None
    assert report.timed_at == min(asked, len(LENGTHS))


def test_each_size_takes_the_longest_examples_beside_the_gradients_of_others() -> None:
    settings = make_settings(batch_size=4, micro_batch_size=4)
    trainer = FakeTrainer(settings)
    search(trainer, settings)
    assert trainer.steps[:4] == [
        ([10], 1, False),  # the first, for the optimizer
        ([80], 1, True),
        ([70, 80], 2, True),
        ([50, 60, 70, 80], 4, False),  # the whole batch at once: there are no gradients before it
    ]


@pytest.mark.parametrize(
    "error", [CPU_FULL, MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("CUDA error: out of memory")]
)
def test_search_ends_where_memory_does(error: Exception) -> None:
    settings = make_settings(batch_size=8, micro_batch_size=2)
    trainer = FakeTrainer(settings, fits=3, error=error)
    report = search(trainer, settings)
    assert [(t.micro_batch_size, t.fits, t.peak) for t in report.tried] == [
        (1, True, 110),
        (2, True, 120),
        (4, False, None),
    ]
    assert (report.largest, report.too_large, report.timed_at) == (report.of(2), 4, 2)
    assert trainer.model.weight.grad is None, "what a failed try had computed is still in memory"


def test_size_asked_for_that_does_not_fit() -> None:
    settings = make_settings(batch_size=8, micro_batch_size=8)
    report = search(FakeTrainer(settings, fits=2), settings)
    assert (report.of(8), report.too_large, report.timed_at) == (None, 4, 2)


def test_nothing_fits() -> None:
    settings = make_settings(batch_size=8, micro_batch_size=8)
    trainer = FakeTrainer(settings)
    report = search(trainer, settings, FakeGauge(trainer, enough=0))
    assert report.tried == [Tried(micro_batch_size=1, fits=False, peak=110, reserved=report.tried[0].reserved)]
    assert report.largest is None and report.timed_at is None


def test_what_is_foreseen_to_be_too_much_is_never_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.memory_check.model.memory_in_use", lambda: 100)
    settings = make_settings(batch_size=8, micro_batch_size=1)
    trainer = FakeTrainer(settings)
    gauge = FakeGauge(trainer, room=150)
    report = search(trainer, settings, gauge)
    assert gauge.foreseen == [100, 120, 140, 180]
    assert max(size for _, size, _ in trainer.steps) == 4
    assert report.tried[-1] == Tried(micro_batch_size=8, fits=False)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    settings = make_settings(batch_size=8)
    with pytest.raises(RuntimeError, match="shapes"):
        search(FakeTrainer(settings, fits=2, error=RuntimeError("shapes cannot be multiplied")), settings)
    assert not is_out_of_memory(UserError("Memory is a word."))


def test_first_steps_that_float16_leaves_out_are_taken_again() -> None:
    settings = make_settings(batch_size=4)
    trainer = FakeTrainer(settings)
    trainer.skip = 2
    search(trainer, settings)
    assert [numbers for numbers, _, _ in trainer.steps[:4]] == [[10], [10], [10], [80]]


@pytest.mark.parametrize(
    ("evaluate_every", "save_every", "evaluations"), [(0, 3, 2), (4, 0, 4), (4, 3, 7), (5, 5, 3), (20, 50, 2)]
)
def test_time_of_the_whole_training(evaluate_every: int, save_every: int, evaluations: int) -> None:
    settings = make_settings(batch_size=4, epochs=5, evaluate_every=evaluate_every, save_every=save_every)
    report = search(FakeTrainer(settings), settings, held_out=6)  # 10 steps, of 360 tokens in two
    assert report.tokens_per_second == 100
    assert report.total_seconds == pytest.approx((5 * 360 + evaluations * 300 / 3) / 100)


# A real limit


def add_wide_model(folders: Folders) -> None:
    """A base model of which next to nothing is large but what its wide layers keep for the backward pass."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(str(folders.models / "tiny"))
    make_tokenizer().save_pretrained(str(folders.models / "tiny"))


# The limit is that of a process: from the moment when everything is loaded, so much more.
LIMITED = """
import os, resource, sys
from pathlib import Path
from training import memory_check

class Limited(memory_check.MainMemory):
    def begin(self):
        super().begin()
        if more := os.environ.pop("MORE", ""):
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + int(more), resource.RLIM_INFINITY))

memory_check.MainMemory = Limited
sys.exit(memory_check.main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process so")
def test_largest_micro_batch_under_a_real_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "_LONG_ENOUGH", 0.0)
    folders = make_folders(tmp_path)
    add_wide_model(folders)
    add_dataset(folders, [{"question": "Q" * 60, "answer": "a" * 120} for _ in range(10)])
    settings = make_settings(batch_size=8, micro_batch_size=2, held_out_share=0, precision="32-bit")
    request = Request(settings=settings, folders=folders)
    free = Report()
    measure(tmp_path, request, free, lambda: None)
    peaks = {tried.micro_batch_size: tried.peak or 0 for tried in free.tried}
    assert list(peaks) == [1, 2, 4, 8] and free.too_large is None
    example = (peaks[8] - peaks[4]) / 4
    assert example > 200 * 4 * 2 * WIDTH * 4, "less than gate and up in each layer"

    folder = tmp_path / "check"
    folder.mkdir()
    (folder / REQUEST_FILE).write_text(request.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder)],
        cwd=PROJECT,
        env={**os.environ, "MORE": str(int(6 * example))},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    report = Report.model_validate_json((folder / REPORT_FILE).read_text())
    assert [(tried.micro_batch_size, tried.fits) for tried in report.tried] == [
        (1, True),
        (2, True),
        (4, True),
        (8, False),
    ]
    assert report.largest == report.of(4) and report.tokens_per_second > 0
    assert "DefaultCPUAllocator" in done.stderr, "it was not the limit that ended the search"


# In a process of its own


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    made = make_folders(tmp_path / "graft")
    add_base(made)
    add_dataset(made)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(memory_checks.tempfile, "tempdir", str(tmp_path / "temporary"))
    return made


def left_behind(folders: Folders) -> list[Path]:
    return [*(folders.models.parents[1] / "temporary").iterdir(), *folders.loras.iterdir()]


def test_whole_check(folders: Folders) -> None:
    checks = MemoryChecks(folders)
    check = checks.start(make_settings(batch_size=4, micro_batch_size=2))
    with pytest.raises(UserError, match="being checked at this moment"):
        checks.start(make_settings())
    check.join(TIMEOUT)
    progress = check.progress()
    assert (progress.state, progress.message) == ("done", "")
    report = progress.report
    assert [tried.micro_batch_size for tried in report.tried] == [1, 2, 4] and report.largest == report.of(4)
    assert all(10**8 < (tried.peak or 0) < report.free <= report.total for tried in report.tried)
    assert report.timed_at == 2 and report.tokens_per_second > 0 and report.total_seconds > 0
    assert left_behind(folders) == []
    assert any((folders.datasets / ".prepared").iterdir()), "the training will not have to prepare anew"


def fake(monkeypatch: pytest.MonkeyPatch, script: str, report: Report | None = None) -> None:
    """A check that only writes this report and does what the script says."""
    written = (report or Report()).model_dump_json()
    lines = f"import os, signal, sys, pathlib\nfolder = pathlib.Path(sys.argv[1])\n(folder / {REPORT_FILE!r})"
    lines += f".write_text({written!r})\n{script}"
    monkeypatch.setattr(memory_checks, "check_command", lambda folder: [sys.executable, "-c", lines, str(folder)])


def processes() -> list[psutil.Process]:
    """The checks of this program that are at work."""
    return [child for child in psutil.Process().children() if REPORT_FILE in " ".join(child.cmdline())]


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
FOR_EVER = "signal.pause()"
FITS_2 = [Tried(micro_batch_size=1, fits=True, peak=1), Tried(micro_batch_size=2, fits=True, peak=2)]


def ended(folders: Folders) -> MemoryCheck:
    check = MemoryChecks(folders).start(make_settings())
    check.join(TIMEOUT)
    assert left_behind(folders) == []
    return check


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_by_the_system_means_too_large(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, KILLED, Report(asked=2, tried=FITS_2, trying=4, timed_at=2))
    progress = ended(folders).progress()
    assert progress.state == "done"
    assert progress.report.tried == [*FITS_2, Tried(micro_batch_size=4, fits=False)]
    fake(monkeypatch, KILLED, Report(asked=2, tried=FITS_2, trying=2, timed_at=2))  # while it was timed
    report = ended(folders).progress().report
    assert report.tried == [FITS_2[0], Tried(micro_batch_size=2, fits=False)] and report.timed_at is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(("asked", "words"), [(0, "while the data was prepared"), (2, "while the model was loaded")])
def test_killed_before_the_first_step(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, asked: int, words: str
) -> None:
    fake(monkeypatch, KILLED, Report(asked=asked))
    progress = ended(folders).progress()
    assert progress.state == "failed" and words in progress.message


def test_ended_before_main_memory_is_used_up(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, FOR_EVER, Report(asked=2, tried=FITS_2, trying=4))
    memory = namedtuple("memory", "total available")
    checks = MemoryChecks(folders)

    def available() -> Any:  # low as soon as the report was seen
        seen = checks.latest is not None and checks.latest.progress().report.trying
        return memory(10**10, 10**8 if seen else 10**10)

    monkeypatch.setattr(memory_checks.psutil, "virtual_memory", available)
    check = checks.start(make_settings())
    check.join(TIMEOUT)
    assert check.progress().state == "done"
    assert check.progress().report.tried == [*FITS_2, Tried(micro_batch_size=4, fits=False)]
    assert processes() == [] and left_behind(folders) == []


def test_sentence_of_a_failure_is_passed_on(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "sys.exit(1)", Report(problem="Say this."))
    assert (ended(folders).progress().state, ended(folders).progress().message) == ("failed", "Say this.")


def test_crash_is_told_and_logged(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake(monkeypatch, "raise KeyError('odd')")
    progress = ended(folders).progress()
    assert progress.state == "failed" and "Graft's log" in progress.message
    assert "KeyError: 'odd'" in caplog.text


def test_stop_ends_the_process(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, FOR_EVER, Report(asked=2))
    checks = MemoryChecks(folders)
    checks.stop()  # there is none
    check = checks.start(make_settings())
    while check.is_alive() and not check.progress().report.asked:
        check.join(0.02)
    assert len(processes()) == 1
    checks.stop()
    assert not check.is_alive() and check.progress().state == "cancelled"
    assert processes() == [] and left_behind(folders) == []
    checks.start(make_settings())
    checks.stop()


def test_request_holds_settings_and_folders_only(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    kept = folders.models.parent / "request"
    fake(monkeypatch, f"os.link(folder / {REQUEST_FILE!r}, {str(kept)!r})")
    ended(folders)
    assert set(json.loads(kept.read_text())) == {"settings", "folders"} and "hf_secret" not in kept.read_text()
    assert Request.model_validate_json(kept.read_text()).folders == folders


def test_refused_while_a_training_runs(folders: Folders) -> None:
    run = create_run(folders, make_settings())
    run.set_state(Status.TRAINING)
    with pytest.raises(UserError, match="'test' is being trained"):
        MemoryChecks(folders).start(make_settings())
    run.set_state(Status.DONE)


@pytest.mark.parametrize(
    ("name", "words"), [("org/not-here", "not on this computer yet"), ("none", "there is no folder 'none'")]
)
def test_model_that_is_not_here(folders: Folders, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        MemoryChecks(folders).start(make_settings(base_model=name))


# The process itself


def work(folders: Folders, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[int, Path]:
    folder = folders.models.parent / "check"
    folder.mkdir()
    request = Request(settings=make_settings(**changes), folders=folders)
    (folder / REQUEST_FILE).write_text(request.model_dump_json())
    monkeypatch.setattr(sys, "argv", ["check", str(folder)])
    return memory_check.main(), folder


def test_data_that_cannot_be_trained_on(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    add_dataset(folders, [{"frage": 1}])
    code, folder = work(folders, monkeypatch)
    report = Report.model_validate_json((folder / REPORT_FILE).read_text())
    assert code == 1 and "No row has the columns" in report.problem


def test_memory_that_runs_out_while_the_model_is_loaded(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise CPU_FULL

    monkeypatch.setattr(memory_check, "prepare_base", full)
    code, folder = work(folders, monkeypatch)
    report = Report.model_validate_json((folder / REPORT_FILE).read_text())
    assert code == 1 and "while the model was loaded" in report.problem and report.longest > 0


def test_check_that_nobody_waits_for_ends(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = SimpleNamespace(parent=lambda: SimpleNamespace(is_running=lambda: False))
    monkeypatch.setattr(memory_check.psutil, "Process", lambda: gone)
    monkeypatch.setattr(memory_check, "measure", lambda folder, request, report, tell: tell())
    with pytest.raises(SystemExit, match="nobody waits"):
        work(folders, monkeypatch)
    assert not (folders.models.parent / "check").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "full fine-tuning"},
        {"gradient_checkpointing": True, "dora": True},
        {"precision": "4-bit"},
        {"dataset": [], "raw_text": ["text.txt"], "cutoff_length": 64, "overlap_length": 0},
        {"new_tokens": ["<tool>"]},
        {"start_from": "earlier", "start_as": "merge it into the base"},
        {"start_from": "earlier", "lora_rank": 8},
    ],
)
def test_settings_of_all_kinds(folders: Folders, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    monkeypatch.setattr(memory_check, "_LONG_ENOUGH", 0.0)
    (folders.datasets / "text.txt").write_text("Some words to learn.\n" * 40)
    if changes.get("start_from"):
        train_run(create_run(folders, make_settings(name="earlier", epochs=1)), folders)
    code, folder = work(folders, monkeypatch, **changes)
    report = Report.model_validate_json((folder / REPORT_FILE).read_text())
    assert (code, report.problem) == (0, "")
    assert report.largest == report.of(4) and report.timed_at == 2
    assert report.longest > 50 or not changes.get("raw_text"), "no full chunk"
    assert [path.name for path in folders.models.iterdir()] == ["tiny"], "a check makes no model"
