"""The optimizer and the learning-rate schedule, as transformers makes them."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from transformers import Trainer, TrainingArguments, get_scheduler

from training.errors import UserError
from training.methods import TrainableModel
from training.model import compute_dtype
from training.settings import FOLLOW_EVALUATION, Settings

FUSED = "adamw_torch_fused"
# What these schedules need besides the number of steps; the share of the highest rate that is left at the end.
_FINAL_RATE_SHARE = 0.1
_GREEDY_RANGE = 10.0  # times the learning rate, up and down
_RESTART_CYCLES = 3  # one alone would be the plain cosine
_WARMUP_STABLE_DECAY_SHARE = 0.2  # of all steps are spent on the decay


def implementation(optimizer: str, compute: torch.dtype) -> str:
    """The library's name of what runs: torch's AdamW in one kernel for all that a step does, with the same result.

    Not in float16: there a step is left out now and then, and the kernel does so without a word.
    """
    if optimizer not in ("adamw_torch", FUSED):
        return optimizer
    return "adamw_torch" if compute == torch.float16 else FUSED


def make_optimizer(model: TrainableModel, settings: Settings) -> torch.optim.Optimizer:
    """The chosen optimizer over the trainable parameters; raises UserError when this computer cannot run it."""
    if settings.optimizer.startswith("paged") and not torch.cuda.is_available():
        raise UserError(
            f"Optimizer: {settings.optimizer} moves memory between GPU and CPU and there is no GPU: choose adamw_torch."
        )
    with tempfile.TemporaryDirectory() as unused:  # TrainingArguments insists on a folder; nothing is written there
        arguments = TrainingArguments(
            output_dir=unused,
            optim=implementation(settings.optimizer, compute_dtype(settings.precision)),
            learning_rate=settings.learning_rate,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),  # else accelerate would take Apple's GPU, and model.py does not
        )
        try:
            optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        except (ValueError, ImportError) as error:
            raise UserError(
                f"Optimizer: {settings.optimizer} is not available here ({error}): choose adamw_torch."
            ) from error
    # Adafactor's own defaults scale the rate by step and weight; the form's learning rate is meant as it stands.
    if settings.method == "LoRA" and settings.lora_plus_ratio > 1 and isinstance(model, PeftModel):
        rate = options.pop("lr")
        optimizer = create_loraplus_optimizer(
            model,
            optimizer_class,
            lr=rate,
            loraplus_lr_ratio=settings.lora_plus_ratio,
            loraplus_weight_decay=settings.weight_decay,
            loraplus_lr_embedding=rate,  # of embeddings that are trained fully
            **options,
        )
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = optimizer_class(trained, weight_decay=settings.weight_decay, **options)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def make_scheduler(optimizer: torch.optim.Optimizer, settings: Settings, total_steps: int) -> Any:
    """The chosen learning-rate schedule over `total_steps` optimizer steps."""
    warmup = warmup_steps(settings, total_steps)
    specific: dict[str, Any] = {}
    if settings.scheduler in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        specific["min_lr_rate"] = _FINAL_RATE_SHARE
    if settings.scheduler == "warmup_stable_decay":
        specific["num_decay_steps"] = max(1, round(total_steps * _WARMUP_STABLE_DECAY_SHARE))
    if settings.scheduler == "cosine_with_restarts":
        specific["num_cycles"] = _RESTART_CYCLES
    if settings.scheduler == "reduce_lr_on_plateau":
        specific.update(factor=0.5, patience=1)  # its own patience of 10 evaluations outlasts most trainings
    if settings.scheduler == "greedy":
        # Its own bounds, 0.001 and 1, are far above the rates of adapters; its patience is counted in evaluations.
        rate = settings.learning_rate
        specific.update(patience=1, min_lr=rate / _GREEDY_RANGE, max_lr=rate * _GREEDY_RANGE)
    if settings.scheduler == "polynomial":
        specific["lr_end"] = 0.0  # its own is 1e-7, which a very low learning rate is not above
    if settings.scheduler == "inverse_sqrt":
        # Without a warm-up the library would fall so slowly that it looks constant.
        specific["timescale"] = max(warmup, 1)
    return get_scheduler(
        settings.scheduler,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=specific,
    )


def warmup_steps(settings: Settings, total_steps: int) -> int:
    """Steps of warm-up: `warmup` below 1 is a share of all steps, otherwise it is their number; never all of them."""
    if settings.scheduler in ("constant", *FOLLOW_EVALUATION):
        return 0
    steps = settings.warmup * total_steps if settings.warmup < 1 else settings.warmup
    # The first has a rate of 0: a training of one step would learn nothing.
    return min(math.ceil(steps), total_steps - 1)
