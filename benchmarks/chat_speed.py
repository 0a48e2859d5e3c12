"""How soon and how fast the chat answers, beside plain `generate` on the same weights, prompt and machine.

The peers are transformers' `generate` with its dynamic and its static cache, and PEFT's layers where there is a LoRA.
All answer greedily, one after the other in each round; what is printed are medians, and Graft's ratio to the better
peer. Graft's times are those of `Chat.reply`: with template, tokenizing, decoding and the way to the page's thread.
Graft and the peers have a process each, since torch keeps threads for every thread that asks it to compute, which
would wait for the same cores.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from training.chat import Chat, ChatModel
from training.formats import Message
from training.generation import end_tokens
from training.paths import Folders
from training.runs import Run
from training.sampling import Sampling
from training.settings import Settings

_PEERS = {"dynamic": {}, "static": {"cache_implementation": "static"}}
_WORDS = "The sea is wide and deep, and the ships that cross it carry letters, salt and oranges to every harbour. "
_LENGTH = 80  # words of a text
_TURNS = 4  # questions in the conversation that is already long
LORAS = ("one", "two")


@dataclass
class Timed:
    """Seconds to the first token, and tokens a second after it, of each round."""

    first: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)


class Clock:
    """A streamer that notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        """The first call brings the prompt."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Asked for by `generate`."""


def make_folders(root: Path) -> Folders:
    """The starter, a Llama of 131 million random weights, and two LoRAs of rank 8 on each."""
    folders = Folders(models=root / "models", loras=root / "loras")
    folders.models.mkdir()
    folders.loras.mkdir()
    shutil.copytree(Folders.models / "starter", folders.models / "starter")
    tokenizer = AutoTokenizer.from_pretrained(folders.models / "starter")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=12,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(shape).save_pretrained(str(folders.models / "llama-131m"))
    tokenizer.save_pretrained(str(folders.models / "llama-131m"))
    for base in ("starter", "llama-131m"):
        model = AutoModelForCausalLM.from_pretrained(folders.models / base, dtype=torch.float32)
        for seed, name in enumerate(LORAS):
            torch.manual_seed(seed)
            lora = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
            for name_, parameter in lora.named_parameters():
                if "lora_B" in name_:
                    parameter.data.normal_(std=0.01)
            run = Run(folders.loras / f"{base}-{name}")
            lora.save_pretrained(str(run.folder))
            run.write_settings(Settings(base_model=base, name=run.name))
            model = lora.unload()
    return folders


def conversation(turns: int, words: int) -> list[Message]:
    """So many questions, all but the last answered, each text of about `words` words."""
    text = (_WORDS * (1 + words // 18)).split()[:words]
    said: list[Message] = []
    for number in range(1, turns + 1):
        said.append({"role": "user", "content": f"Number {number}. {' '.join(text)} Say more."})
        said.append({"role": "assistant", "content": f"Of {number}: {' '.join(text)}"})
    return said[:-1]


def ask_graft(chat: Chat, what: ChatModel, messages: list[Message], tokens: int) -> tuple[float, float]:
    """Seconds to the first text, and tokens a second after it."""
    began = time.perf_counter()
    first = 0.0
    for reply in chat.reply(what, messages, Sampling(temperature=0, max_tokens=tokens)):
        if reply.text and not first:
            first = time.perf_counter()
    count = int(reply.status.split()[0])
    return first - began, (count - 1) / (time.perf_counter() - first)


def ask_peer(model: Any, tokenizer: Any, messages: list[Message], tokens: int, **options: Any) -> tuple[float, float]:
    """The same of plain `generate`."""
    ends = end_tokens(model, tokenizer)
    began = time.perf_counter()
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    clock = Clock()
    model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        streamer=clock,
        **options,
    )
    times = clock.times[1:]
    return times[0] - began, (len(times) - 1) / (times[-1] - times[0])


class Contestant:
    """What answers in a process of its own; made there."""

    here: Contestant  # the one of this process

    def first_and_rate(self, what: ChatModel, turns: int, tokens: int, peer: str) -> tuple[float, float]:
        """Seconds to the first text of the answer to the last of so many questions, and tokens a second after it."""
        raise NotImplementedError


class Graft(Contestant):
    """The chat as the page has it."""

    def __init__(self, folders: Folders) -> None:
        self._chat = Chat(folders)

    def first_and_rate(self, what: ChatModel, turns: int, tokens: int, peer: str) -> tuple[float, float]:
        """After the earlier questions were asked."""
        chat_turns(self._chat, what, turns, _LENGTH)
        return ask_graft(self._chat, what, conversation(turns, _LENGTH), tokens)


class Plain(Contestant):
    """transformers' `generate`, on PEFT's layers once a LoRA was asked for."""

    def __init__(self, folders: Folders, base: str) -> None:
        self._folders, self._tokenizer = folders, AutoTokenizer.from_pretrained(folders.models / base)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folders.models / base, dtype=torch.float32).eval()

    def first_and_rate(self, what: ChatModel, turns: int, tokens: int, peer: str) -> tuple[float, float]:
        """With the cache of that peer."""
        if what.adapter and not isinstance(self._model, PeftModel):
            self._model = PeftModel.from_pretrained(self._model, str(self._folders.loras / what.adapter)).eval()
        return ask_peer(self._model, self._tokenizer, conversation(turns, _LENGTH), tokens, **_PEERS[peer])


