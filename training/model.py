"""Loads a base model and its tokenizer, and attaches a LoRA to it."""

from __future__ import annotations

import logging
from pathlib import Path

import psutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.errors import UserError
from training.runs import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from training.settings import ALL_LINEAR, Settings

log = logging.getLogger(__name__)


def device() -> torch.device:
    """The GPU when there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def compute_dtype() -> torch.dtype:
    """bfloat16 where the GPU has it, float16 on older GPUs, float32 on the CPU, where the short types are slower."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or of a Hub name; raises UserError when there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("tokenizer", source, error) from error
    if tokenizer.eos_token is None:
        raise UserError(f"Base model: the tokenizer of '{Path(source).name}' has no end token: choose another model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token does
    return tokenizer


def load_base(source: str, precision: str) -> PreTrainedModel:
    """The frozen base model on the device, in 16, 8 or 4 bits; raises UserError when it cannot be loaded."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=compute_dtype(),
            device_map={"": device()},
            use_safetensors=True,
            output_loading_info=True,
            **_quantization(precision),
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise _cannot_load("model", source, error) from error
    if report["missing_keys"]:
        # The library would fill them with random numbers and say so in the log only.
        raise UserError(
            f"Base model: '{Path(source).name}' lacks {len(report['missing_keys'])} of its weights, so it is no whole "
            "language model: copy or download it again, or choose another."
        )
    model.requires_grad_(False)
    return model


def _quantization(precision: str) -> dict[str, BitsAndBytesConfig]:
    """How QLoRA loads its base: NF4 with double quantization (Dettmers et al., 2023), or LLM.int8().

    Empty for 16-bit: an explicit None would hide that a model was saved quantized, and its weights would be misread.
    """
    if precision == "4-bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype(),
        )
        return {"quantization_config": config}
    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)} if precision == "8-bit" else {}


def _cannot_load(what: str, source: str, error: Exception) -> UserError:
    log.error("loading the %s of %s failed", what, source, exc_info=error)
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    if not Path(source).is_dir():
        return UserError(
            f"Base model: '{source}' could not be downloaded ({first_line}). Check the name and the network, "
            "or put the model's folder into models/."
        )
    return UserError(f"Base model: the {what} in '{Path(source).name}' could not be loaded ({first_line}).")


def attach_lora(model: PreTrainedModel, settings: Settings) -> PeftModel:
    """A new, untrained LoRA on the chosen layers, in float32; raises UserError when the model has none of them."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=ALL_LINEAR if settings.target_modules == [ALL_LINEAR] else list(settings.target_modules),
    )
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"Target modules: this base model has no layers called {', '.join(settings.target_modules)}: "
            "choose all-linear."
        ) from error
    return peft_model


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """The adapter in `folder` on the base model; raises UserError when it is missing, damaged or for another base."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"There is no adapter in '{folder.name}'.")
    if not (folder / ADAPTER_WEIGHTS).is_file():  # else PEFT would look for a pickled one
        raise UserError(
            f"The adapter in '{folder.name}' has no {ADAPTER_WEIGHTS}. "
            "Only these weights are loaded, because other kinds can run code."
        )
    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, use_safetensors=True)
    except SafetensorError as error:
        raise UserError(
            f"The adapter in '{folder.name}' is damaged: delete the folder {folder} and use an earlier checkpoint."
        ) from error
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        log.error("loading the adapter %s failed", folder, exc_info=error)
        raise UserError(
            f"The adapter in '{folder.name}' does not fit this base model: choose the base model it was trained on."
        ) from error


def memory_in_use() -> int:
    """Bytes: the peak of this process on the GPU, or what it holds in main memory where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
