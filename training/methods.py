"""The ways to train: an adapter of each kind that PEFT has, or the whole model."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import (
    EvaConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
    initialize_lora_eva_weights,
    prepare_model_for_kbit_training,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from training.errors import UserError
from training.loftq import make_up_for_quantization
from training.modules import layer_count, module_kinds
from training.settings import ALL_LINEAR, FULL, PROMPT_METHODS, Method, Settings

log = logging.getLogger(__name__)
TrainableModel: TypeAlias = PeftModel | PreTrainedModel
CHANGES_BASE = ("PiSSA", "OLoRA")  # these take what the adapter begins with out of the base's weights
_ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d)
_INITIALIZATIONS = {  # as PEFT calls them
    "default": True,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "PiSSA": "pissa",
    "OLoRA": "olora",
    "LoftQ": True,  # done afterwards: the base is quantized already
    "EVA": "eva",
}


def attach(model: PreTrainedModel, settings: Settings) -> TrainableModel:
    """What the settings train on a frozen base, untrained, its own weights in float32: the base alone learns nothing.

    Works on a skeleton too, for counting. Initializations that need more than the base come with `initialize`.
    Raises UserError when the method does not fit the model.
    """
    if settings.method == FULL:
        if "quantization_config" in model.config.to_dict():
            raise UserError(
                "Method: the weights of this base model are stored quantized, and full fine-tuning needs them whole: "
                "choose LoRA, or the original model."
            )
        trainable: TrainableModel = model.requires_grad_(True)
    else:
        try:
            config = _CONFIGS[settings.method](model, settings)
            make_ready(model, config)
            trainable = get_peft_model(model, config)
            _check_directions(trainable, settings)
            _check_patterns(trainable, settings)
            if config.peft_type == PeftType.LORA and settings.initialization == "orthogonal":
                trainable.peft_config["default"].init_lora_weights = True  # loading it needs no such beginning
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, re.error) as error:
            log.exception("%s does not fit the model", settings.method)
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"Method: {settings.method} does not work on this base model ({first_line[:200]}): choose LoRA."
            ) from error
    in_float32(trainable)
    return trainable


def in_float32(model: TrainableModel) -> None:
    """Keep what is trained in 32 bits, whatever the base is in: a small step would be lost in the short types."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def make_ready(model: PreTrainedModel, config: PeftConfig) -> None:
    """Give a quantized base what PEFT's layers for such weights need; raises UserError where they cannot work."""
    in_4_bit = any(isinstance(module, Linear4bit) for module in model.modules())
    in_8_bit = any(isinstance(module, Linear8bitLt) for module in model.modules())
    if isinstance(config, IA3Config) and (in_4_bit or in_8_bit):
        # These layers hand float32 on, which meets all that is left in the short types.
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if isinstance(config, LoHaConfig | LoKrConfig) and in_4_bit:
        raise UserError("Method: LoHa and LoKr do not work with 4-bit weights: load the model in 8-bit or 16-bit.")
    if isinstance(config, LoraConfig) and config.use_dora and in_8_bit and model.device.type == "cpu":
        # PEFT loses the scales of their weights there.
        raise UserError("DoRA does not work with 8-bit weights on a processor: load the model in 4-bit or 16-bit.")
    if isinstance(config, LoraConfig) and config.init_lora_weights == "orthogonal":
        if in_4_bit or in_8_bit:
            raise UserError("Initialization: orthogonal needs a model that is loaded in 16-bit: load it so.")
        if any(rank % 2 for rank in (config.r, *config.rank_pattern.values())):
            raise UserError("Initialization: orthogonal needs an even rank: raise it by one.")


