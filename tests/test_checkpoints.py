"""Checkpoints: whole or absent, also on a full disk, and a damaged one is told in words."""

from __future__ import annotations

import errno
import json
from collections import namedtuple
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.optimization import GreedyLR

from tests.tiny import make_folders, make_model, make_settings, make_tokenizer
from training import checkpoints
from training.checkpoints import (
    Progress,
    Resumable,
    delete_old_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_result,
)
from training.errors import UserError
from training.optimization import make_optimizer, make_scheduler
from training.runs import Run, create_run
from training.settings import Optimizer, Scheduler

ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(make_folders(tmp_path), make_settings())


@pytest.fixture
def lora() -> PeftModel:
    return get_peft_model(make_model(263), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))


def resumable(lora: PeftModel, **changes: Any) -> Resumable:
    settings = make_settings(**changes)
    optimizer = make_optimizer(lora, settings)
    return Resumable(optimizer, make_scheduler(optimizer, settings, 10), None)


def take_steps(lora: PeftModel, state: Resumable, count: int = 2) -> None:
    for _ in range(count):
        lora(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        if isinstance(state.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau | GreedyLR):
            state.scheduler.step(1.0)
        else:
            state.scheduler.step()


def plain(value: Any) -> Any:
    """A state in which tensors can be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


ON_CPU = [name for name in get_args(Optimizer) if not name.startswith("paged")]


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [(name, "cosine") for name in ON_CPU] + [("adamw_torch", name) for name in get_args(Scheduler)],
)
def test_everything_with_a_memory_is_restored(run: Run, lora: PeftModel, optimizer: str, scheduler: str) -> None:
    state = resumable(lora, optimizer=optimizer, scheduler=scheduler, learning_rate=1e-2)
    take_steps(lora, state)
    saved = save_checkpoint(run, lora, state, Progress(step=2, loss=1.5, evaluation_loss=float("nan")))
    expected, drawn = plain(state.optimizer.state_dict()), torch.rand(3)

    fresh = resumable(lora, optimizer=optimizer, scheduler=scheduler, learning_rate=1e-2)
    progress = load_checkpoint(saved, fresh)
    assert (progress.step, progress.loss) == (2, 1.5)
    assert torch.equal(torch.rand(3), drawn)
    assert plain(fresh.optimizer.state_dict()) == expected
    take_steps(lora, state, 1)
    rate = state.optimizer.param_groups[0]["lr"]
    take_steps(lora, fresh, 1)
    assert fresh.optimizer.param_groups[0]["lr"] == rate


def test_checkpoint_is_a_plain_adapter_and_the_state(run: Run, lora: PeftModel) -> None:
    saved = save_checkpoint(run, lora, resumable(lora), Progress(step=7))
    assert saved.folder == run.folder / "checkpoint-7"
    names = {p.name for p in saved.folder.iterdir()}
    assert {*ADAPTER, "trainer_state.pt", "progress.json"} <= names
    assert not any(name.endswith(".bin") for name in names)
    assert json.loads((saved.folder / "progress.json").read_text())["step"] == 7


def with_one_checkpoint(run: Run, lora: PeftModel) -> Resumable:
    state = resumable(lora)
    save_checkpoint(run, lora, state, Progress(step=1, loss=1.0))
    return state


def assert_only_the_first_is_there(run: Run, state: Resumable) -> None:
    (left,) = run.checkpoints()
    assert load_checkpoint(left, state).step == 1
    assert not list(run.folder.glob(".checkpoint*"))


def test_too_little_room_is_told_before_writing(run: Run, lora: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    state = with_one_checkpoint(run, lora)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match=r"disk is full: saving needs 6\d MB and 1 MB are free"):
        save_checkpoint(run, lora, state, Progress(step=2))
    with pytest.raises(UserError, match="disk is full"):
        save_result(run, lora, make_tokenizer())
    assert_only_the_first_is_there(run, state)
    assert not run.has_result()


def test_disk_that_fills_up_while_writing(run: Run, lora: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    state = with_one_checkpoint(run, lora)

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(run, lora, state, Progress(step=2))
    assert_only_the_first_is_there(run, state)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="only Linux has a device that is always full")
def test_torch_tells_of_a_full_disk_as_the_system_does(run: Run, lora: PeftModel) -> None:
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb") as file:
        torch.save(resumable(lora).state(), file)


def test_leftovers_of_a_crash_are_in_nobodys_way(run: Run, lora: PeftModel) -> None:
    leftover = run.folder / ".checkpoint-1.partial"
    leftover.mkdir()
    (leftover / "rubbish").touch()
    with_one_checkpoint(run, lora)
    assert not leftover.exists()
    assert not (run.checkpoints()[0].folder / "rubbish").exists()


@pytest.mark.parametrize("name", ["trainer_state.pt", "progress.json"])
@pytest.mark.parametrize("content", [None, b"", b"rubbish", b"{}", b"\x80\x04N.", b"half"])
def test_damaged_checkpoint_is_told_in_words(run: Run, lora: PeftModel, name: str, content: bytes | None) -> None:
    state = with_one_checkpoint(run, lora)
    path = run.checkpoints()[0].folder / name
    if content is None:
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    if (name, content) == ("progress.json", b"{}"):
        assert load_checkpoint(run.checkpoints()[0], state) == Progress()
        return
    with pytest.raises(UserError, match="checkpoint of step 1 is damaged: delete its folder checkpoint-1"):
        load_checkpoint(run.checkpoints()[0], state)


def test_state_that_would_run_code_is_refused(run: Run, lora: PeftModel, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    state = with_one_checkpoint(run, lora)
    torch.save({"optimizer": Evil()}, run.checkpoints()[0].folder / "trainer_state.pt")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(run.checkpoints()[0], state)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("keep_last", "kept"), [(0, [1, 2, 3, 10]), (1, [10]), (3, [2, 3, 10]), (9, [1, 2, 3, 10])])
def test_old_checkpoints_are_deleted_by_step(run: Run, keep_last: int, kept: list[int]) -> None:
    for step in (1, 2, 3, 10):
        (run.folder / f"checkpoint-{step}").mkdir()
    delete_old_checkpoints(run, keep_last)
    assert [c.step for c in run.checkpoints()] == kept
    assert not list(run.folder.glob(".checkpoint*"))


def test_result_replaces_the_one_before(run: Run, lora: PeftModel) -> None:
    tokenizer = make_tokenizer()
    save_result(run, lora, tokenizer)
    first = (run.folder / "adapter_model.safetensors").read_bytes()
    for parameter in lora.parameters():
        if parameter.requires_grad:
            parameter.data += 1
    # A tokenizer with several templates keeps the others in a folder of their own.
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    save_result(run, lora, tokenizer)
    save_result(run, lora, tokenizer)
    assert run.has_result()
    assert (run.folder / "adapter_model.safetensors").read_bytes() != first
    assert not list(run.folder.glob(".*"))
