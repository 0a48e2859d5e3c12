"""Checkpoints: whole or absent, waiting for room on a full disk, and a damaged one is passed over."""

from __future__ import annotations

import errno
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.optimization import GreedyLR

import training.disk
from tests.tiny import make_folders, make_model, make_settings, make_tokenizer
from training import checkpoints, room
from training.checkpoint_files import why_damaged, write_manifest
from training.checkpoints import (
    Resumable,
    best_checkpoint,
    delete_old_checkpoints,
    load_checkpoint,
    newest_whole_checkpoint,
    save_checkpoint,
    take_snapshot,
)
from training.errors import UserError
from training.events import Note
from training.optimization import make_optimizer, make_scheduler
from training.progress import Progress
from training.results import save_result
from training.run_state import Status
from training.run_store import create_run
from training.runs import Checkpoint, EventReader, Run
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
    return Resumable(optimizer, make_scheduler(optimizer, settings, 10), None, settings.learning_rate)


def save(run: Run, lora: PeftModel, state: Resumable, progress: Progress) -> Checkpoint:
    return save_checkpoint(run, lora, take_snapshot(run, lora, state.state(), progress))


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


def draw() -> tuple[list[float], float, float]:
    """Random numbers of all that have them."""
    return torch.rand(3).tolist(), random.random(), float(np.random.rand())


ON_CPU = [name for name in get_args(Optimizer) if not name.startswith("paged")]


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [(name, "cosine") for name in ON_CPU] + [("adamw_torch", name) for name in get_args(Scheduler)],
)
def test_everything_with_a_memory_is_restored(run: Run, lora: PeftModel, optimizer: str, scheduler: str) -> None:
    state = resumable(lora, optimizer=optimizer, scheduler=scheduler, learning_rate=1e-2)
    take_steps(lora, state)
    saved = save(run, lora, state, Progress(step=2, loss=1.5, evaluation_loss=float("nan")))
    expected, drawn = plain(state.optimizer.state_dict()), draw()

    fresh = resumable(lora, optimizer=optimizer, scheduler=scheduler, learning_rate=1e-2)
    progress = load_checkpoint(saved, fresh)
    assert (progress.step, progress.loss) == (2, 1.5)
    assert draw() == drawn
    assert plain(fresh.optimizer.state_dict()) == expected
    take_steps(lora, state, 1)
    rate = state.optimizer.param_groups[0]["lr"]
    take_steps(lora, fresh, 1)
    assert fresh.optimizer.param_groups[0]["lr"] == rate


def test_checkpoint_is_a_plain_adapter_and_the_state(run: Run, lora: PeftModel) -> None:
    saved = save(run, lora, resumable(lora), Progress(step=7))
    assert saved.folder == run.folder / "checkpoint-7"
    names = {p.name for p in saved.folder.iterdir()}
    assert {*ADAPTER, "trainer_state.pt", "progress.json"} <= names
    assert not any(name.endswith(".bin") for name in names)
    assert json.loads((saved.folder / "progress.json").read_text())["step"] == 7


def with_one_checkpoint(run: Run, lora: PeftModel) -> Resumable:
    state = resumable(lora)
    save(run, lora, state, Progress(step=1, loss=1.0))
    return state


def assert_only_the_first_is_there(run: Run, state: Resumable, besides: str = "") -> None:
    (left,) = run.checkpoints()
    assert load_checkpoint(left, state).step == 1
    assert [p.name for p in run.folder.glob(".checkpoint*")] == [besides] * bool(besides)


@dataclass
class FullDisk:
    """A disk that has room again when somebody has waited three times; what the state said meanwhile."""

    run: Run
    free: int = 10**6
    waited: int = 0
    said: list[str] = field(default_factory=list)
    on_room: Callable[[], None] = lambda: None

    def wait(self, seconds: float) -> None:
        self.waited += 1
        self.said.append(self.run.stored_state().cause)
        assert self.run.stored_state().status is Status.TRAINING
        if self.waited == 3:
            self.free = 10**12
            self.on_room()


@pytest.fixture
def full_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    disk = FullDisk(run)
    monkeypatch.setattr(room, "free_bytes", lambda _: disk.free)
    monkeypatch.setattr(training.disk.time, "sleep", disk.wait)
    run.set_state(Status.TRAINING)
    return disk


def assert_it_waited(disk: FullDisk, needed: str) -> None:
    assert disk.waited == 3
    assert all(re.search(rf"disk is full: saving needs {needed} MB and \d+ MB are free.*waits", s) for s in disk.said)
    assert disk.run.stored_state().cause == "" and disk.run.stored_state().status is Status.TRAINING
    (note,) = [e for e in EventReader(disk.run).read_new() if isinstance(e, Note)]
    assert "waited until there was room" in note.text


