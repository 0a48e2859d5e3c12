"""The estimate of a training's memory beside what the training then takes, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.allocator import training_environment

_TOKENS = 256  # ids that the rows are made of
_STEPS = 2  # the second is the first that finds the optimizer's memory there
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Case:
    """A base model, by name, and the settings that differ from the usual ones."""

    base: str
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """In words."""
        changes = [f"{name}={value}" for name, value in self.changes.items() if not isinstance(value, bool)]
        return ", ".join([self.base, *changes, *(name for name, value in self.changes.items() if value is True)])


CASES = (
    Case("llama-25m-4k", {"micro_batch_size": 4, "cutoff_length": 512}),
    Case("llama-25m-32k", {"micro_batch_size": 4, "cutoff_length": 512}),
    Case("llama-130m-32k", {"micro_batch_size": 1, "cutoff_length": 512}),
    Case("llama-130m-32k", {"micro_batch_size": 8, "cutoff_length": 128}),
    Case("llama-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512}),
    Case("llama-130m-32k", {"micro_batch_size": 2, "cutoff_length": 1024}),
    Case("llama-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512, "gradient_checkpointing": "always"}),
    Case("llama-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512, "precision": "16-bit"}),
    Case("llama-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512, "precision": "8-bit"}),
    Case("llama-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512, "precision": "4-bit"}),
    Case(
        "llama-130m-32k",
        {"micro_batch_size": 4, "cutoff_length": 512, "precision": "4-bit", "gradient_checkpointing": "always"},
    ),
    Case("llama-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512, "dora": True}),
    Case("llama-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512, "method": "IA3"}),
    Case("llama-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512, "method": "prefix tuning"}),
    Case("llama-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512, "method": "VeRA", "lora_rank": 256}),
    Case("llama-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512, "lora_rank": 256}),
    Case("llama-130m-32k", {"micro_batch_size": 1, "cutoff_length": 128, "method": "full fine-tuning"}),
    Case("llama-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512, "method": "full fine-tuning"}),
    Case(
        "llama-130m-32k",
        {"micro_batch_size": 1, "cutoff_length": 128, "method": "full fine-tuning", "optimizer": "adamw_8bit"},
    ),
    Case(
        "llama-130m-32k",
        {"micro_batch_size": 1, "cutoff_length": 128, "method": "full fine-tuning", "optimizer": "sgd"},
    ),
    Case(
        "llama-130m-32k",
        {"micro_batch_size": 4, "cutoff_length": 512, "method": "full fine-tuning", "precision": "16-bit"},
    ),
    Case("llama-350m-32k", {"micro_batch_size": 1, "cutoff_length": 128}),
    Case("llama-350m-32k", {"micro_batch_size": 1, "cutoff_length": 512, "precision": "4-bit"}),
    Case("qwen-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512}),
    Case("gemma-130m-32k", {"micro_batch_size": 4, "cutoff_length": 512}),
    Case("gpt2-124m", {"micro_batch_size": 4, "cutoff_length": 512}),
    Case("gpt2-124m", {"micro_batch_size": 4, "cutoff_length": 512, "precision": "4-bit"}),
)


def main() -> None:
    """Print the table, or measure one case where one is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_estimate", description=__doc__)
    parser.add_argument("--only", default="", help="only cases with this in their description")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(Case(**json.loads(arguments.case)), arguments.root)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'estimate':>9} {'measured':>9} {'ratio':>6}  parameters  case (sizes in MiB)")
        for case, row in compare((c for c in CASES if arguments.only in c.label), Path(folder)):
            ratio = row["estimate"] / row["measured"]
            exact = "exact" if row["trainable"] == row["estimated_trainable"] else "DIFFER"
            print(
                f"{row['estimate'] / _MEBIBYTE:>9,.0f} {row['measured'] / _MEBIBYTE:>9,.0f} {ratio:>6.2f}"
                f"  {exact:<10}  {case.label}",
                flush=True,
            )


