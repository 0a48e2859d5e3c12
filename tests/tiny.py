"""A base model of some random weights and a tokenizer whose tokens are bytes: real, offline and fast."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from training.parsing import parse
from training.paths import Folders
from training.prepared import Examples, Record, Records, RecordWriter
from training.settings import Settings

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


# What they learn their merges from: words with their spaces, new lines and signs.
_LESSON = [
    "The cat and the hen ate an ant.\n\nThen the hen ate.\n" * 4,
    "the  then    than,\n  that!\n\n\nAn eel.\n" * 4,
    *("An eel.\n\n" for _ in range(9)),
]
# GPT-4's and Qwen's: a sign takes the new lines behind it, and numbers are parted.
_QWEN_PARTS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KINDS = ("gpt2", "qwen", "llama", "gemma")


def make_tokenizer_like(kind: str) -> PreTrainedTokenizerFast:
    """A small one with learnt merges that parts a text as a real one does: one of KINDS."""
    if kind in ("gpt2", "qwen"):
        tokenizer = Tokenizer(models.BPE())
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
        parts = pre_tokenizers.Split(Regex(_QWEN_PARTS), "isolated")
        tokenizer.pre_tokenizer = level if kind == "gpt2" else pre_tokenizers.Sequence([parts, level])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(_LESSON, trainer)
        if kind == "qwen":
            tokenizer.normalizer = normalizers.NFC()
    else:
        tokenizer = _sentencepiece_like(prepend="first" if kind == "llama" else "never")
    start, end = ("<s>", "</s>")
    tokenizer.add_special_tokens([*_SPECIAL, start, end])
    if kind in ("llama", "gemma"):
        template = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
        )
        tokenizer.post_processor = template
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token="<|pad|>")
    fast.chat_template = CHATML
    return fast


def _sentencepiece_like(prepend: str) -> Tokenizer:
    """Spaces are letters, no part ends at a word, and what is unknown is spelt in bytes."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    learnt.train_from_iterator(_LESSON, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    model = json.loads(learnt.to_str())["model"]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if prepend == "first" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


class LetterTokenizer(PreTrainedTokenizer):
    """A token a letter, in Python: it knows no places."""

    vocab_files_names: ClassVar[dict[str, str]] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(eos_token="<|im_end|>", pad_token="<|pad|>", **options)

    @property
    def vocab_size(self) -> int:
        return 0x3000

    def get_vocab(self) -> dict[str, int]:
        return {chr(number): number for number in range(self.vocab_size)} | dict(self.added_tokens_encoder)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


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


def folders_in(root: Path) -> Folders:
    """The working folders below `root`, made or not."""
    return Folders(
        models=root / "models",
        datasets=root / "datasets",
        loras=root / "loras",
        presets=root / "presets",
        formats=root / "formats",
        templates=root / "templates",
        hub_cache=root / "hub",
    )


def make_folders(root: Path) -> Folders:
    """Working folders below `root`, empty but for copies of the chat templates that ship."""
    folders = folders_in(root)
    folders.make()
    shutil.copytree(Folders().templates, folders.templates, dirs_exist_ok=True)
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
        "precision": "32-bit",  # the same on every processor
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


def make_examples(folder: Path, records: Iterable[Record]) -> Examples:
    """The examples of records that are in memory, by way of a file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "records.arrow"
    with RecordWriter(path) as writer:
        for record in records:
            writer.add(record)
    stored = Records.open(path)
    return Examples(stored, np.flatnonzero(stored.column("kept") > 0))


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The ids as text, special tokens included and nothing tidied up."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
