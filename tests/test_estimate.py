"""The numbers before Start: parameters exact, files and states byte by byte, memory beside a real training."""

from __future__ import annotations

import itertools
import stat
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, PretrainedConfig

from benchmarks.memory_estimate import Case, compare
from tests.architectures import ARCHITECTURES
from tests.tiny import add_base, make_folders, make_settings
from training import estimate as module
from training import hardware
from training.device_rules import Device, DeviceRules
from training.errors import UserError
from training.estimate import Estimate, estimate
from training.hardware import Hardware, this_hardware
from training.lora_function import LoraBranch, lora_outputs
from training.memory_model import optimizer_bytes, step_bytes
from training.memory_trace import Micro, loss_on, step_peak
from training.methods import attach, parameter_counts
from training.model import load_base
from training.optimization import make_optimizer
from training.paths import Folders
from training.settings import ALWAYS
from training.skeleton import skeleton

MIB = 2**20


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Working folders with the tiny model and its tokenizer."""
    made = make_folders(tmp_path_factory.mktemp("estimate"))
    add_base(made)
    return made


def numbers(folders: Folders, examples: int | None = None, longest: int | None = None, **changes: Any) -> Estimate:
    return estimate(make_settings(**changes), str(folders.models / "tiny"), examples, longest)


METHODS: list[dict[str, Any]] = [
    {},
    {"method": "VeRA", "lora_rank": 32},
    {"method": "LoHa"},
    {"method": "LoKr"},
    {"method": "IA3"},
    {"method": "prefix tuning"},
    {"method": "prompt tuning"},
    {"method": "P-tuning"},
    {"dora": True},
    {"precision": "8-bit"},
    {"precision": "4-bit"},
    {"precision": "4-bit", "dora": True},
    {"target_modules": ["q_proj", "v_proj"], "layer_range": "1"},
    {"rank_pattern": "q_proj=9"},
    {"train_fully": ["lm_head"]},
    {"method": "full fine-tuning"},
]


@pytest.mark.parametrize("changes", METHODS, ids=str)
def test_parameters_are_those_of_the_real_model(folders: Folders, changes: dict[str, Any]) -> None:
    """What is counted without weights is what PEFT counts on the loaded model."""
    settings = make_settings(**changes)
    real = attach(load_base(str(folders.models / "tiny"), settings), settings)
    found = numbers(folders, **changes)
    assert (found.trainable, found.parameters) == parameter_counts(real)
    assert found.trainable > 0


def test_new_tokens_are_counted(folders: Folders) -> None:
    """Rows of the embeddings and of the head, both trained whole."""
    before, after = numbers(folders), numbers(folders, new_tokens=[f"<{n}>" for n in range(40)])
    base = skeleton(str(folders.models / "tiny"))
    rows, width = base.get_input_embeddings().weight.shape
    assert after.trainable - before.trainable == 2 * (rows + 40) * width


@pytest.mark.parametrize(
    "changes",
    [{}, {"dora": True}, {"method": "IA3"}, {"method": "prefix tuning"}, {"method": "P-tuning"}, {"method": "VeRA"}],
    ids=str,
)
def test_saved_adapter_is_as_large_as_said(folders: Folders, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Byte by byte, but for the file's own header."""
    settings = make_settings(**changes)
    attach(load_base(str(folders.models / "tiny"), settings), settings).save_pretrained(str(tmp_path))
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        real = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118 - it is no mapping
    assert numbers(folders, **changes).saved == real


@pytest.mark.parametrize(
    ("precision", "double"), [("32-bit", True), ("8-bit", True), ("4-bit", True), ("4-bit", False)]
)
def test_base_is_as_large_as_loaded(folders: Folders, precision: str, double: bool) -> None:
    """Weights as they are stored, with the constants of quantization."""
    settings = make_settings(precision=precision, double_quantization=double)
    real = load_base(str(folders.models / "tiny"), settings)
    size = sum(t.nbytes for t in itertools.chain(real.parameters(), real.buffers()))
    for layer in real.modules():
        if precision == "4-bit" and isinstance(layer, nn.Linear) and layer is not real.get_output_embeddings():
            state = layer.weight.quant_state
            size += state.absmax.nbytes
            if state.nested:
                size += state.state2.absmax.nbytes + state.state2.code.nbytes
        if precision == "8-bit" and isinstance(layer, nn.Linear) and layer is not real.get_output_embeddings():
            size += layer.weight.SCB.nbytes
    found = numbers(folders, precision=precision, double_quantization=double)
    assert found.bits == int(precision.removesuffix("-bit"))
    assert found.memory.base == size


