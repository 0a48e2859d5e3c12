"""The processes behind the speed table: each does one row's job, in turns with the others."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from benchmarks.shapes import SHAPES
from benchmarks.speed_job import Job, Plan, Step, Talk

GRAFT, MATRIX, JUDGE = "Graft", "matrix multiplication", "judge"
_JUDGED = 8  # examples


def serve(path: Path) -> None:
    """Do the job that was written to `path`."""
    from benchmarks.peers import PEERS, run_peer

    job = Job.read(path)
    if job.kind in PEERS:
        run_peer(job, Talk())
    else:
        {GRAFT: _graft, MATRIX: _matrix, JUDGE: _judge}[job.kind](job, Talk())


def _graft(job: Job, talk: Talk) -> None:
    """As the worker trains, but for the saving: its own way to data, model and step."""
    from transformers import set_seed

    from benchmarks.speed_models import TokenCount, keep_weights, make_base, memory_peak, put_weights
    from training import data
    from training.loading import add_method, prepare_base
    from training.model import load_tokenizer
    from training.parsing import parse
    from training.paths import Folders
    from training.runs import Run
    from training.trainer import Trainer

    # Where the plan's data was prepared already, so that several rows may begin at once.
    settings, folders = parse(_settings(job)), Folders(datasets=Path(job.plan).parent, data_anywhere=True)
    set_seed(job.seed)
    tokenizer = load_tokenizer(str(Folders.models / "starter"))
    data.set_template(tokenizer, settings, folders)
    prepared = data.prepare(settings, folders, tokenizer)
    if job.base:
        base = prepare_base(job.base, tokenizer, settings)
    else:
        base = make_base(SHAPES[job.shape], job.precision, "sdpa", job.seed)
    model, _ = add_method(base, settings, None)
    put_weights(model, job.adapter)
    trainer = Trainer(Run(Path(job.folder)), settings, model, prepared, int(tokenizer.pad_token_id))
    plan, done, computed = Plan.read(job.plan), 0, TokenCount(model)
    for request in talk.requests():
        steps = []
        for _ in range(request["steps"]):
            began = time.perf_counter()
            trainer.step_on(plan.numbers[done][: job.batch], job.micro_batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            steps.append(Step(time.perf_counter() - began, computed.take(), plan.rows(done)[: job.batch]))
            done += 1
            if done == job.loss_after:
                keep_weights(model, job.trained)
        talk.answer({"steps": [vars(step) for step in steps], "peak": memory_peak()})


def _settings(job: Job) -> dict[str, object]:
    return {
        **job.data,
        "precision": job.precision,
        "batch_size": job.batch,
        "micro_batch_size": job.micro_batch,
        "epochs": 1000,
        "lora_rank": job.rank,
        "lora_alpha": job.alpha,
        "lora_dropout": job.dropout,
        "learning_rate": job.learning_rate,
        "scheduler": "constant",
        "optimizer": "adamw_torch",
        "seed": job.seed,
    }


def _matrix(job: Job, talk: Talk) -> None:
    """The machine's limit, for as often as it is asked for."""
    from benchmarks.matrix_rate import MatrixRate
    from benchmarks.speed_models import device

    dtype = torch.float32 if job.precision == "32-bit" else torch.bfloat16
    rate = MatrixRate(SHAPES[job.shape], dtype, device())
    for _ in talk.requests():
        talk.answer({"rate": rate.measure()})


@torch.no_grad()
def _judge(job: Job, talk: Talk) -> None:
    """What each LoRA has learnt: the mean loss of the plan's first examples, each alone, by PEFT and nothing else."""
    from benchmarks.speed_models import device, load_base, put_weights, with_lora

    model = with_lora(load_base(job), job).eval()
    examples = Plan.read(job.plan).examples[:_JUDGED]
    for request in talk.requests():
        put_weights(model, request["adapter"])
        total, trained = 0.0, 0
        for example in examples:
            ids, labels = (torch.tensor([example[name]], device=device()) for name in ("input_ids", "labels"))
            with torch.autocast(device().type, torch.bfloat16, enabled=job.precision != "32-bit"):
                logits = model(input_ids=ids).logits
            targets = labels[0, 1:]
            total += torch.nn.functional.cross_entropy(
                logits[0, :-1].float(), targets, reduction="sum", ignore_index=-100
            ).item()
            trained += int((targets != -100).sum())
        talk.answer({"loss": total / trained})
