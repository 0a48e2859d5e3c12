"""The numbers before Start: what is trained, how large it gets and whether it fits, from the model's config alone."""

from __future__ import annotations

import functools
import math
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from training.device_rules import Device
from training.hardware import Hardware, this_hardware
from training.loss import ExampleLoss
from training.memory_model import (
    BITS,
    base_bytes,
    optimizer_bytes,
    packed_weights,
    saved_bytes,
    step_bytes,
    trained_tensors,
)
from training.memory_trace import ELSEWHERE, Micro, loss_on, step_peak
from training.methods import CHANGES_BASE, TrainableModel, attach, parameter_counts, patterns
from training.model import load_tokenizer
from training.model_facts import CONFIG, facts_of
from training.modules import layer_count
from training.offload import offload_activations
from training.optimization import implementation, warmup_steps
from training.schedule import Schedule
from training.settings import ALWAYS, FULL, Group, Settings
from training.settings_info import describe
from training.skeleton import skeleton

GB = 10**9
LIBRARIES_ON_GPU = GB // 2  # CUDA's own context and the kernels that are loaded into it
_LIBRARIES_ON_CPU = 0.55 * GB  # the training process before it loads a model
_GROUPS = (Group.MODEL, Group.METHOD, Group.TARGETS)
_MORE_SETTINGS = ("gradient_checkpointing", "offload_activations", "optimizer", "label_smoothing")
# These families go through a text token by token in Python: a short text tells what a long one takes.
_TOKEN_BY_TOKEN = ("mamba", "falcon_mamba")
_SHORT_TEXTS = (32, 64)  # tokens
_LOCK = threading.Lock()  # a model that is counted is patched meanwhile


@dataclass(frozen=True)
class Memory:
    """Bytes at the fullest moment of a training, by what takes them."""

    base: int
    trained: int  # the adapter, its gradients and what the optimizer keeps
    activations: int  # what a forward keeps for its backward, logits among it, and what loading takes beyond the model
    libraries: int
    files: int  # of the base model on the disk, which a processor's memory still maps after packing them

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.trained + self.activations + self.libraries + self.files


@dataclass(frozen=True)
class Steps:
    """Optimizer steps in all, and those of the warm-up."""

    total: int
    warmup: int


@dataclass(frozen=True)
class Estimate:
    """What a training will take. Sizes are in bytes."""

    trainable: int  # parameters
    parameters: int  # all of them, as PEFT counts
    saved: int  # the adapter on the disk, or the whole model after full fine-tuning
    checkpoint: int  # one on the disk, with what it takes to go on from it
    base_by_bits: dict[int, int]
    bits: int  # in which the base model is kept here: 32 where the processor computes no less
    memory: Memory
    hardware: Hardware
    tokens: int  # of the longest example that was reckoned with
    steps: Steps | None  # None where the number of examples is not known

    @property
    def trainable_share(self) -> float:
        """Of all parameters."""
        return self.trainable / self.parameters


def estimate(
    settings: Settings,
    source: str,
    examples: int | None = None,
    longest: int | None = None,
    *,
    earlier: Path | None = None,
) -> Estimate:
    """The numbers for a training on the base model in the folder `source`; raises UserError when the method misfits.

    `examples` to train on and the `longest` of them in tokens are taken from a check of the data where there was one;
    else the micro-batch is reckoned with at the cutoff length. `earlier` is the adapter that is trained further. Every
    token is taken for trained: where only answers are, the logits' share of the memory is smaller. Gradient
    checkpointing is reckoned with where the settings say always.
    """
    hardware = this_hardware()
    tokens = min(settings.cutoff_length, longest or settings.cutoff_length)
    micro = Micro(
        examples=min(settings.micro_batch_size, examples or settings.micro_batch_size),
        tokens=tokens,
        accumulates=settings.batch_size > settings.micro_batch_size,
    )
    key = settings.model_dump_json(include=_settings_that_matter())
    with _LOCK:
        plan = _plan(source, (Path(source) / CONFIG).stat().st_mtime_ns, key, hardware, earlier)
        activations = _activations(plan, micro)
    total = Schedule(examples, settings.batch_size, settings.epochs, settings.seed).total_steps if examples else None
    return Estimate(
        trainable=plan.trainable,
        parameters=plan.parameters,
        saved=plan.saved,
        checkpoint=plan.checkpoint,
        base_by_bits=plan.base_by_bits,
        bits=plan.bits,
        memory=_memory(plan, activations),
        hardware=hardware,
        tokens=tokens,
        steps=Steps(total, warmup_steps(settings, total)) if total else None,
    )


@dataclass
class _Plan:
    """A model with what is trained on it, on the meta device, and what is known of it whatever the micro-batch is."""

    model: TrainableModel
    loss: ExampleLoss
    device: Device
    layers: list[nn.Module]
    model_type: str
    trainable: int
    parameters: int
    saved: int
    checkpoint: int
    base_by_bits: dict[int, int]
    bits: int
    base: int
    trained: int  # the weights
    gradients: int
    optimizer: int
    step: int
    loading: int
    files: int


@functools.lru_cache(maxsize=1)
def _settings_that_matter() -> set[str]:
    return {info.name for info in describe() if info.group in _GROUPS} | {*_MORE_SETTINGS}


