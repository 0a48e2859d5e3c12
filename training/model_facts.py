"""What a base model's folder holds, read from its config.json, its file names and the headers of its weights.

Nothing is loaded, and neither torch nor transformers is imported.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from training.errors import UserError
from training.json_files import read_small_json

CONFIG = "config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Any of these is where the words of a tokenizer stand.
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len")  # names in configs of different families
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_METHODS = {"gptq": "GPTQ", "awq": "AWQ", "mxfp4": "MXFP4", "nvfp4": "NVFP4", "fp8": "FP8", "fbgemm_fp8": "FP8"}
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors", re.ASCII)
_LONGEST_NAME = 200  # characters of an architecture and the like
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # how architectures that write text end


@dataclass(frozen=True)
class ModelFacts:
    """A model as its files describe it. What they leave open is None, or empty for texts."""

    name: str
    architecture: str
    model_type: str
    encoder_decoder: bool
    context_length: int | None  # tokens
    vocabulary: int | None
    hidden_size: int | None
    layers: int | None
    parameters: int | None
    bytes_on_disk: int
    dtype: str
    quantization: str  # the method and, where it is told, the bits
    has_weights: bool
    missing: tuple[str, ...]  # shards that the index names and the folder lacks
    damaged: tuple[str, ...]  # weights that are cut short or no safetensors at all
    has_tokenizer: bool
    has_chat_template: bool
    code: tuple[str, ...]  # Python files of the model's own that its config asks for

    @property
    def whole(self) -> bool:
        """Whether every part is there: after a download that was cut off it is not."""
        return self.has_weights and self.has_tokenizer and not self.missing and not self.damaged


def facts_of(folder: Path, name: str = "") -> ModelFacts:
    """The facts of a model's folder, called `name` or else as the folder is.

    Raises UserError for a folder that is no Hugging Face model and for one with a damaged config.
    """
    name = name or folder.name
    config = read_config(folder, name)
    text = _text_part(config)
    files, missing = weight_files(folder, name)
    tensors, damaged = _headers(folder / file for file in files if file not in missing)
    quantization = _quantization(config)
    return ModelFacts(
        name=name,
        architecture=_first_name(config.get("architectures")),
        model_type=_as_text(config.get("model_type")),
        encoder_decoder=bool(config.get("is_encoder_decoder")),
        context_length=context_of(config),
        vocabulary=_number(text, ("vocab_size",)),
        hidden_size=_number(text, _HIDDEN),
        layers=_number(text, _LAYERS),
        # Packed weights hold several parameters in a number.
        parameters=None if quantization or missing or damaged or not tensors else _parameters(tensors, config),
        bytes_on_disk=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        dtype=_most_common_dtype(tensors),
        quantization=quantization,
        has_weights=bool(files),
        missing=tuple(missing),
        damaged=tuple(damaged),
        has_tokenizer=any((folder / file).is_file() for file in _TOKENIZERS) or any(folder.glob("*.tiktoken")),
        has_chat_template=_has_chat_template(folder),
        code=_code_files(config),
    )


def context_of(config: dict[str, Any]) -> int | None:
    """Tokens that a model with this config reads at once, where it says so."""
    return _number(_text_part(config), _CONTEXT)


def about(facts: ModelFacts) -> str:
    """The facts in one line."""
    parts = [_family(facts)]
    if facts.parameters is not None:
        parts.append(f"{count_text(facts.parameters)} parameters")
    parts.append(size_text(facts.bytes_on_disk))
    if facts.quantization:
        parts.append(f"stored in {facts.quantization}")
    if facts.context_length is not None:
        parts.append(f"reads {facts.context_length:,} tokens")
    parts.append("has a chat template" if facts.has_chat_template else "has no chat template")
    return ", ".join(parts)


def size_text(size: int) -> str:
    """Bytes as people read them, in the decimal units that disks and the Hub use."""
    for unit, one in (("GB", 10**9), ("MB", 10**6)):
        if size >= one:
            return f"{size / one:.0f} {unit}" if size >= 10 * one else f"{size / one:.1f} {unit}"
    return f"{size / 1000:.0f} kB"


def count_text(count: int) -> str:
    """A number of parameters in words."""
    for word, one in (("billion", 10**9), ("million", 10**6)):
        if count >= one:
            return f"{count / one:.1f} {word}"
    return f"{count:,}"


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """What stands in the folder's config.json; raises UserError where there is none or no sense in it."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"Base model: {what_else_it_is({p.name for p in folder.iterdir()}, name)}")
    try:
        config = read_small_json(path)
    except (ValueError, OSError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"Base model: the config.json of '{name}' is damaged; copy the model again.")
    return config


