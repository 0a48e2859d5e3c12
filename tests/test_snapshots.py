"""A snapshot stays as it is while the training goes on, and makes the very files that the model itself would make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.tiny import make_folders, make_model, make_settings
from training import checkpoints, snapshots
from training.checkpoints import Resumable, load_checkpoint, save_checkpoint, save_model, take_snapshot
from training.methods import TrainableModel, attach
from training.optimization import make_optimizer, make_scheduler
from training.progress import Progress
from training.run_store import create_run
from training.runs import ADAPTER_WEIGHTS, Run
from training.settings import Settings

WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "DoRA": {"dora": True},
    "VeRA": {"method": "VeRA"},
    "LoHa": {"method": "LoHa"},
    "LoKr": {"method": "LoKr"},
    "IA3": {"method": "IA3"},
    "embeddings too": {"train_fully": ["lm_head", "embed_tokens"]},
    "LoRA on embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "8-bit optimizer": {"optimizer": "adamw_8bit"},
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(make_folders(tmp_path), make_settings())


def trained(settings: Settings) -> tuple[TrainableModel, Resumable, Callable[[], None]]:
    """A model with some steps behind it, what it goes on from, and how it takes another."""
    model = attach(make_model(263), settings)
    optimizer = make_optimizer(model, settings)
    state = Resumable(optimizer, make_scheduler(optimizer, settings, 100), None, settings.learning_rate)

    def step() -> None:
        model(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.scheduler.step()

    for _ in range(2):
        step()
    return model, state, step


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("way", WAYS)
def test_steps_after_it_change_nothing_of_what_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    model, state, step = trained(make_settings(learning_rate=1e-2, **WAYS[way]))
    progress = Progress(step=2, loss=1.5, evaluations={1: 2.0})
    with monkeypatch.context() as patch:  # as it is written where there is no room for copies
        patch.setattr(checkpoints, "may_be_copied", lambda *_: False)
        direct = take_snapshot(run, model, state.state(), progress)
    assert not direct.is_copy
    expected = files_of(save_checkpoint(run, model, direct).folder)
    (run.folder / "checkpoint-2").rename(tmp_path / "direct")

    snapshot = take_snapshot(run, model, state.state(), progress)
    assert snapshot.is_copy
    step()
    progress.evaluated(1.0, counts=True)
    progress.took_step(9.0)
    saved = save_checkpoint(run, model, snapshot)
    found = files_of(saved.folder)
    assert found.keys() == expected.keys()
    # torch's file of the state has other bytes where a tensor is part of a larger one, and is compared by content.
    differing = {name for name in found if found[name] != expected[name]}
    assert differing <= {"trainer_state.pt", "manifest.json"}
    plain = [
        torch.load(folder / "trainer_state.pt", weights_only=True) for folder in (saved.folder, tmp_path / "direct")
    ]
    assert_same(plain[0], plain[1])

    save_model(run, model, tmp_path / "later")
    later = load_file(tmp_path / "later" / ADAPTER_WEIGHTS)
    before = load_file(saved.folder / ADAPTER_WEIGHTS)
    assert any(not torch.equal(later[name], before[name]) for name in before)
    assert load_checkpoint(saved, state).step == 2


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def test_frozen_weights_are_not_copied() -> None:
    model, state, _ = trained(make_settings())
    weights = snapshots.copy_of(model, state.state(), Progress()).weights
    assert weights
    for name, parameter in model.named_parameters():
        assert (weights[name].data_ptr() == parameter.data_ptr()) is not parameter.requires_grad


def test_tensor_that_several_share_stays_one() -> None:
    shared, other = torch.arange(3), torch.arange(4)
    state = {"a": [shared, {"b": shared}], "c": (other, 1, "x", None)}
    copied = snapshots.copy_of(torch.nn.Linear(1, 1), state, Progress()).state
    assert copied["a"][0] is copied["a"][1]["b"] and copied["a"][0] is not shared
    assert copied["c"][1:] == (1, "x", None) and copied["c"][0] is not other
    shared += 1
    assert copied["a"][0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "full fine-tuning"},
        {"method": "prefix tuning"},
        {"method": "prompt tuning"},
        {"method": "P-tuning"},
        {"initialization": "PiSSA"},
    ],
)
def test_what_cannot_be_copied_is_not(run: Run, changes: dict[str, Any]) -> None:
    model, state, _ = trained(make_settings(virtual_tokens=4, **changes))
    if "initialization" in changes:
        assert isinstance(model, PeftModel)
        checkpoints.save_initial_adapter(run, model)
    snapshot = take_snapshot(run, model, state.state(), Progress(step=1))
    assert not snapshot.is_copy
    assert save_checkpoint(run, model, snapshot).step == 1


@pytest.mark.parametrize(("times", "copied"), [(3, False), (5, True)])
def test_copies_take_no_more_than_a_quarter_of_the_free_memory(
    run: Run, monkeypatch: pytest.MonkeyPatch, times: int, copied: bool
) -> None:
    model, state, _ = trained(make_settings())
    needed = 3 * checkpoints.trained_bytes(model)  # Adam keeps two moments

    class Memory:
        available = times * needed

    monkeypatch.setattr(snapshots.psutil, "virtual_memory", Memory)
    assert take_snapshot(run, model, state.state(), Progress()).is_copy is copied