def _check_directions(model: PeftModel, settings: Settings) -> None:
    """PiSSA and OLoRA begin with directions of the weights: raises UserError where a layer has fewer than the rank."""
    if settings.method != "LoRA" or settings.initialization not in CHANGES_BASE:
        return
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and (most := min(layer.in_features, layer.out_features)) < settings.lora_rank:
            raise UserError(
                f"Initialization: {settings.initialization} has at most {most} directions to begin with in "
                f"{name.rsplit('.', 1)[-1]}, fewer than the rank of {settings.lora_rank}: lower it, or choose other "
                "target modules."
            )


def _check_patterns(model: PeftModel, settings: Settings) -> None:
    """PEFT passes over ranks and alphas of modules without an adapter: raises UserError instead."""
    if settings.method not in ("LoRA", "LoHa", "LoKr"):
        return
    adapted = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name in {**patterns(settings.rank_pattern), **patterns(settings.alpha_pattern)}:
        if not any(re.fullmatch(rf"(.*\.)?({name})", full) for full in adapted):
            raise UserError(f"Ranks and alphas of their own: no layer called {name} gets an adapter: mend the name.")


def initialize(model: PeftModel, settings: Settings, source: str, batches: Iterable[dict[str, torch.Tensor]]) -> None:
    """Give a new LoRA what EVA finds in `batches` of inputs, or LoftQ in the weights in the folder `source`."""
    if settings.initialization == "LoftQ":
        make_up_for_quantization(model, source)
    elif settings.initialization == "EVA":
        initialize_lora_eva_weights(model, list(batches), show_progress_bar=False)


def is_saved_otherwise(settings: Settings) -> bool:
    """Whether the saved adapter is not what was trained: told as a change to the base, or made for use only."""
    changes_base = settings.method == "LoRA" and settings.initialization in CHANGES_BASE
    return changes_base or settings.method in PROMPT_METHODS


def parameter_counts(model: TrainableModel) -> tuple[int, int]:
    """Trainable parameters, and all of them, as PEFT counts: a 4-bit weight holds two in each stored byte."""
    if isinstance(model, PeftModel):
        trainable, total = model.get_nb_trainable_parameters()
        return int(trainable), int(total)
    parameters = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in parameters if trained), sum(n for n, _ in parameters)


def patterns(text: str) -> dict[str, int]:
    """`q_proj=32, v_proj=8` as PEFT takes it."""
    pairs = (pair.split("=") for pair in text.split(",") if pair.strip())
    return {name.strip(): int(value) for name, value in pairs}


def targets(model: PreTrainedModel, settings: Settings) -> list[str] | str:
    """The modules that get an adapter, as PEFT takes them: names, or a regular expression for full names.

    Raises UserError when the model has none of one name.
    """
    if settings.target_pattern:
        if not any(re.fullmatch(settings.target_pattern, name) for name, _ in model.named_modules()):
            raise UserError(
                "Module pattern: it fits no layer of this base model. It must fit a whole name, such as "
                f"{_a_full_name(model)}: begin it with .*"
            )
        return settings.target_pattern
    if settings.target_modules == [ALL_LINEAR]:
        return [kind.name for kind in module_kinds(model)]
    for name in settings.target_modules:
        meant = _called(model, name)
        if not meant or not all(isinstance(module, _ADAPTABLE) for module in meant):
            known = ", ".join(kind.name for kind in module_kinds(model))
            raise UserError(
                f"Target modules: this base model has no layers called {name}. It has {known}: choose among these, or "
                f"{ALL_LINEAR}."
            )
    return settings.target_modules


def _called(model: PreTrainedModel, name: str) -> list[nn.Module]:
    """The modules whose full name ends with `name`, as PEFT finds them."""
    return [module for full, module in model.named_modules() if f".{full}".endswith(f".{name}")]


def _a_full_name(model: PreTrainedModel) -> str:
    first = module_kinds(model)[0].name
    return next(full for full, _ in model.named_modules() if f".{full}".endswith(f".{first}"))


def embedding_names(model: PreTrainedModel) -> list[str]:
    """The last parts of the names of the input embeddings and of the head."""
    wanted = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name.rsplit(".", 1)[-1] for name, module in model.named_modules() if any(module is one for one in wanted)]