def what_else_it_is(files: set[str], name: str) -> str:
    """What `name` is instead of a model with a config.json, told from its file names, and what to do."""
    if "adapter_config.json" in files:
        return f"'{name}' is a LoRA adapter and no whole model: choose the base model that it was trained on."
    if "model_index.json" in files:
        return f"'{name}' is a model for pictures (diffusers), and Graft trains models that write text: choose another."
    if any(file.lower().endswith(".gguf") for file in files):
        return (
            f"'{name}' holds a GGUF file, which is for running and cannot be trained: "
            "get the original Hugging Face folder of that model."
        )
    return f"the folder '{name}' has no config.json, so it is not a Hugging Face model: copy all files of the model."


def weight_files(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """The safetensors files that transformers would load, and which of them are not there.

    Raises UserError for an index that makes no sense.
    """
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS], []
    index = folder / WEIGHTS_INDEX
    if not index.is_file():
        return [], []
    try:
        files = sorted(set(read_small_json(index)["weight_map"].values()))
        # A name with a folder in it could lead anywhere, and files of another kind can run code.
        if not all(isinstance(file, str) and _SHARD.fullmatch(file) for file in files):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise UserError(f"Base model: the {WEIGHTS_INDEX} of '{name}' is damaged; copy the model again.") from None
    return files, [file for file in files if not (folder / file).is_file()]


_Tensors = list[tuple[str, list[int], str]]  # name, shape, type


def _headers(paths: Iterable[Path]) -> tuple[_Tensors, list[str]]:
    """The tensors that the files declare, and the names of files that do not hold what they declare."""
    tensors: _Tensors = []
    damaged = []
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 - it is no mapping
                    part = file.get_slice(key)
                    tensors.append((key, part.get_shape(), part.get_dtype()))
        except (SafetensorError, OSError):
            damaged.append(path.name)
    return tensors, damaged


def _parameters(tensors: _Tensors, config: dict[str, Any]) -> int:
    """What can be trained of the tensors: neither constants that old checkpoints store too nor a head stored twice."""
    tied = bool(_text_part(config).get("tie_word_embeddings"))
    return sum(
        math.prod(shape)
        for name, shape, dtype in tensors
        if dtype in _DTYPES and not _is_constant(name, shape) and not (tied and name.endswith("lm_head.weight"))
    )


def _is_constant(name: str, shape: list[int]) -> bool:
    # GPT-2 and GPT-NeoX checkpoints hold their causal masks, [1, 1, n, n], under the name of a bias.
    return name.endswith(("inv_freq", "masked_bias")) or (name.endswith(".bias") and len(shape) == 4)


def _most_common_dtype(tensors: _Tensors) -> str:
    counts: Counter[str] = Counter()
    for _, shape, dtype in tensors:
        counts[dtype] += math.prod(shape)
    return next((_DTYPES.get(dtype, dtype) for dtype, _ in counts.most_common(1)), "")


def _quantization(config: dict[str, Any]) -> str:
    """How the weights are packed, or nothing for plain ones."""
    found = config.get("quantization_config") or _text_part(config).get("quantization_config")
    if not isinstance(found, dict):
        return ""
    method = _as_text(found.get("quant_method")).lower()
    if found.get("load_in_4bit") or found.get("load_in_8bit"):
        return f"bitsandbytes {'4' if found.get('load_in_4bit') else '8'}-bit"
    bits = f" {found['bits']}-bit" if isinstance(found.get("bits"), int) else ""
    return _METHODS.get(method, method or "an unknown way") + bits


def _has_chat_template(folder: Path) -> bool:
    if any((folder / file).is_file() for file in ("chat_template.jinja", "chat_template.json")):
        return True
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return False
    try:
        values = read_small_json(path)
    except (ValueError, OSError):
        return False  # loading the tokenizer says more
    return isinstance(values, dict) and bool(values.get("chat_template"))


def _code_files(config: dict[str, Any]) -> tuple[str, ...]:
    """The files named in auto_map as "file.Class", or "org/model--file.Class" where they lie with another model."""
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict):
        return ()
    names = [_as_text(auto_map.get(kind)) for kind in ("AutoConfig", "AutoModelForCausalLM", "AutoModel")]
    return tuple(dict.fromkeys(f"{name.rpartition('.')[0]}.py" for name in names if "." in name))


def _family(facts: ModelFacts) -> str:
    for ending in WRITERS:
        if facts.architecture.endswith(ending):
            return facts.architecture.removesuffix(ending)
    return facts.architecture or facts.model_type or "a model of unknown kind"


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what a model for text and pictures says of its text part."""
    inner = config.get("text_config")
    return config | inner if isinstance(inner, dict) else config


def _number(values: dict[str, Any], names: Iterable[str]) -> int | None:
    found = (values.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _first_name(value: Any) -> str:
    return _as_text(value[0]) if isinstance(value, list) and value else ""


def _as_text(value: Any) -> str:
    """A name for people and for lists of names: in one line, and no longer than any that is known."""
    return " ".join(value.split())[:_LONGEST_NAME] if isinstance(value, str) else ""
