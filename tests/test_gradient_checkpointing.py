"""Gradient checkpointing is on when it is asked for, or when memory needs it, and the receipt says which and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training import gradient_checkpointing
from training.errors import UserError
from training.estimate import Estimate, estimate
from training.events import Note, Step
from training.gradient_checkpointing import Decision, as_decided, decide
from training.paths import Folders
from training.pipeline import train_run
from training.prepared import Examples
from training.run_state import Status
from training.run_store import create_run
from training.runs import EventReader, Run
from training.settings import ALWAYS, NEVER, WHEN_NEEDED, Settings

GB = 2**30
CUTOFF = 512


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = make_folders(tmp_path)
    add_base(made)
    add_dataset(made)
    return made


def decided(folders: Folders, free: int | None, **changes: Any) -> tuple[Estimate, Decision]:
    settings = make_settings(cutoff_length=CUTOFF, **changes)
    return as_decided(settings, lambda s: estimate(s, str(folders.models / "tiny")), free)


def needs(folders: Folders, choice: str) -> int:
    return decided(folders, None, gradient_checkpointing=choice)[0].memory.total


class Lengths(Examples):
    """Examples of which only the lengths are known."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self._longest_first = sorted(lengths, reverse=True)

    def __len__(self) -> int:
        return len(self.lengths)


def test_what_is_asked_for_is_done_whatever_is_free(folders: Folders) -> None:
    for free in (None, 0, 2**50):
        assert decided(folders, free, gradient_checkpointing=ALWAYS)[1].on
        assert not decided(folders, free, gradient_checkpointing=NEVER)[1].on


def test_memory_decides_with_room_to_spare(folders: Folders) -> None:
    """The numbers are those of what will run; a tenth of what is free is left alone."""
    without, with_it = needs(folders, NEVER), needs(folders, ALWAYS)
    assert with_it < without
    numbers, decision = decided(folders, int(without / 0.89))
    assert not decision.on and numbers.memory.total == without
    numbers, decision = decided(folders, int(without / 0.91))
    assert decision.on and numbers.memory.total == with_it
    assert decision.because.startswith("without it the training needs about 0.5 GB; 0.6 GB are free, and a tenth")


def test_it_stays_off_where_it_would_not_help(folders: Folders) -> None:
    assert decided(folders, None)[1] == Decision(False, "how much memory is free is not known")
    assert decided(folders, 0, method="prefix tuning")[1] == Decision(False, "prefix tuning does not work with it")
    numbers = estimate(make_settings(), str(folders.models / "tiny"))
    decision = as_decided(make_settings(), lambda _: numbers, 0)[1]
    assert decision == Decision(False, "the training would need no less memory with it")


def test_a_decision_leaves_nothing_to_decide() -> None:
    settings = make_settings()
    assert settings.gradient_checkpointing == WHEN_NEEDED
    assert Decision(True, "").applied_to(settings).gradient_checkpointing == ALWAYS
    assert Decision(False, "").applied_to(settings).gradient_checkpointing == NEVER


def test_the_estimate_draws_no_random_numbers_of_the_training(folders: Folders) -> None:
    torch.manual_seed(3)
    before, of_numpy = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    decision = decide(make_settings(), str(folders.models / "tiny"), Lengths([9, 40]), None)
    assert "the training needs about" in decision.because
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], of_numpy)


@pytest.mark.parametrize("error", [UserError("it misfits"), NotImplementedError("no meta kernel"), KeyError("x")])
def test_a_model_that_cannot_be_reckoned_with_is_trained_all_the_same(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object, **__: object) -> Estimate:
        raise error

    monkeypatch.setattr(gradient_checkpointing, "estimate", fails)
    decision = decide(make_settings(), str(folders.models / "tiny"), Lengths([9]), None)
    assert decision == Decision(False, "what the training needs cannot be estimated")


def test_what_is_free_on_a_gpu_counts_what_its_libraries_have_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (6 * GB, 8 * GB))
    assert 6 * GB < gradient_checkpointing._free_here() < 7 * GB


def trained(folders: Folders, name: str, **changes: Any) -> Run:
    usual = {"cutoff_length": CUTOFF, "lora_dropout": 0.1, "epochs": 1, "learning_rate": 0.02, "warmup": 0}
    run = create_run(folders, make_settings(name=name, **usual | changes))
    train_run(run, folders)
    run.set_state(Status.DONE)
    return run


def losses(run: Run) -> list[float]:
    return [event.loss for event in EventReader(run).read_new() if isinstance(event, Step)]


def receipt(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.receipt_file.read_text())
    return found


def test_a_run_says_whether_and_why_and_learns_the_same(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, which draws from the random numbers that counting must leave alone."""
    plain = trained(folders, "plain", gradient_checkpointing=NEVER)
    assert receipt(plain)["gradient_checkpointing"] is False
    assert receipt(plain)["gradient_checkpointing_because"] == "the settings say so"
    monkeypatch.setattr(gradient_checkpointing, "_free_here", lambda: GB // 2)
    short = trained(folders, "short")
    assert receipt(short)["gradient_checkpointing"] is True
    assert receipt(short)["gradient_checkpointing_because"].endswith(
        "0.5 GB are free, and a tenth of that is kept in reserve"
    )
    assert receipt(short)["settings"]["gradient_checkpointing"] == WHEN_NEEDED
    told = [event.text for event in EventReader(short).read_new() if isinstance(event, Note)]
    assert [text for text in told if text.startswith("Gradient checkpointing is on: without it")]
    monkeypatch.setattr(gradient_checkpointing, "_free_here", lambda: 64 * GB)
    ample = trained(folders, "ample")
    assert receipt(ample)["gradient_checkpointing"] is False
    assert losses(ample) == losses(plain)
    assert losses(short) == pytest.approx(losses(plain), abs=1e-6)


def test_a_run_may_decide_anew_when_it_goes_on(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_checkpointing, "_free_here", lambda: 64 * GB)
    run = trained(folders, "a")
    monkeypatch.setattr(gradient_checkpointing, "_free_here", lambda: GB // 2)
    settings = Settings.model_validate(run.settings().model_dump() | {"epochs": 2, "if_exists": "continue"})
    train_run(create_run(folders, settings), folders)
    assert receipt(run)["gradient_checkpointing"] is True and receipt(run)["continued_from_step"] == 2