def _common(model: PreTrainedModel, settings: Settings) -> dict[str, Any]:
    """What all adapters on modules take."""
    for name in settings.train_fully:
        if not _called(model, name):
            raise UserError(
                f"Train fully: this base model has nothing called {name}; its embeddings and head are called "
                f"{' and '.join(embedding_names(model))}."
            )
    fully = dict.fromkeys([*settings.train_fully, *(embedding_names(model) if settings.new_tokens else [])])
    return {
        "task_type": "CAUSAL_LM",
        "target_modules": targets(model, settings),
        "modules_to_save": list(fully) or None,
    }


def _ranked(model: PreTrainedModel, settings: Settings) -> dict[str, Any]:
    layers = settings.layers
    if layers and layers[-1] >= layer_count(model):
        raise UserError(f"Layers: this base model has {layer_count(model)}, counted from 0: name none above.")
    return _common(model, settings) | {"r": settings.lora_rank, "layers_to_transform": layers}


def _own_ranks(settings: Settings) -> dict[str, Any]:
    return {"rank_pattern": patterns(settings.rank_pattern), "alpha_pattern": patterns(settings.alpha_pattern)}


def _lora(model: PreTrainedModel, settings: Settings) -> PeftConfig:
    # Without real weights there is nothing to take an initialization from.
    on_meta = next(model.parameters()).is_meta
    return LoraConfig(
        **_ranked(model, settings),
        **_own_ranks(settings),
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.rank_stabilized,
        use_dora=settings.dora,
        init_lora_weights=True if on_meta else _INITIALIZATIONS[settings.initialization],
        # Every module keeps the rank that was asked for, so that memory is what was estimated.
        eva_config=EvaConfig(rho=1.0) if settings.initialization == "EVA" and not on_meta else None,
    )


def _vera(model: PreTrainedModel, settings: Settings) -> PeftConfig:
    return VeraConfig(**_ranked(model, settings), vera_dropout=settings.lora_dropout, projection_prng_key=settings.seed)


def _loha(model: PreTrainedModel, settings: Settings) -> PeftConfig:
    return LoHaConfig(**_hadamard(model, settings))


def _lokr(model: PreTrainedModel, settings: Settings) -> PeftConfig:
    return LoKrConfig(**_hadamard(model, settings))


def _hadamard(model: PreTrainedModel, settings: Settings) -> dict[str, Any]:
    return {
        **_ranked(model, settings),
        **_own_ranks(settings),
        "alpha": settings.lora_alpha,
        "rank_dropout": settings.lora_dropout,
    }


def _ia3(model: PreTrainedModel, settings: Settings) -> PeftConfig:
    common = _common(model, settings)
    down = [kind.name for kind in module_kinds(model) if kind.goes_down]
    # These are scaled at their input, all others at their output (Liu et al., 2022).
    scaled_at_input = (
        down if isinstance(common["target_modules"], str) else [n for n in down if n in common["target_modules"]]
    )
    return IA3Config(**common, feedforward_modules=scaled_at_input)


def _prefix(model: PreTrainedModel, settings: Settings) -> PeftConfig:
    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=settings.virtual_tokens)


def _prompt(model: PreTrainedModel, settings: Settings) -> PeftConfig:
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=settings.virtual_tokens)


def _p_tuning(model: PreTrainedModel, settings: Settings) -> PeftConfig:
    return PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=settings.virtual_tokens)


_CONFIGS: dict[Method, Callable[[PreTrainedModel, Settings], PeftConfig]] = {
    "LoRA": _lora,
    "VeRA": _vera,
    "LoHa": _loha,
    "LoKr": _lokr,
    "IA3": _ia3,
    "prefix tuning": _prefix,
    "prompt tuning": _prompt,
    "P-tuning": _p_tuning,
}
