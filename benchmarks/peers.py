"""The peers of the speed table: transformers' Trainer with PEFT, and TRL's SFTTrainer, on the very same tokens."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from benchmarks.speed_job import Job, Plan, Request, Step, Talk
from benchmarks.speed_models import TokenCount, keep_weights, load_base, memory_peak, with_lora

PADDED = "Trainer + PEFT, padded"
GROUPED = "Trainer + PEFT, group by length"
CHECKPOINTED = "Trainer + PEFT, gradient checkpointing"
TRL, TRL_PACKED = "TRL SFTTrainer", "TRL SFTTrainer, packed"
PEERS = (PADDED, GROUPED, CHECKPOINTED, TRL, TRL_PACKED)
OWN_ORDER = (GROUPED, TRL_PACKED)  # these put together other batches than the plan's
_IGNORED = -100
_TOKENIZER = Path(__file__).resolve().parent.parent / "models" / "starter"


class Tally:
    """Counts the rows that go through a peer's model in a step."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._computed = TokenCount(model)
        self._rows: list[tuple[int, int]] = []

    def note(self, inputs: dict[str, Any]) -> None:
        """A micro-batch that is about to be computed; padded, or one row of several that begin at position 0."""
        labels = inputs["labels"]
        if "attention_mask" in inputs:
            lengths = inputs["attention_mask"].sum(1).tolist()
            trained = (labels[:, 1:] != _IGNORED).sum(1).tolist()
        else:
            starts = (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()
            ends = [*starts[1:], labels.shape[1]]
            lengths = [end - start for start, end in zip(starts, ends, strict=True)]
            is_trained = (labels[0] != _IGNORED).tolist()
            trained = [sum(is_trained[start + 1 : end]) for start, end in zip(starts, ends, strict=True)]
        self._rows += zip(lengths, trained, strict=True)

    def step(self, seconds: float) -> Step:
        """The step that all since the last one make."""
        rows, self._rows = self._rows, []
        return Step(seconds, self._computed.take(), rows)


class Turns(TrainerCallback):
    """Lets the trainer take as many steps as are asked for, and wait for the next request."""

    def __init__(self, job: Job, talk: Talk, model: Any, tally: Tally) -> None:
        self._job, self._talk, self._model, self._tally = job, talk, model, tally
        self._requests = talk.requests()
        self._wanted, self._began = 0, 0.0
        self._steps: list[Step] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for the first request."""
        self._wait(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note what the step took, and answer when it was the last that was asked for."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._began
        self._steps.append(self._tally.step(seconds))
        if state.global_step == self._job.loss_after:
            keep_weights(self._model, self._job.trained)
        if len(self._steps) == self._wanted:
            self._talk.answer({"steps": [vars(step) for step in self._steps], "peak": memory_peak()})
            self._wait(control)
        self._began = time.perf_counter()

    def _wait(self, control: Any) -> None:
        request: Request | None = next(self._requests, None)
        control.should_training_stop = request is None
        self._wanted, self._steps = (request or {}).get("steps", 0), []
        self._began = time.perf_counter()


def run_peer(job: Job, talk: Talk) -> None:
    """Train as the peer does, in turns."""
    set_seed(job.seed)
    model = with_lora(load_base(job), job)
    plan, tally = Plan.read(job.plan), Tally(model)
    make = _sft_trainer if job.kind in (TRL, TRL_PACKED) else _plain_trainer
    trainer = make(job, plan, model, tally)
    trainer.add_callback(Turns(job, talk, model, tally))
    trainer.train()


def _arguments(job: Job, accumulation: int, steps: int) -> dict[str, Any]:
    """What is the same for all: nothing is evaluated, saved or logged."""
    checkpointed = job.kind == CHECKPOINTED
    strategy = {GROUPED: "group_by_length", TRL_PACKED: "random"}.get(job.kind, "sequential")
    return {
        "output_dir": str(Path(job.folder) / "out"),
        "per_device_train_batch_size": job.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "activation_checkpointing": checkpointed,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if checkpointed else None,
        "train_sampling_strategy": strategy,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": job.precision != "32-bit",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "seed": job.seed,
    }


def _counting(trainer_class: type[Trainer], tally: Tally) -> type[Trainer]:
    class Counting(trainer_class):
        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
            tally.note(inputs)
            return super().compute_loss(model, inputs, *args, **options)

    return Counting


def _plain_trainer(job: Job, plan: Plan, model: Any, tally: Tally) -> Trainer:
    arguments = TrainingArguments(**_arguments(job, job.batch // job.micro_batch, len(plan.steps)))
    return _counting(Trainer, tally)(model=model, args=arguments, train_dataset=plan.examples, data_collator=collate)


def _sft_trainer(job: Job, plan: Plan, model: Any, tally: Tally) -> Trainer:
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from datasets import Dataset

    packed = job.kind == TRL_PACKED
    options: dict[str, Any] = {"max_length": job.cutoff, "packing": packed, "shuffle_dataset": packed}
    accumulation = job.batch // job.micro_batch
    if packed:  # as many packed rows a step as make up its tokens
        tokens = sum(len(example["input_ids"]) for example in plan.examples)
        accumulation = max(1, tokens * job.batch // (len(plan.examples) * job.cutoff * job.micro_batch))
    arguments = SFTConfig(**_arguments(job, accumulation, len(plan.steps)), **options)
    return _counting(SFTTrainer, tally)(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(plan.examples),
        processing_class=AutoTokenizer.from_pretrained(_TOKENIZER),
    )


def collate(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """The usual padding, on the right to the longest row; without a tokenizer's detour."""
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([e[name] + [filler] * (longest - len(e[name])) for e in examples])

    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    return {
        "input_ids": padded("input_ids", 0),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        "labels": padded("labels", _IGNORED),
    }
