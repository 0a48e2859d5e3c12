"""How fast rows are prepared: Graft beside TRL's SFTTrainer and beside the leanest per-row `Dataset.map`.

All begin with the same .json file, read nothing that was prepared before, write token ids and what is trained of them
to the disk, and train on the answers only.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import datasets
from datasets import Dataset, load_dataset
from training.data import prepare, set_template
from training.parsing import parse
from training.paths import Folders
from training.worker import collect_rarely

_MODEL = Folders.models / "starter"
_TEXT = Folders.datasets / "lighthouse_keeper.txt"
_CUTOFF = 512
_WORDS = {"instruction": 10, "input": 4, "output": 45}  # on average, about those of alpaca's 52,002 rows


def write_rows(path: Path, count: int) -> None:
    """Rows of stretches of a story, as long as alpaca's are."""
    draw, words = random.Random(0), _TEXT.read_text(encoding="utf-8").split()

    def stretch(mean: int) -> str:
        length = round(draw.expovariate(1 / mean))
        start = draw.randrange(len(words) - 400)
        return " ".join(words[start : start + min(length, 400)])

    rows = [{name: f"{stretch(mean)}." for name, mean in _WORDS.items()} for _ in range(count)]
    path.write_text(json.dumps(rows), encoding="utf-8")


def turns(row: dict[str, Any]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The question and the answer of a row as messages."""
    question = "\n".join(filter(None, (row["instruction"], row["input"])))
    return [{"role": "user", "content": question}], [{"role": "assistant", "content": row["output"]}]


def graft(path: Path, work: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """As the worker does it."""
    folders = Folders(datasets=work)
    settings = parse({"dataset": [str(path)], "cutoff_length": _CUTOFF, "held_out_share": 0})
    set_template(tokenizer, settings, folders)
    return len(prepare(settings, folders, tokenizer).train)


def lean_map(path: Path, work: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """The least that a per-row function can do: the prompt and the whole are tokenized, the difference is trained."""

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        question, answer = turns(row)
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(question + answer, return_dict=True)
        whole["labels"] = [-100] * len(prompt) + whole["input_ids"][len(prompt) :]
        return dict(whole)

    rows = _rows(path, work)
    rows = rows.map(encode, remove_columns=rows.column_names)
    return len(rows.filter(lambda batch: [len(ids) <= _CUTOFF for ids in batch["input_ids"]], batched=True))


def trl(path: Path, work: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """As TRL's documentation does it: rows become a prompt and a completion, the trainer does the rest."""
    from trl import SFTConfig, SFTTrainer

    rows = _rows(path, work)
    rows = rows.map(
        lambda row: dict(zip(("prompt", "completion"), turns(row), strict=True)), remove_columns=rows.column_names
    )
    settings = SFTConfig(
        output_dir=str(work / "out"), max_length=_CUTOFF, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True
    )
    return len(SFTTrainer(model=model, train_dataset=rows, processing_class=tokenizer, args=settings).train_dataset)


def _rows(path: Path, work: Path) -> Dataset:
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(work))


def main() -> None:
    """Take turns, and print each peer's time as a multiple of Graft's in the same round."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare_rows", description=__doc__)
    parser.add_argument("--rows", type=int, default=52_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(_MODEL)
    model = AutoModelForCausalLM.from_pretrained(_MODEL)
    ways: dict[str, Callable[[Path, Path], int]] = {
        "Graft": lambda path, work: graft(path, work, tokenizer),
        "per-row map, leanest": lambda path, work: lean_map(path, work, tokenizer),
        "TRL SFTTrainer": lambda path, work: trl(path, work, tokenizer, model),
    }
    collect_rarely()  # as in Graft's worker; it helps the peers as much
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        write_rows(path, arguments.rows)
        for number in range(arguments.rounds):
            seconds = {}
            for name, way in ways.items():
                work = Path(folder) / f"{number}-{name}"
                work.mkdir()
                began = time.perf_counter()
                kept = way(path, work)
                seconds[name] = time.perf_counter() - began
                print(
                    f"round {number + 1}: {name}: {arguments.rows / seconds[name]:,.0f} rows/s, {kept:,} kept",
                    flush=True,
                )
            for name in ways:
                ratios[name].append(seconds[name] / seconds["Graft"])
    for name, values in ratios.items():
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"{name}: {statistics.median(values):.1f} times Graft's time ({spread} in {len(values)} rounds)")


if __name__ == "__main__":
    main()