def process_of(kind: type[Contestant], *arguments: Any) -> ProcessPoolExecutor:
    """One for a contestant, which is made with these arguments."""
    return ProcessPoolExecutor(1, get_context("spawn"), _begin, (kind, *arguments))


def _begin(kind: type[Contestant], *arguments: Any) -> None:
    Contestant.here = kind(*arguments)


def _asked(*arguments: Any) -> tuple[float, float]:
    return Contestant.here.first_and_rate(*arguments)


def compare(folders: Folders, base: str, rounds: int, tokens: int) -> None:
    """Print the lines of one base model. All compute in 32 bits, which every processor can."""
    alone = ChatModel(base, precision="32-bit")
    tuned = replace(alone, adapter=f"{base}-one")
    with process_of(Graft, folders) as graft, process_of(Plain, folders, base) as plain:
        for label, what in (("base", alone), ("LoRA", tuned)):
            for kind, turns in (("a first question", 1), ("turn 4 of a conversation", _TURNS)):
                results: dict[str, Timed] = defaultdict(Timed)
                for number in range(rounds + 1):
                    for name in ("Graft", *_PEERS):
                        process = graft if name == "Graft" else plain
                        first, rate = process.submit(_asked, what, turns, tokens, name).result()
                        if number:  # the first round warms up
                            results[name].first.append(first)
                            results[name].rate.append(rate)
                tell(f"{base}, {label}, {kind}", results)
    switching(folders, Chat(folders), alone, rounds)


def chat_turns(chat: Chat, what: ChatModel, turns: int, words: int) -> None:
    """What came before the question that is timed: the earlier turns, of another conversation for a first question."""
    if turns == 1:
        list(chat.reply(what, conversation(1, words // 2), Sampling(temperature=0, max_tokens=1)))
    for turn in range(1, turns):
        list(chat.reply(what, conversation(turn, words), Sampling(temperature=0, max_tokens=1)))


def tell(label: str, results: dict[str, Timed]) -> None:
    """One line a contestant."""
    first = {name: statistics.median(timed.first) for name, timed in results.items()}
    rate = {name: statistics.median(timed.rate) for name, timed in results.items()}
    print(f"{label}")
    for name in results:
        print(f"  {name:8} first token {1000 * first[name]:8.1f} ms  {rate[name]:7.1f} tokens/s")
    soon, fast = min(first[name] for name in _PEERS), max(rate[name] for name in _PEERS)
    print(
        f"  ratios to static: first token {first['static'] / first['Graft']:.2f} times as soon, "
        f"{rate['Graft'] / rate['static']:.2f} times the tokens/s; to the better peer {soon / first['Graft']:.2f} and "
        f"{rate['Graft'] / fast:.2f}"
    )


def switching(folders: Folders, chat: Chat, alone: ChatModel, rounds: int) -> None:
    """Time to have the other LoRA ready, the first time and again, beside loading the base and it anew."""
    one, two = (replace(alone, adapter=f"{alone.base_model}-{name}") for name in LORAS)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        chat.unload()
        ready(chat, alone)
        ready(chat, one)
        times["the other LoRA, first time"].append(ready(chat, two))
        times["back to a LoRA"].append(ready(chat, one))
        times["back to the base"].append(ready(chat, alone))
        gc.collect()
        began = time.perf_counter()
        base = AutoModelForCausalLM.from_pretrained(folders.models / alone.base_model, dtype=torch.float32)
        PeftModel.from_pretrained(base, str(folders.loras / str(two.adapter)))
        AutoTokenizer.from_pretrained(folders.models / alone.base_model)
        times["loading base and LoRA anew"].append(time.perf_counter() - began)
    anew = statistics.median(times["loading base and LoRA anew"])
    print(f"{alone.base_model}, switching")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"  {name:28} {1000 * middle:8.1f} ms   {anew / middle:6.1f} times as fast as anew")


def ready(chat: Chat, what: ChatModel) -> float:
    """Seconds until the model stands ready to answer."""
    began = time.perf_counter()
    chat._models.ready(what, with_adapter=bool(what.adapter), loading=lambda _: None)
    return time.perf_counter() - began


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chat_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="length of an answer")
    parser.add_argument("--only", default="", help="the base model, starter or llama-131m")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folders = make_folders(Path(root))
        for base in ("starter", "llama-131m"):
            if arguments.only in base:
                compare(folders, base, arguments.rounds, arguments.tokens)


if __name__ == "__main__":
    main()