def test_too_little_room_is_waited_out_before_writing(run: Run, lora: PeftModel, full_disk: FullDisk) -> None:
    assert save(run, lora, resumable(lora), Progress(step=2)).step == 2
    assert_it_waited(full_disk, "8")
    assert why_damaged(run.checkpoints()[0].folder) == ""


def test_who_asks_is_told_that_the_writing_is_held_up(run: Run, lora: PeftModel, full_disk: FullDisk) -> None:
    said_before: list[str] = []
    snapshot = take_snapshot(run, lora, resumable(lora).state(), Progress(step=2))
    save_checkpoint(run, lora, snapshot, lambda: said_before.append(run.stored_state().cause))
    assert full_disk.waited == 3 and len(said_before) == 3
    assert said_before[0] == ""  # a disk that is quite full does not even let the state say it
    said_before.clear()
    save_checkpoint(run, lora, take_snapshot(run, lora, resumable(lora).state(), Progress(step=3)), said_before.clear)
    assert said_before == []


def test_result_waits_for_room_too(run: Run, lora: PeftModel, full_disk: FullDisk) -> None:
    save_result(run, lora, make_tokenizer())
    assert_it_waited(full_disk, "8")
    assert run.has_result() and not list(run.folder.glob(".result*"))


def test_last_checkpoint_tells_how_much_the_next_one_needs(run: Run, lora: PeftModel, full_disk: FullDisk) -> None:
    full_disk.free = 10**12
    first = save(run, lora, resumable(lora), Progress(step=1))
    (first.folder / "more").write_bytes(b"0" * 50 * 2**20)
    full_disk.free = 40 * 2**20
    save(run, lora, resumable(lora), Progress(step=2))
    assert_it_waited(full_disk, "58")