def compare(cases: Iterator[Case], root: Path) -> Iterator[tuple[Case, dict[str, int]]]:
    """Each case with its estimate and its measurement, in bytes."""
    for case in cases:
        source = make_base(case.base, root)
        given = ["--case", json.dumps(asdict(case)), "--root", str(root)]
        command = [sys.executable, "-m", "benchmarks.memory_estimate", *given]
        result = subprocess.run(command, env=training_environment(), capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{case.label}: {result.stderr[-2000:]}")
        measured = json.loads(result.stdout.splitlines()[-1])
        yield case, measured | _estimate(case, source)


def _estimate(case: Case, source: Path) -> dict[str, int]:
    from training.estimate import estimate

    found = estimate(settings_of(case), str(source))
    return {"estimate": found.memory.total, "estimated_trainable": found.trainable, **vars(found.memory)}


def settings_of(case: Case) -> Any:
    """The settings of a case; its steps have two micro-batches each, as most trainings have."""
    from training.parsing import parse

    micro = case.changes.get("micro_batch_size", 1)
    usual = {"precision": "32-bit", "batch_size": 2 * micro, "held_out_share": 0, "epochs": _STEPS, "save_every": 0}
    return parse({"base_model": case.base, "name": "memory", "dataset": ["none.json"], **usual, **case.changes})


def make_base(name: str, root: Path) -> Path:
    """A model of random weights, stored in 16 bits as most are."""
    folder = root / "models" / name
    if not folder.is_dir():
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config_of(name)).to(torch.bfloat16)
        model.save_pretrained(str(folder))
    return folder


def config_of(name: str) -> Any:
    """The shape that a name such as llama-130m-32k stands for."""
    from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen3Config

    family, size, *_ = name.split("-")
    if family == "gpt2":
        return GPT2Config()
    width, layers = {"25m": (448, 8), "130m": (768, 12), "350m": (1024, 24)}[size]
    common = {
        "vocab_size": 32_000 if name.endswith("-32k") else 4_000,
        "hidden_size": width,
        "intermediate_size": width * 3,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": 4 if width % 256 == 0 else width // 64,
        "head_dim": 64,
        "max_position_embeddings": 2048,
    }
    configs = {"llama": LlamaConfig, "qwen": Qwen3Config, "gemma": Gemma3TextConfig}
    return configs[family](**common, tie_word_embeddings=family != "llama")


def measure(case: Case, root: Path) -> dict[str, int]:
    """Train a few steps as a run does and return the most memory that this process took, in bytes."""
    import torch

    from training import model as models
    from training.methods import attach, parameter_counts
    from training.paths import Folders
    from training.run_store import create_run
    from training.trainer import Trainer

    settings = settings_of(case)
    folders = Folders(models=root / "models", loras=Path(tempfile.mkdtemp(dir=root)))
    run = create_run(folders, settings)
    data = _data(case, folders.loras)
    libraries = _now()
    base = models.load_base(str(root / "models" / case.base), settings)
    loading = peak()
    if settings.gradient_checkpointing == "always":
        base.activation_checkpointing_enable()
    trainable = attach(base, settings)
    loaded = _now()
    began = time.perf_counter()
    Trainer(run, settings, trainable, data, 0).train()
    seconds = time.perf_counter() - began
    if torch.cuda.is_available():  # the context is memory too, and torch does not count it
        free, total = torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()
        return {"measured": torch.cuda.max_memory_allocated() + context, "trainable": parameter_counts(trainable)[0]}
    return {
        "measured": peak(),
        "libraries_before": libraries,
        "peak_of_loading": loading,
        "loaded": loaded,
        "milliseconds": int(seconds * 1000),
        "trainable": parameter_counts(trainable)[0],
    }


def _data(case: Case, folder: Path) -> Any:
    """Rows that fill the cutoff, every second one a token shorter, so that micro-batches are padded as most are."""
    import numpy as np

    from training.data import PreparedData
    from training.prepared import Examples, Record, Records, RecordWriter

    settings = settings_of(case)
    path = folder / "records.arrow"
    with RecordWriter(path) as writer:
        for row in range(settings.batch_size):
            length = settings.cutoff_length - row % 2
            ids = [1 + (row + n) % _TOKENS for n in range(length)]  # 0 pads: its embedding may be nought
            writer.add(Record(file=0, row=row + 1, input_ids=ids, trained=[(0, length)], kept=length))
    records = Records.open(path)
    numbers = np.arange(settings.batch_size)
    return PreparedData(records, Examples(records, numbers), Examples(records, numbers[:0]), [])


def peak() -> int:
    """The most resident memory of this process so far, in bytes."""
    # Not ru_maxrss where there is another way: on Linux it begins with what the parent held.
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _now() -> int:
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)


if __name__ == "__main__":
    main()
