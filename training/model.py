"""Loads base models, tokenizers and what was trained of them."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import psutil
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.adapters import check_adapter
from training.chat_templates import check_own_templates
from training.errors import UserError
from training.methods import in_float32, make_ready
from training.model_facts import read_config
from training.modules import NEVER_CALLED
from training.post_mortem import is_out_of_memory
from training.settings import FULL, Precision, Settings

_LOADING_FAILS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, StrictDataclassError)
log = logging.getLogger(__name__)


def device() -> torch.device:
    """The GPU when there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def compute_dtype(precision: Precision) -> torch.dtype:
    """What is computed in: bfloat16 where GPU or processor have it, else float16 on a GPU, float32 on a processor."""
    if precision == "32-bit":
        return torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if _processor_has_bfloat16() else torch.float32


@functools.lru_cache(maxsize=1)
def _processor_has_bfloat16() -> bool:
    """Whether it multiplies such numbers itself, which is several times as fast as in 32 bits."""
    return torch.backends.mkldnn.is_available() and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or of a Hub name; raises UserError when there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("tokenizer", source, error) from error
    check_own_templates(tokenizer, Path(source).name)
    if tokenizer.eos_token is None:
        raise UserError(f"Base model: the tokenizer of '{Path(source).name}' has no end token: choose another model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token does
    return tokenizer


def load_base(source: str, settings: Settings) -> PreTrainedModel:
    """The frozen base model on the device, in the asked precision; raises UserError when it cannot be loaded.

    For full fine-tuning in float32, since what is trained stays in 32 bits.
    """
    dtype = torch.float32 if settings.method == FULL else compute_dtype(settings.precision)
    config = read_config(Path(source), Path(source).name)
    quantization = _quantization(settings, config.get("model_type", ""))
    stored = config.get("quantization_config")
    if stored and quantization and stored.get(f"load_in_{settings.precision.replace('-', '')}") is not True:
        raise UserError(
            f"Load in: '{Path(source).name}' is stored quantized already: choose 16-bit, which takes it as it is."
        )
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            device_map={"": device()},
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=settings.trust_remote_code,
            **quantization,
        )
    except _LOADING_FAILS as error:
        if is_out_of_memory(error):
            raise
        raise _cannot_load("model", source, error) from error
    if report["missing_keys"]:
        # The library would fill them with random numbers and say so in the log only.
        raise UserError(
            f"Base model: '{Path(source).name}' lacks {len(report['missing_keys'])} of its weights, so it is no whole "
            "language model: copy or download it again, or choose another."
        )
    # The library leaves layers of a class of their own as they are, without a word.
    if quantization and not any(isinstance(m, Linear4bit | Linear8bitLt) for m in model.modules()):
        raise UserError(
            f"Load in: the layers of '{Path(source).name}' cannot be loaded in {settings.precision}: choose 16-bit."
        )
    _keep_unpacked(model)
    model.requires_grad_(False)
    return model


def _quantization(settings: Settings, model_type: str) -> dict[str, BitsAndBytesConfig]:
    """How QLoRA loads its base (Dettmers et al., 2023), or LLM.int8().

    Empty for 16-bit: an explicit None would hide that a model was saved quantized, and its weights would be misread.
    """
    if settings.precision == "4-bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=settings.quantization_type.lower(),
            bnb_4bit_use_double_quant=settings.double_quantization,
            bnb_4bit_compute_dtype=compute_dtype(settings.precision),
        )
    elif settings.precision == "8-bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        return {}
    skipped = NEVER_CALLED.get(model_type)
    if skipped:  # the head stays in 16 bits as well, which naming others would end
        config.llm_int8_skip_modules = [*skipped, "lm_head"]
    return {"quantization_config": config}


def _keep_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first evaluation, as it does on newer processors.

    Such weights pass no gradient on, so that all layers but the last would learn wrongly, and PEFT misreads them.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model a row for each of the tokenizer's tokens, where tokens were added."""
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))


def _cannot_load(what: str, source: str, error: Exception) -> UserError:
    log.error("loading the %s of %s failed", what, source, exc_info=error)
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    if not Path(source).is_dir():
        return UserError(
            f"Base model: '{source}' could not be downloaded ({first_line}). Check the name and the network, "
            "or put the model's folder into models/."
        )
    return UserError(f"Base model: the {what} in '{Path(source).name}' could not be loaded ({first_line}).")


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """The adapter in `folder` on the base model; raises UserError when it is missing, damaged or for another base."""
    check_adapter(folder)
    try:
        make_ready(model, PeftConfig.from_pretrained(str(folder)))
        loaded = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, use_safetensors=True)
        if trainable and loaded.active_peft_config.modules_to_save:
            # Made as copies of the base's, they are of its short type: widened first, what was trained comes in whole.
            in_float32(loaded)
            set_peft_model_state_dict(loaded, load_peft_weights(str(folder), device="cpu"))
        return loaded
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(
            f"The adapter in '{folder.name}' is damaged: delete the folder {folder} and use an earlier checkpoint."
        ) from error
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        log.error("loading the adapter %s failed", folder, exc_info=error)
        raise UserError(
            f"The adapter in '{folder.name}' does not fit this base model: choose the base model it was trained on."
        ) from error


def without_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel | None:
    """The base model as it was before the adapter; nothing where the adapter has changed it for good."""
    if not isinstance(model, PeftModel):
        return model
    config = model.active_peft_config
    if config.modules_to_save:  # the embeddings may have grown, and PEFT leaves the trained modules in their places
        return None
    base = model.get_base_model() if config.is_prompt_learning else model.unload()
    assert isinstance(base, PreTrainedModel)
    return base


def memory_in_use() -> int:
    """Bytes: the peak of this process on the GPU, or what it holds in main memory where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