def test_disk_that_fills_up_while_writing(
    run: Run, lora: PeftModel, full_disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk.free = 10**12
    state = with_one_checkpoint(run, lora)

    def fail(*_: Any) -> None:
        assert_only_the_first_is_there(run, state, besides=".checkpoint-2.partial")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", fail)
    full_disk.on_room = monkeypatch.undo
    full_disk.free = 10**12
    save(run, lora, state, Progress(step=2))
    assert [c.step for c in run.checkpoints()] == [1, 2]
    assert all(why_damaged(c.folder) == "" for c in run.checkpoints())
    assert full_disk.waited == 3


def test_other_errors_of_writing_are_not_waited_out(
    run: Run, lora: PeftModel, full_disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk.free = 10**12
    state = with_one_checkpoint(run, lora)

    def fail(*_: Any) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(checkpoints.torch, "save", fail)
    with pytest.raises(MemoryError):
        save(run, lora, state, Progress(step=2))
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


def test_what_a_killed_process_left_goes_when_the_run_goes_on(run: Run, lora: PeftModel) -> None:
    with_one_checkpoint(run, lora)
    for name in (".checkpoint-7.partial", ".checkpoint-3.deleted", ".result.partial"):
        (run.folder / name).mkdir()
        (run.folder / name / "rubbish").touch()
    (run.folder / ".state.json.77.partial").touch()  # which another process may be writing at this moment
    (run.folder / ".checkpoint-5.damaged").mkdir()
    assert newest_whole_checkpoint(run) == run.checkpoints()[0]
    assert sorted(p.name for p in run.folder.glob(".*")) == [".checkpoint-5.damaged", ".state.json.77.partial"]


def notes(run: Run) -> list[str]:
    return [e.text for e in EventReader(run).read_new() if isinstance(e, Note)]


FILES = ["trainer_state.pt", "progress.json", "adapter_model.safetensors", "adapter_config.json", "manifest.json"]
DAMAGES = ["missing", "empty", "half", "one bit", "rubbish", "a folder"]


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how != "missing":
        changed = bytearray(whole)
        changed[len(whole) // 3] ^= 1
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "one bit": changed, "rubbish": b"no"}[how])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_checkpoint_is_passed_over_for_the_one_before(run: Run, lora: PeftModel, name: str, how: str) -> None:
    state = resumable(lora)
    for step in (1, 2):
        save(run, lora, state, Progress(step=step))
    damage(run.checkpoints()[1].folder / name, how)
    found = newest_whole_checkpoint(run)
    assert found is not None and load_checkpoint(found, state).step == 1
    assert [c.step for c in run.checkpoints()] == [1]
    (note,) = notes(run)
    assert note.startswith("The checkpoint of step 2 is damaged (") and "the one before is taken" in note
    assert name in note or (name, how) == ("manifest.json", "one bit")
    save(run, lora, state, Progress(step=2))  # its name is free again
    assert newest_whole_checkpoint(run) == run.checkpoints()[1]


def test_none_whole_means_beginning_anew(run: Run, lora: PeftModel) -> None:
    for step in (1, 2, 3):
        saved = save(run, lora, resumable(lora), Progress(step=step))
        (saved.folder / "manifest.json").unlink()
    assert newest_whole_checkpoint(run) is None and run.checkpoints() == []
    assert all(note.endswith("none is left and the training begins anew.") for note in notes(run))
    assert newest_whole_checkpoint(run) is None and len(notes(run)) == 3


def test_none_whole_does_not_cost_a_finished_lora(run: Run, lora: PeftModel) -> None:
    """Trained from the beginning, the run would take its place."""
    saved = save(run, lora, resumable(lora), Progress(step=1))
    (saved.folder / "manifest.json").unlink()
    lora.save_pretrained(str(run.folder))
    with pytest.raises(UserError, match="no whole checkpoint to continue from"):
        newest_whole_checkpoint(run)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [1]


def test_whole_files_of_another_step_or_another_kind_are_no_checkpoint(run: Run, lora: PeftModel) -> None:
    moved = save(run, lora, resumable(lora), Progress(step=1))
    moved.folder.rename(run.folder / "checkpoint-9")
    assert newest_whole_checkpoint(run) is None
    assert "its state cannot be read" in notes(run)[0]


def test_checkpoint_that_does_not_fit_is_told_in_words(run: Run, lora: PeftModel) -> None:
    saved = save(run, lora, resumable(lora), Progress(step=1))
    other = get_peft_model(make_model(263), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    with pytest.raises(UserError, match="step 1 cannot be gone on from"):
        load_checkpoint(saved, resumable(other))


def test_memory_that_runs_out_while_reading_is_no_damage(
    run: Run, lora: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save(run, lora, resumable(lora), Progress(step=1))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(checkpoints.torch, "load", fail)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        load_checkpoint(saved, resumable(lora))
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        newest_whole_checkpoint(run)
    assert run.checkpoints() == [saved]


def test_state_that_would_run_code_is_refused(run: Run, lora: PeftModel, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    folder = save(run, lora, resumable(lora), Progress(step=1)).folder
    torch.save({"optimizer": Evil()}, folder / "trainer_state.pt")
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(UserError, match="cannot be gone on from"):
        load_checkpoint(run.checkpoints()[0], resumable(lora))
    assert newest_whole_checkpoint(run) is None
    assert not (tmp_path / "ran").exists()


def test_manifest_that_names_files_elsewhere_is_damage(run: Run, lora: PeftModel) -> None:
    folder = save(run, lora, resumable(lora), Progress(step=1)).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../settings.json"] = manifest["files"]["progress.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert why_damaged(folder) == "../settings.json is missing"


# A run that goes on with another learning rate


@pytest.mark.parametrize("scheduler", get_args(Scheduler))
@pytest.mark.parametrize("factor", [0.25, 1.0])
def test_learning_rate_of_the_settings_is_followed(run: Run, lora: PeftModel, scheduler: str, factor: float) -> None:
    def fresh(factor: float) -> Resumable:
        return resumable(lora, scheduler=scheduler, learning_rate=1e-2 * factor, lora_plus_ratio=16)

    state = fresh(1)
    take_steps(lora, state, 3)
    saved = save(run, lora, state, Progress(step=3))
    take_steps(lora, state, 2)
    other = fresh(factor)
    load_checkpoint(saved, other)
    take_steps(lora, other, 2)
    before, after = ([group["lr"] for group in s.optimizer.param_groups] for s in (state, other))
    assert len(set(before)) == 2  # B's is another
    expected = [rate * factor for rate in before]
    assert after == (expected if factor == 1 else pytest.approx(expected, rel=1e-9))


@pytest.mark.parametrize(("keep_last", "kept"), [(0, [1, 2, 3, 10]), (1, [10]), (3, [2, 3, 10]), (9, [1, 2, 3, 10])])
def test_old_checkpoints_are_deleted_by_step(run: Run, keep_last: int, kept: list[int]) -> None:
    for step in (1, 2, 3, 10):
        (run.folder / f"checkpoint-{step}").mkdir()
    delete_old_checkpoints(run, keep_last)
    assert [c.step for c in run.checkpoints()] == kept
    assert not list(run.folder.glob(".checkpoint*"))


def test_best_checkpoint_is_kept_besides_the_last(run: Run) -> None:
    for step in (1, 2, 3, 10):
        (run.folder / f"checkpoint-{step}").mkdir()
    progress = Progress(step=10, evaluations={1: 2.0, 2: 1.0, 5: 0.5, 10: 1.0})  # that of step 5 was never saved
    best = best_checkpoint(run, progress)
    assert best is not None and best.step == 2
    delete_old_checkpoints(run, 1, best)
    assert [c.step for c in run.checkpoints()] == [2, 10]
    assert best_checkpoint(run, Progress(step=10)) is None


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
