"""The receipt: exactly what ran, so that a training can be understood and repeated."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from transformers import PreTrainedTokenizerBase

from training import processes
from training.data import PreparedData
from training.methods import parameter_counts
from training.model import compute_dtype
from training.optimization import warmup_steps
from training.paths import write_atomically
from training.progress import EARLY, LOW_LOSS
from training.room import write_when_it_fits
from training.runs import Run
from training.settings import Settings
from training.trainer import Trainer

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "gradio")
_DECIDE_THE_END = {"epochs", "patience", "stop_at_loss"}


class Receipt(BaseModel):
    """What really ran. Counts are of the examples that were trained, after all that was dropped."""

    settings: dict[str, Any]
    data: list[dict[str, Any]]  # each file: sha256, format, rows read, rows dropped or cut with their reasons
    train_examples: int
    evaluation_examples: int
    tokens_per_epoch: int
    trained_tokens_per_epoch: int  # those that count in the loss
    steps_per_epoch: int
    total_steps: int
    continued_from_step: int | None = None  # the checkpoint that this part of the training began with
    warmup_steps: int
    gradient_accumulation: int  # micro-batches in a full batch, of all processes; fewer with short examples
    processes: int = 1  # one a GPU
    trainable_parameters: int
    all_parameters: int
    compute_precision: str
    attention: str
    gradient_checkpointing: bool = False
    gradient_checkpointing_because: str = ""
    padded_because: str = ""  # why examples were padded; nothing where they shared rows without padding
    base_model_hash: str | None  # the Hub's commit, for a downloaded model
    chat_template: str
    end_token: str
    device: str
    python: str
    packages: dict[str, str]
    further: bool = False  # this part goes on from where an earlier one had ended before its last step
    ended_by: str = ""  # nothing while it trains, and where it was ended before its time
    result_step: int | None = None  # whose weights are the result
    result_evaluation_loss: float | None = None

    def is_of_other_data(self, prepared: PreparedData) -> bool:
        """Whether the files differ from those of this receipt."""
        return [source["sha256"] for source in self.data] != [source.sha256 for source in prepared.all_sources]

    def had_ended_early(self, settings: Settings) -> bool:
        """Whether that training ended before its last step and is asked to go on now with other settings."""
        now = settings.model_dump(mode="json", include=_DECIDE_THE_END)
        changed = any(self.settings.get(name) != value for name, value in now.items())
        return changed and self.ended_by.startswith((EARLY, LOW_LOSS))


def last_receipt(run: Run) -> Receipt | None:
    """The receipt of the part of the training before this one, if there is one."""
    try:
        return Receipt.model_validate_json(run.receipt_file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError, UnicodeDecodeError):
        return None  # nothing is known about the beginning


def write_receipt(run: Run, receipt: Receipt) -> None:
    """Replace the run's receipt; while the disk is full it waits for room."""
    write_when_it_fits(run, 0, lambda: write_atomically(run.receipt_file, receipt.model_dump_json(indent=2)))


def make_receipt(
    settings: Settings, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, prepared: PreparedData
) -> Receipt:
    """The receipt of a training that is about to start."""
    model, schedule = trainer.model, trainer.schedule
    trainable, total = parameter_counts(model)
    config = model.config
    return Receipt(
        settings=settings.model_dump(mode="json"),
        data=[asdict(source) for source in prepared.all_sources],
        train_examples=len(prepared.train),
        evaluation_examples=len(prepared.evaluation),
        tokens_per_epoch=sum(prepared.train.lengths),
        trained_tokens_per_epoch=sum(prepared.train.trained_tokens),
        steps_per_epoch=schedule.steps_per_epoch,
        total_steps=schedule.total_steps,
        warmup_steps=warmup_steps(settings, schedule.total_steps),
        gradient_accumulation=-(-min(settings.batch_size, len(prepared.train)) // settings.micro_batch_size),
        processes=processes.count(),
        trainable_parameters=trainable,
        all_parameters=total,
        compute_precision=str(compute_dtype(settings.precision)).removeprefix("torch."),
        attention=str(config._attn_implementation),
        padded_because=trainer.why_padded,
        base_model_hash=vars(config).get("_commit_hash"),
        chat_template=str(tokenizer.chat_template),
        end_token=str(tokenizer.eos_token),
        device=torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        python=sys.version.split()[0],
        packages={name: version(name) for name in _PACKAGES},
    )
