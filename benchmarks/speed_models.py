"""Base models of random weights and the LoRA that all rows of the speed table begin with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from benchmarks.memory_estimate import peak
from benchmarks.shapes import SHAPES, Shape
from benchmarks.speed_job import Job

_SPREAD = 0.02  # of random weights, as transformers makes them


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def memory_peak() -> int:
    """The most bytes this process had so far: on the GPU where there is one, else in main memory."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak()


def save_base(shape: Shape, folder: Path, seed: int) -> None:
    """A model of random weights in 32 bits."""
    set_seed(seed)
    AutoModelForCausalLM.from_config(shape.config()).save_pretrained(str(folder))


def save_adapter(shape: Shape, rank: int, seed: int, path: Path) -> None:
    """A LoRA on all linear layers as PEFT begins one: B is zero, A is spread as nn.Linear's weights are."""
    draw, weights = torch.Generator().manual_seed(seed), {}
    for layer in range(shape.layers):
        for name, (inside, out) in shape.linears().items():
            stem, bound = f"base_model.model.model.layers.{layer}.{name}", 1 / math.sqrt(inside)
            weights[f"{stem}.lora_A.weight"] = (torch.rand(rank, inside, generator=draw) * 2 - 1) * bound
            weights[f"{stem}.lora_B.weight"] = torch.zeros(out, rank)
    save_file(weights, str(path))


def load_base(job: Job) -> PreTrainedModel:
    """The job's base model on the device, as a peer's user loads it: for 16 bits its weights are in bfloat16."""
    attention = "flash_attention_2" if job.flash else "sdpa"
    if job.base:
        dtype = torch.float32 if job.precision == "32-bit" else torch.bfloat16
        return AutoModelForCausalLM.from_pretrained(job.base, dtype=dtype, attn_implementation=attention)
    return make_base(SHAPES[job.shape], job.precision, attention, job.seed)


def make_base(shape: Shape, precision: str, attention: str, seed: int) -> PreTrainedModel:
    """A frozen model of random bfloat16 weights, made on the device; the same for a seed on the same kind of device.

    In 4-bit its linear layers hold what NF4 with double quantization, as QLoRA has it, makes of such weights.
    """
    set_seed(seed)
    where = device()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config(attention), dtype=torch.bfloat16)
    if precision == "4-bit":
        _replace_linears(model)
    for name, parameter in list(model.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        _fill(model.get_submodule(owner), attribute, parameter, where)
    rotary = model.model.rotary_emb  # its buffers come of the config, and meta has no numbers
    model.model.rotary_emb = type(rotary)(model.config).to(where)
    model.tie_weights()
    if precision == "4-bit":
        model.is_loaded_in_4bit, model.is_quantized = True, True
    return model.requires_grad_(False)


def _replace_linears(model: PreTrainedModel) -> None:
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
            owner, _, attribute = name.rpartition(".")
            with torch.device("meta"):
                linear = Linear4bit(
                    module.in_features,
                    module.out_features,
                    bias=False,
                    compute_dtype=torch.bfloat16,
                    compress_statistics=True,
                    quant_type="nf4",
                )
            setattr(model.get_submodule(owner), attribute, linear)
    model.config.quantization_config = config
    model.hf_quantizer = AutoHfQuantizer.from_config(config)  # TRL and transformers ask it whether training works
    model.quantization_method = config.quant_method


def _fill(owner: nn.Module, attribute: str, parameter: nn.Parameter, where: torch.device) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    if parameter.dim() == 1:
        weight = torch.ones(parameter.shape, dtype=torch.bfloat16, device=where)
    else:
        weight = torch.empty(parameter.shape, dtype=torch.bfloat16, device=where).normal_(std=_SPREAD)
    if isinstance(owner, Linear4bit):
        four = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=owner)
        owner.weight = four.to(where)
    else:
        setattr(owner, attribute, nn.Parameter(weight, requires_grad=False))


class TokenCount:
    """Counts the tokens that are embedded, padding among them, whatever lays them into batches."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._count = 0
        model.get_input_embeddings().register_forward_pre_hook(self._note)

    def _note(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._count += inputs[0].numel()

    def take(self) -> int:
        """How many since the last time."""
        taken, self._count = self._count, 0
        return taken


def with_lora(model: PreTrainedModel, job: Job) -> PeftModel:
    """The model with the job's LoRA, as a user of PEFT makes it."""
    config = LoraConfig(
        r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=job.dropout,
        target_modules=[name.rpartition(".")[2] for name in SHAPES[job.shape].linears()],
        task_type="CAUSAL_LM",
    )
    trainable = get_peft_model(model, config)
    put_weights(trainable, job.adapter)
    return trainable


def put_weights(model: PeftModel, path: str) -> None:
    """Give the LoRA the weights of the file; they must fit, all of them."""
    weights = load_file(path)
    set_peft_model_state_dict(model, weights)
    there = get_peft_model_state_dict(model)
    if there.keys() != weights.keys() or not all(torch.equal(there[n].cpu(), weights[n]) for n in weights):
        raise ValueError(f"the LoRA in {path} is not the one on the model")


def keep_weights(model: PeftModel, path: Path) -> None:
    """Write the LoRA's weights in 32 bits."""
    weights: dict[str, Any] = get_peft_model_state_dict(model)
    save_file({name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}, str(path))
