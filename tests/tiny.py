"""A base model of some random weights and a tokenizer whose tokens are bytes: real, offline and fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from training.paths import Folders
from training.settings import Settings, parse

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
LLAMA3 = (
    "{{- '<|begin|>' -}}"
    "{%- for message in messages -%}"
    "{{ '<|head|>' + message['role'] + '<|/head|>\n\n' + message['content'] | trim + '<|eot|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|head|>assistant<|/head|>\n\n' }}{%- endif -%}"
)
# Reasoning models leave the thoughts of earlier turns out, so that a later turn changes what stands before it.
FORGETFUL = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] if loop.last else message['content'].split('</think>')[-1] }}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
# Others put an empty thought before the last answer, as Qwen3 does.
THOUGHTFUL = CHATML.replace(
    "message['content'] +",
    "('<think>\n\n</think>\n\n' if loop.last and message['role'] == 'assistant' else '') + message['content'] +",
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "alpaca": None}
END = {"chatml": "<|im_end|>", "llama3": "<|eot|>", "alpaca": "<|im_end|>"}  # what ends an answer in each
_SPECIAL = "<|pad|> <|im_start|> <|im_end|> <|begin|> <|head|> <|/head|> <|eot|>".split()


def make_tokenizer(template: str | None = CHATML, *, merges: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte; with `merges` also some of several bytes, as real ones have, some with a space or new line."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("a", "n"), ("Ġ", "an"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("t", "h"), ("th", "e"), ("Ġ", "the")] if merges else []
    vocabulary = {token: number for number, token in enumerate([*alphabet, *(a + b for a, b in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.chat_template = template
    return fast


def make_model(vocabulary: int, *, seed: int = 0) -> LlamaForCausalLM:
    """A Llama of two layers with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,  # what 4-bit on the CPU needs at least
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # with the usual 0.02 so small a model answers nearly the same to everything
    )
    return LlamaForCausalLM(config)


def make_folders(root: Path) -> Folders:
    """Empty working folders below `root`."""
    folders = Folders(
        models=root / "models", datasets=root / "datasets", loras=root / "loras", presets=root / "presets"
    )
    folders.make()
    return folders


def add_base(folders: Folders, name: str = "tiny", template: str | None = CHATML) -> Path:
    """Save the tiny model and its tokenizer as a folder in models/."""
    folder = folders.models / name
    tokenizer = make_tokenizer(template)
    make_model(len(tokenizer)).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def add_dataset(folders: Folders, rows: Any = None, name: str = "pairs.json") -> Path:
    """Save rows, by default ten short questions with answers, as a file in datasets/."""
    path = folders.datasets / name
    rows = rows or [{"question": f"What is {n} + {n}?", "answer": f"{n + n}, of course" + "!" * n} for n in range(10)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def make_settings(**changes: Any) -> Settings:
    """Settings of a training of seconds on the tiny model."""
    values: dict[str, Any] = {
        "base_model": "tiny",
        "name": "test",
        "dataset": "pairs.json",
        "batch_size": 4,
        "micro_batch_size": 2,
        "epochs": 2,
        "lora_rank": 4,
        "held_out_share": 0.2,
        "evaluate_every": 2,
        "save_every": 2,
    }
    return parse(values | changes)


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The ids as text, special tokens included and nothing tidied up."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
