"""What the speed table is made of: the cases, their data as steps, and the model that all rows share."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from benchmarks.peers import CHECKPOINTED, GROUPED, PADDED, TRL, TRL_PACKED
from benchmarks.shapes import ON_GPU, Shape
from benchmarks.speed_job import Job, Plan
from benchmarks.speed_models import save_adapter, save_base
from benchmarks.speed_rows import GRAFT
from training import data
from training.errors import UserError
from training.model import load_tokenizer
from training.parsing import parse
from training.paths import Folders
from training.prepared import Example
from training.schedule import Schedule

_ROWS, _TEXT = Folders.datasets / "car_warranty.json", Folders.datasets / "lighthouse_keeper.txt"
_COPIES = 12  # of the text that ships, which alone fills no batch
_WARM_UP = 1  # step


@dataclass(frozen=True)
class Case:
    """A kind of data; `batch` is smaller where rows are long, so that a step takes no longer.

    `own_best`: the peers that are measured at their own best micro-batch too.
    """

    name: str
    raw_text: bool
    cutoff: int
    batch: int
    own_best: tuple[str, ...] = (PADDED,)


CASES = {
    case.name: case
    for case in (
        Case("answers", False, 512, 32, (PADDED, TRL, TRL_PACKED)),
        Case("text", True, 512, 32),
        Case("long-answers", False, 2048, 32),
        Case("long-text", True, 2048, 8),
    )
}


@dataclass(frozen=True)
class Options:
    """How a table is measured; `data` and `text` are files of the user's in the place of the samples that ship."""

    rounds: int = 3
    steps: int = 1  # a round
    micro_batch: int = 4
    dropout: float = 0.0
    seed: int = 42
    data: Path = _ROWS
    text: Path = _TEXT
    own_best: tuple[str, ...] = (PADDED,)  # the peers that are measured at their own best micro-batch too
    same_allocator: bool = False  # the peers too get memory as Graft's worker does
    apart: bool = False  # one row after the other, not in turns

    @property
    def total_steps(self) -> int:
        """Of a row, the warm-up among them."""
        return _WARM_UP + self.rounds * self.steps


def make_job(shape: Shape, case: Case, options: Options, work: Path) -> Job:
    """Data, model and LoRA in the folder `work`; returns Graft's row in 32 bits, of which all others are made.

    A model for a GPU is left for each row to make there.

    Raises UserError where the data makes no batch, or the micro-batch does not divide it.
    """
    if case.batch % options.micro_batch:
        raise UserError(
            f"A batch of {case.batch} has no whole micro-batches of {options.micro_batch}: take 1, 2, 4 or 8."
        )
    settings: dict[str, Any] = {"cutoff_length": case.cutoff, "held_out_share": 0, "seed": options.seed}
    if case.raw_text:
        settings |= {"raw_text": [str(_text(options.text, work))], "overlap_length": 0, "hard_cut_string": ""}
    else:
        settings |= {"dataset": [str(options.data.resolve())]}
    plan = make_plan(settings, case.batch, options, work)
    plan.write(work / "plan.json")
    save_adapter(shape, Job.rank, options.seed, work / "adapter.safetensors")
    base = ""
    if shape not in ON_GPU:
        base = str(work / "base")
        save_base(shape, Path(base), options.seed)
    return Job(
        kind=GRAFT,
        shape=shape.name,
        precision="32-bit",
        base=base,
        adapter=str(work / "adapter.safetensors"),
        plan=str(work / "plan.json"),
        data=settings,
        folder=str(work / "graft"),
        micro_batch=options.micro_batch,
        batch=case.batch,
        cutoff=case.cutoff,
        dropout=options.dropout,
        seed=options.seed,
        loss_after=min(Job.loss_after, options.total_steps),
    )


def make_plan(settings: dict[str, Any], batch: int, options: Options, work: Path) -> Plan:
    """The steps as Graft would take them; an epoch's last batch is passed over where it is smaller than the others."""
    parsed, folders = parse(settings), Folders(datasets=work, data_anywhere=True)
    tokenizer = load_tokenizer(str(Folders.models / "starter"))
    data.set_template(tokenizer, parsed, folders)
    train = data.prepare(parsed, folders, tokenizer).train
    if len(train) < batch:
        raise UserError(f"The data makes {len(train)} examples and a batch has {batch}: give a larger file.")
    schedule = Schedule(len(train), batch, 1, options.seed)
    whole = (numbers for step in count() if len(numbers := schedule.batch(step)) == batch)
    batches = list(islice(whole, options.total_steps))
    steps = [[_as_fields(train[number]) for number in numbers] for numbers in batches]
    return Plan(batches, steps)


def _as_fields(example: Example) -> dict[str, list[int]]:
    return {"input_ids": example.input_ids, "labels": example.labels}


def _text(path: Path, work: Path) -> Path:
    if path != _TEXT:
        return path.resolve()
    copied = work / "text.txt"
    story = path.read_text(encoding="utf-8")
    copied.write_text("\n".join(f"Chapter {number}\n{story}" for number in range(_COPIES)), encoding="utf-8")
    return copied


def with_precision(job: Job, precision: str) -> Job:
    """The same row in another precision, with a folder of its own."""
    return replace(job, precision=precision, folder=str(Path(job.folder).parent / precision / "graft"))


def peers(job: Job) -> list[Job]:
    """The rows beside Graft's, at its micro-batch; TRL's where it is installed, with flash attention where that is."""
    kinds = [PADDED, GROUPED, CHECKPOINTED]
    if importlib.util.find_spec("trl"):
        kinds += [TRL, TRL_PACKED]
    flash = not job.base and importlib.util.find_spec("flash_attn") is not None
    return [replace(job, kind=kind, flash=flash and kind in (TRL, TRL_PACKED)) for kind in kinds]