@functools.lru_cache(maxsize=4)
def _plan(source: str, _changed: int, settings_json: str, hardware: Hardware, earlier: Path | None) -> _Plan:
    settings = Settings.model_validate_json(settings_json)
    base = skeleton(source, trust_remote_code=settings.trust_remote_code)
    if settings.new_tokens:
        _fit_embeddings(base, source, settings)
    bits = _bits(base, settings)
    by_bits = {n: base_bytes(base, n, double=settings.double_quantization) for n in BITS}
    compute = torch.float32 if settings.precision == "32-bit" else hardware.compute
    packed = packed_weights(base, bits)
    for parameter in base.parameters():  # and not the buffers, which stay as they are
        parameter.data = parameter.data.to(torch.float32 if settings.method == FULL else compute)
    base_size = _stored(base, bits, packed, settings)
    file_size, as_stored = _files(source, next(base.parameters()).dtype)
    kept_as_stored = sum(p.nbytes for p in base.parameters()) - sum(weight.nbytes for weight in packed)
    layers = _layers(base)
    if settings.gradient_checkpointing == ALWAYS:
        base.activation_checkpointing_enable()
    base.requires_grad_(False)
    model = _continued(base, earlier, settings) if earlier else attach(base, settings)
    if settings.offload_activations and hardware.is_gpu:
        offload_activations(model, ELSEWHERE)
    trainable, parameters = parameter_counts(model)
    tensors = trained_tensors(model)
    weights = sum(t.numel() * t.element_size() for t in tensors)
    optimizer = optimizer_bytes(tensors, settings.optimizer)
    saved = saved_bytes(model, settings)
    kept = weights if settings.method == "LoRA" and settings.initialization in CHANGES_BASE else 0
    device = Device(hardware.is_gpu, compute, {id(weight): bits for weight in packed})
    return _Plan(
        model=model,
        loss=loss_on(model, device, settings.label_smoothing),
        device=device,
        layers=layers,
        model_type=base.config.model_type,
        trainable=trainable,
        parameters=parameters,
        saved=saved,
        checkpoint=saved + optimizer + kept,
        base_by_bits=by_bits,
        bits=bits if packed else 8 * next(base.parameters()).element_size(),
        base=base_size,
        trained=0 if settings.method == FULL else weights,
        gradients=weights,
        optimizer=optimizer,
        step=step_bytes(tensors, implementation(settings.optimizer, compute), is_gpu=hardware.is_gpu),
        loading=0 if hardware.is_gpu or packed or as_stored else file_size,
        files=max(0, file_size - kept_as_stored) if packed and as_stored and not hardware.is_gpu else 0,
    )


def _bits(base: PreTrainedModel, settings: Settings) -> int:
    """In which the base model is loaded: one that was saved packed stays so."""
    stored = base.config.to_dict().get("quantization_config") or {}
    if stored.get("load_in_4bit"):
        return 4
    if stored.get("load_in_8bit"):
        return 8
    return int(settings.precision.removesuffix("-bit"))


def _stored(base: PreTrainedModel, bits: int, packed: list[torch.Tensor], settings: Settings) -> int:
    """The base as it will be here: what is called 16-bit is 32 on a processor that computes no less."""
    if bits in (8, 4):
        plain = sum(p.numel() for p in base.parameters()) - sum(weight.numel() for weight in packed)
        size = int(next(base.parameters()).element_size())
        return base_bytes(base, bits, double=settings.double_quantization) + plain * (size - 2)
    size = int(next(base.parameters()).element_size())
    return base_bytes(base, 8 * size, double=settings.double_quantization)


def _files(source: str, compute: torch.dtype) -> tuple[int, bool]:
    """Bytes of the weights' files, and whether they hold plain weights of the type that is computed in.

    On a processor the files are mapped into memory: until all is copied, or for good where a weight is taken as it is.
    """
    found = facts_of(Path(source))
    size = sum(file.stat().st_size for file in Path(source).glob("*.safetensors"))
    return size, not found.quantization and found.dtype == str(compute).removeprefix("torch.")


def _layers(base: PreTrainedModel) -> list[nn.Module]:
    """The blocks that the model is a stack of; none where it is no plain stack."""
    count = layer_count(base)
    lists = [m for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return list(lists[0]) if len(lists) == 1 else []


def _fit_embeddings(base: PreTrainedModel, source: str, settings: Settings) -> None:
    tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
    tokenizer.add_tokens(settings.new_tokens)
    if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # there are no values to take a mean of


def _continued(base: PreTrainedModel, earlier: Path, settings: Settings) -> TrainableModel:
    """The earlier adapter's own modules and kind, at the rank of the settings, as training.earlier continues it."""
    config = PeftConfig.from_pretrained(str(earlier))
    config.inference_mode = False
    if settings.method == "LoRA":
        config.r, config.lora_alpha = settings.lora_rank, settings.lora_alpha
        config.rank_pattern, config.alpha_pattern = patterns(settings.rank_pattern), patterns(settings.alpha_pattern)
        config.init_lora_weights = True
    return get_peft_model(base, config)


def _activations(plan: _Plan, micro: Micro) -> int:
    """The most that a step holds beside weights and optimizer: gradients are among it."""
    if plan.model_type not in _TOKEN_BY_TOKEN or micro.tokens <= _SHORT_TEXTS[-1]:
        return step_peak(plan.model, plan.loss, plan.layers, micro, plan.device)
    (first, low), (second, high) = (
        (tokens, step_peak(plan.model, plan.loss, plan.layers, replace(micro, tokens=tokens), plan.device))
        for tokens in _SHORT_TEXTS
    )
    return low + math.ceil((high - low) * (micro.tokens - first) / (second - first))


def _memory(plan: _Plan, activations: int) -> Memory:
    """The fullest moment: within a step, at the optimizer's, or while the model is loaded."""
    libraries = int(LIBRARIES_ON_GPU if plan.device.is_gpu else _LIBRARIES_ON_CPU)
    always = plan.base + plan.trained + plan.optimizer
    peak = max(always + activations, always + plan.gradients + plan.step, plan.base + plan.loading)
    trained = plan.trained + plan.optimizer + plan.gradients
    return Memory(plan.base, trained, max(0, peak - plan.base - trained), libraries, plan.files)