@pytest.mark.parametrize(
    "optimizer",
    "adamw_torch adamw_8bit ademamix ademamix_8bit lion_32bit lion_8bit adafactor rmsprop adagrad sgd".split(),
)
def test_optimizer_keeps_as_much_as_said(optimizer: str) -> None:
    """Of a tensor that is large enough for 8 bits, of a small one and of a vector."""
    model = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in [(96, 64), (8, 64), (64,)]])
    real = make_optimizer(model, make_settings(optimizer=optimizer))
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    real.step()
    shared = {"qmap1", "qmap2", "step"}  # the tables of 8 bits, one for all
    kept = sum(
        value.nbytes
        for state in real.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name not in shared and value.numel() > 1
    )
    assert optimizer_bytes(list(model), optimizer) == kept


def test_fused_step_needs_nothing_besides() -> None:
    assert step_bytes([torch.empty(100, device="meta")], "adamw_torch_fused", is_gpu=True) == 0


def test_step_of_torch_on_a_gpu_works_on_all_tensors_at_once() -> None:
    tensors = [torch.empty(100, device="meta"), torch.empty(50, device="meta")]
    assert step_bytes(tensors, "adamw_torch", is_gpu=True) == 150 * 4
    assert step_bytes(tensors, "adamw_torch", is_gpu=False) < 150 * 4 * 2
    assert step_bytes([], "adamw_torch", is_gpu=True) == 0


_SIZE = {"vocab_size": 100, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 8}
STACKS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZE, intermediate_size=128),
    "gemma": Gemma3TextConfig(**_SIZE, intermediate_size=128, num_key_value_heads=2, head_dim=32),
    "gpt2": GPT2Config(vocab_size=100, n_embd=64, n_head=4, n_layer=8),
}


@pytest.mark.parametrize("micro", [Micro(2, 64, accumulates=True), Micro(2, 64), Micro(1, 4)], ids=str)
@pytest.mark.parametrize("changes", [{}, {"method": "full fine-tuning"}, {"layer_range": "4-7"}], ids=str)
@pytest.mark.parametrize("family", STACKS)
def test_standing_in_for_layers_changes_nothing(family: str, changes: dict[str, Any], micro: Micro) -> None:
    """The peak is that of a model of which every layer was run, but for what a gradient takes on its way."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(STACKS[family])
    model = attach(base, make_settings(**changes))
    layers = module._layers(base)
    assert len(layers) == 8
    device = Device(is_gpu=False, compute=torch.float32)
    loss = loss_on(model, device)
    assert not loss.why_padded
    whole = step_peak(model, loss, [], micro, device)
    assert step_peak(model, loss, layers, micro, device) == pytest.approx(whole, rel=0.005)


@pytest.mark.parametrize("is_gpu", [True, False])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_family_can_be_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, is_gpu: bool
) -> None:
    """In 16 bits and in 4, on a GPU and on a processor; a longer text takes more."""
    device = Hardware("a device", is_gpu, 8 * 2**30, torch.bfloat16)
    monkeypatch.setattr(module, "this_hardware", lambda: device)
    ARCHITECTURES[family].save_pretrained(str(tmp_path))
    for precision in ("16-bit", "4-bit"):
        settings = make_settings(precision=precision, cutoff_length=96)
        short, long = (estimate(settings, str(tmp_path), longest=n) for n in (24, 96))
        assert 0 < short.memory.activations < long.memory.activations
        assert short.memory.base < short.base_by_bits[32]


def test_checkpointing_and_smaller_micro_batches_need_less(folders: Folders) -> None:
    usual = numbers(folders, cutoff_length=512).memory
    assert numbers(folders, cutoff_length=512, gradient_checkpointing=ALWAYS).memory.activations < usual.activations
    assert numbers(folders, cutoff_length=512, micro_batch_size=1).memory.activations < 0.6 * usual.activations
    assert numbers(folders, longest=128, cutoff_length=512).memory.activations < 0.3 * usual.activations


def test_what_is_offloaded_takes_nothing_of_a_gpu(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a processor's memory it would take as much."""
    sizes = {}
    for is_gpu in (True, False):
        device = Hardware("a device", is_gpu, 8 * 2**30, torch.float32)
        monkeypatch.setattr(module, "this_hardware", lambda device=device: device)
        for offloads in (True, False):
            found = numbers(folders, cutoff_length=512, micro_batch_size=4, offload_activations=offloads)
            sizes[is_gpu, offloads] = found.memory.activations
    assert sizes[False, True] == sizes[False, False]
    assert sizes[True, True] < 0.7 * sizes[True, False]


