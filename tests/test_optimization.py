"""Every optimizer and every schedule that can be chosen, for short and long trainings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from tests.tiny import make_model, make_settings
from training.errors import UserError
from training.optimization import implementation, make_optimizer, make_scheduler, warmup_steps
from training.settings import FOLLOW_EVALUATION, Optimizer, Scheduler

RATE = 3e-4
GPU_ONLY = [name for name in get_args(Optimizer) if name.startswith("paged")]


def rates(total_steps: int, **changes: object) -> list[float]:
    """The learning rate of each step."""
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=float(str(changes.get("learning_rate", RATE))))
    scheduler = make_scheduler(optimizer, make_settings(**changes), total_steps)
    result = []
    for _ in range(total_steps):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if changes.get("scheduler") not in FOLLOW_EVALUATION:
            scheduler.step()
    return result


@pytest.mark.parametrize("name", get_args(Scheduler))
@pytest.mark.parametrize("total_steps", [1, 2, 3, 50])
@pytest.mark.parametrize("warmup", [0, 0.1, 0.999, 1000])
def test_every_schedule_gives_sound_rates(name: str, total_steps: int, warmup: float) -> None:
    found = rates(total_steps, scheduler=name, warmup=warmup)
    assert all(math.isfinite(rate) and 0 <= rate <= RATE * 1.0001 for rate in found)
    # A training of one step must learn something too.
    assert max(found) > 0


@pytest.mark.parametrize("name", sorted(set(get_args(Scheduler)) - {"constant", *FOLLOW_EVALUATION}))
def test_warm_up_rises_to_the_learning_rate(name: str) -> None:
    found = rates(100, scheduler=name, warmup=10)
    assert found[0] < found[5] < found[9] and max(found) == pytest.approx(RATE)


@pytest.mark.parametrize("name", ["cosine", "linear", "polynomial"])
def test_decay_to_nothing(name: str) -> None:
    found = rates(100, scheduler=name, warmup=0)
    assert found == sorted(found, reverse=True)
    assert found[0] == RATE and found[-1] < RATE / 50


def test_cosine_by_hand() -> None:
    found = rates(20, scheduler="cosine", warmup=0)
    assert found == pytest.approx([RATE * 0.5 * (1 + math.cos(math.pi * n / 20)) for n in range(20)])


@pytest.mark.parametrize("name", ["cosine_with_min_lr", "cosine_warmup_with_min_lr"])
def test_decay_to_a_tenth(name: str) -> None:
    assert rates(200, scheduler=name)[-1] == pytest.approx(RATE / 10, rel=0.01)


def test_last_fifth_of_warmup_stable_decay_decays() -> None:
    found = rates(100, scheduler="warmup_stable_decay", warmup=0)
    assert found[79] == RATE and found[85] < RATE and found[-1] < RATE / 50


def test_polynomial_takes_a_very_low_rate() -> None:
    assert rates(10, scheduler="polynomial", warmup=0, learning_rate=1e-8)[0] == 1e-8


@pytest.mark.parametrize(
    ("warmup", "total", "steps"), [(0, 100, 0), (0.1, 100, 10), (0.1, 15, 2), (0.1, 1, 0), (5, 100, 5), (500, 100, 99)]
)
def test_warmup_steps(warmup: float, total: int, steps: int) -> None:
    assert warmup_steps(make_settings(warmup=warmup), total) == steps


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_every_optimizer_makes_a_step_or_says_why_not(name: str) -> None:
    model = make_model(263)
    model.requires_grad_(False)
    trained = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    trained.requires_grad_(True)
    before = trained.detach().clone()
    settings = make_settings(optimizer=name, learning_rate=1e-3)
    if name in GPU_ONLY and not torch.cuda.is_available():
        with pytest.raises(UserError, match="there is no GPU: choose adamw_torch"):
            make_optimizer(model, settings)
        return
    optimizer = make_optimizer(model, settings)
    assert [p for group in optimizer.param_groups for p in group["params"]] == [trained]
    assert optimizer.param_groups[0]["lr"] == 1e-3
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
        optimizer.step()
    moved = (trained - before).abs().max().item()
    assert math.isfinite(moved) and moved > 0


def stepped(fused: bool, weight_decay: float = 0.1) -> list[torch.Tensor]:
    """Weights after five steps on the same gradients."""
    model = torch.nn.ParameterList(
        [torch.nn.Parameter(torch.linspace(-1, 1, n).sin().view(shape)) for n, shape in ((4096, (64, 64)), (7, (7,)))]
    )
    settings = make_settings(optimizer="adamw_torch", learning_rate=1e-2, weight_decay=weight_decay)
    optimizer = make_optimizer(model, settings)  # type: ignore[arg-type]
    assert optimizer.param_groups[0]["fused"] is True
    if not fused:
        optimizer = torch.optim.AdamW(model, lr=1e-2, weight_decay=weight_decay, foreach=False)
    for step in range(5):
        for parameter in model:
            parameter.grad = torch.cos(parameter.detach() * (step + 3))
        optimizer.step()
    return [p.detach() for p in model]


def test_adamw_is_fused_and_the_same() -> None:
    for fused, plain in zip(stepped(True), stepped(False), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(stepped(True), stepped(True), strict=True))


def test_fused_adamw_is_kept_from_float16_whose_skipped_steps_must_be_seen() -> None:
    for name in ("adamw_torch", "adamw_torch_fused"):
        assert implementation(name, torch.float16) == "adamw_torch"
        assert implementation(name, torch.bfloat16) == implementation(name, torch.float32) == "adamw_torch_fused"
    assert implementation("adamw_8bit", torch.float16) == "adamw_8bit"


def test_a_checkpoint_of_the_plain_adamw_is_gone_on_from() -> None:
    """It goes on as it began, so that the rest of the training is bit for bit what it would have been."""
    parameter = torch.nn.Parameter(torch.ones(3))
    model = torch.nn.ParameterList([parameter])
    before = torch.optim.AdamW([parameter], lr=RATE)
    parameter.grad = torch.ones(3)
    before.step()
    after = make_optimizer(model, make_settings(optimizer="adamw_torch"))  # type: ignore[arg-type]
    after.load_state_dict(before.state_dict())
    assert after.param_groups[0]["fused"] is None
    after.step()
    assert after.state[parameter]["step"] == 2


def test_weight_decay_is_handed_on() -> None:
    optimizer = make_optimizer(make_model(263), make_settings(weight_decay=0.25))
    assert optimizer.param_groups[0]["weight_decay"] == 0.25


@pytest.mark.parametrize("name", sorted({o.value for o in OptimizerNames} - set(get_args(Optimizer))))
def test_optimizers_that_are_not_offered_cannot_run_with_what_is_installed(name: str, tmp_path: Path) -> None:
    if name == "adamw_bnb_8bit":
        assert "adamw_8bit" in get_args(Optimizer)  # an earlier name of the same
        return
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=name, report_to="none", use_cpu=True)
    with pytest.raises((ImportError, ValueError)):
        Trainer.get_optimizer_cls_and_kwargs(arguments)


def test_all_schedulers_are_offered() -> None:
    assert {s.value for s in SchedulerType} == set(get_args(Scheduler))


@pytest.mark.parametrize("name", get_args(Scheduler))
def test_every_schedule_moves_weights(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    model = torch.nn.Module()
    model.weight = parameter
    settings = make_settings(scheduler=name, optimizer="adamw_torch", learning_rate=1e-2)
    optimizer = make_optimizer(model, settings)  # type: ignore[arg-type]
    scheduler = make_scheduler(optimizer, settings, 2)
    for _ in range(2):
        parameter.grad = torch.ones(3)
        optimizer.step()
        scheduler.step(*([1.0] if name in FOLLOW_EVALUATION else []))
    assert 1e-3 < (1 - parameter.detach()).abs().max().item() <= 2e-2 * 1.01
