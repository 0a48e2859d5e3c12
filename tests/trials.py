"""Trains tiny models by the same way as the worker does, keeping what they were before, and loads them elsewhere."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils import extract_model_from_parallel
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import IA3Config, PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from tests.plain_load import logits_of
from tests.tiny import add_dataset, make_folders, make_settings, make_tokenizer
from training import model as models
from training import pipeline
from training.events import Step
from training.methods import TrainableModel
from training.modules import NEVER_CALLED
from training.paths import PROJECT, Folders
from training.run_state import Status
from training.run_store import create_run
from training.runs import EventReader, Run
from training.settings import Settings
from training.trainer import Trainer

IDS = list(range(40, 52))  # a text to compare logits of
ANSWERS = ["the ant", "the hen!", "an eel", "Yes"]


def working_folders(root: Path) -> Folders:
    """Folders with a dataset of four short rows: one batch."""
    folders = make_folders(root)
    add_dataset(folders, [{"question": f"Q{n}", "answer": answer} for n, answer in enumerate(ANSWERS)])
    return folders


def save_base(folders: Folders, name: str, config: PretrainedConfig, seed: int = 0) -> Path:
    """A model of random weights of that config, with the tokenizer of bytes, as a folder in models/."""
    torch.manual_seed(seed)
    folder = folders.models / name
    AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
    make_tokenizer().save_pretrained(str(folder))
    return folder


def settings_for(**changes: Any) -> Settings:
    """Three steps on one batch of four, with nothing random in them."""
    values = {
        "batch_size": 4,
        "micro_batch_size": 4,
        "epochs": 3,
        "held_out_share": 0,
        "evaluate_every": 0,
        "save_every": 0,
        "scheduler": "constant",
        "learning_rate": 1e-2,
        "lora_dropout": 0,
        "virtual_tokens": 4,
        "if_exists": "new version",
    }
    return make_settings(**(values | changes))


def files_of(folder: Path) -> dict[str, str]:
    """The hash of each file in a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


@dataclass
class Trial:
    """A training that has ended, and what it began with."""

    run: Run
    settings: Settings
    base_folder: Path
    model: TrainableModel
    trainer: Trainer = field(repr=False)
    at_start: dict[str, torch.Tensor]  # of what is trained
    base_modules: list[tuple[str, nn.Module]] = field(repr=False)
    base_before: dict[str, torch.Tensor] = field(repr=False)

    @property
    def losses(self) -> list[float]:
        return [event.loss for event in EventReader(self.run).read_new() if isinstance(event, Step)]

    def logits(self) -> torch.Tensor:
        """Of the trained model in memory, computed by its own layers in the types it is held in, as anyone's is."""
        self.trainer._loss.undo()
        for module in self.model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.to(module.original_module.weight.dtype)  # as PEFT loads them
        plain = extract_model_from_parallel(self.model, keep_fp32_wrapper=False)  # without the training's autocast
        assert isinstance(plain, nn.Module)
        return logits_of(plain, IDS)

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def base_after(self) -> dict[str, torch.Tensor]:
        return _content(self.base_modules)

    def plain_case(self) -> dict[str, Any]:
        """How to load it without Graft."""
        adapter = isinstance(self.model, PeftModel)
        dtype = models.compute_dtype(self.settings.precision) if adapter else torch.float32
        quantization: dict[str, Any] = {}
        if self.settings.precision == "8-bit":
            quantization = {"load_in_8bit": True}
        elif self.settings.precision == "4-bit":
            quantization = {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": self.settings.quantization_type.lower(),
                "bnb_4bit_use_double_quant": self.settings.double_quantization,
                "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
            }
        if quantization and (kept := NEVER_CALLED.get(self.model.config.model_type)):
            quantization["llm_int8_skip_modules"] = [*kept, "lm_head"]
        return {
            "base": str(self.base_folder if adapter else self.run.folder),
            "adapter": str(self.run.folder) if adapter else "",
            "dtype": str(dtype).removeprefix("torch."),
            "quantization": quantization,
            "widened": bool(quantization) and adapter and isinstance(self.model.peft_config["default"], IA3Config),
            "ids": IDS,
        }


def train(folders: Folders, settings: Settings, run: Run | None = None) -> Trial:
    """Train as the worker does; raises what that raises."""
    found: dict[str, Any] = {}
    load_base, trainer = models.load_base, pipeline.Trainer

    def loading(source: str, *rest: Any, **options: Any) -> Any:
        base = load_base(source, *rest, **options)
        found["modules"] = [(name, module) for name, module in base.named_modules()]
        found["before"] = _content(found["modules"])
        return base

    def training(run: Run, settings: Settings, model: TrainableModel, *rest: Any) -> Any:
        found["at_start"] = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        found["model"] = model
        found["trainer"] = trainer(run, settings, model, *rest)
        return found["trainer"]

    run = run or create_run(folders, settings)
    run.set_state(Status.TRAINING)
    with (
        patch.object(models, "load_base", loading),
        patch.object(pipeline, "Trainer", training),
    ):
        assert pipeline.train_run(run, folders)
    run.set_state(Status.DONE)
    source = folders.models / run.settings().base_model
    return Trial(
        run,
        settings,
        source,
        found["model"],
        found["trainer"],
        found["at_start"],
        found["modules"],
        found["before"],
    )


class PlainProcess:
    """A process of its own that loads what was saved."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.plain_load"],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def logits(self, case: dict[str, Any]) -> torch.Tensor:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return torch.tensor(answer["logits"])

    def end(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)


@contextmanager
def plain_process() -> Iterator[PlainProcess]:
    """The process, ended behind it."""
    process = PlainProcess()
    try:
        yield process
    finally:
        process.end()


def _content(modules: list[tuple[str, nn.Module]]) -> dict[str, torch.Tensor]:
    """All that the modules hold themselves, the constants of quantized weights too; copies."""
    found: dict[str, torch.Tensor] = {}
    for name, module in modules:
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        found |= {f"{name}.{last}": tensor.detach().clone() for last, tensor in own}
        if isinstance(module, Linear8bitLt):
            scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
            found[f"{name}.scales"] = scales.clone()
        elif isinstance(module, Linear4bit):
            packed = module.weight.quant_state.as_dict(packed=True)
            found |= {f"{name}.{key}": tensor.clone() for key, tensor in packed.items()}
    return found