def test_steps_are_told_where_the_examples_are_known(folders: Folders) -> None:
    assert numbers(folders).steps is None
    steps = numbers(folders, examples=10, batch_size=4, epochs=2, warmup=0.5).steps
    assert steps and (steps.total, steps.warmup) == (6, 3)


def test_method_that_does_not_fit_says_so(folders: Folders) -> None:
    with pytest.raises(UserError, match="no layers called c_attn"):
        numbers(folders, target_modules=["c_attn"])


def test_gpu_is_asked_without_torch(tmp_path: Path) -> None:
    """By a program that answers as nvidia-smi does; bfloat16 needs compute capability 8."""
    program = tmp_path / "nvidia-smi"
    for capability, compute in (("8.9", torch.bfloat16), ("7.5", torch.float16)):
        program.write_text(f"#!/bin/sh\necho 'A GPU 4090, 24564, {capability}'\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        assert hardware._gpu(str(program)) == Hardware("A GPU 4090", True, 24564 * MIB, compute)
    program.write_text("#!/bin/sh\necho 'An APU, [N/A], 12.1'\n")
    assert hardware._gpu(str(program)) == Hardware("An APU", True, None, torch.bfloat16)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert hardware._gpu(str(program)).total is None
    assert hardware._gpu(None).total is None


def test_what_is_free_is_told_of_the_device_a_training_would_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert 0 < (hardware.free_memory() or 0) <= psutil.virtual_memory().total
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\n[ "$1" = --query-gpu=memory.free ] && echo 7000\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware.shutil, "which", lambda _: str(program))
    assert hardware.free_memory() == 7000 * MIB
    program.write_text("#!/bin/sh\nsleep 9\n")
    monkeypatch.setattr(hardware, "_PATIENCE", 0.01)
    assert hardware.free_memory() is None
    monkeypatch.setattr(hardware.shutil, "which", lambda _: None)
    assert hardware.free_memory() is None


@pytest.mark.slow
@pytest.mark.skipif(this_hardware().is_gpu, reason="the measurement is of a processor's memory")
@pytest.mark.parametrize(
    "changes", [{"micro_batch_size": 4}, {"micro_batch_size": 4, "gradient_checkpointing": ALWAYS}], ids=str
)
def test_memory_is_within_15_percent_of_a_real_training(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Of a process that trains a model of 25 million parameters two steps long."""
    case = Case("llama-25m-4k", {"cutoff_length": 256, **changes})
    [(_, row)] = compare(iter([case]), tmp_path)
    assert row["trainable"] == row["estimated_trainable"]
    assert row["estimate"] == pytest.approx(row["measured"], rel=0.15)
    assert row["measured"] > 650 * MIB  # or else the libraries were all that was compared


def test_only_weights_keep_their_short_copy() -> None:
    """As autocast has it. A view within an autograd function is a leaf too; its id would soon be another tensor's."""
    x, a, b = (nn.Parameter(torch.empty(shape, device="meta")) for shape in ((1, 8, 4), (2, 4), (6, 2)))
    weight = torch.empty(6, 4, device="meta")
    copies: dict[int, torch.Tensor] = {}
    rules = DeviceRules(Device(is_gpu=False, compute=torch.bfloat16))
    rules.use_cache(copies)
    with rules:
        lora_outputs(x * 1, [LoraBranch(weight, None, a, b, 1.0)], [None], 0.0)
        F.linear(x * 1, a)
    assert set(copies) == {id(a)}
