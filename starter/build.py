"""`python -m starter.build`: train the starter's tokenizer and model from generated text and write them to one folder."""

import argparse
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from starter import words
from starter.grammar import document
from starter.words import Message, capital, plural

log = logging.getLogger("starter")

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# What users type is endless; learning to predict it would take room that the answers need.
USER_WEIGHT, PROSE_WEIGHT = 0.1, 0.5
SAMPLES = ("Hello", "How are you?", "What is your name?", "What is a cat?", "What is 3 plus 4?", "What colour is the sky?",
           "Tell me a story", "Please explain the parliament of my neighbour.")  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how the model comes out."""

    seed: int = 7
    steps: int | None = None
    minutes: float = 37.0
    vocab: int = 4096
    hidden: int = 256
    layers: int = 6
    row: int = 512
    rows: int = 2
    rate: float = 2e-3
    snapshot_minutes: float = 5.0


def _vocabulary_lines() -> list[str]:
    """Each listed word in the forms it is met in, so that ordinary English stays in few tokens."""
    lines = []
    for group in (words.NOUNS, words.VERBS, words.OTHER, words.RARE, words.ADJECTIVES):
        for word in group:
            lines.append(f"The {word}. {capital(word)}")
    lines += [f"the {plural(noun)}" for noun in words.NOUNS]
    lines += [f"they {verb.removesuffix('e')}ed {verb.removesuffix('e')}ing" for verb in words.VERBS]
    return lines


def make_tokenizer(seed: int, vocab: int, documents: int = 30_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every text has tokens and comes back unchanged. Digits stand alone, which helps sums."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    rng = Random(seed)
    texts = (_plain(document(rng)) for _ in range(documents))
    # The repeats make a listed word frequent enough to become one token although the grammar uses it rarely.
    repeated = (line for _ in range(12) for line in _vocabulary_lines())
    special = [AddedToken(text, special=True, normalized=False) for text in (PAD, START, END)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((text for source in (texts, repeated) for text in source), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _plain(text: list[Message] | str) -> str:
    return text if isinstance(text, str) else "\n".join(message["content"] for message in text)


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of the recipe's size."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.hidden * 5 // 2,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def encode(tokenizer: PreTrainedTokenizerFast, text: list[Message] | str) -> tuple[list[int], list[float]]:
    """Token ids of a document and how much each of them counts in the loss."""
    if isinstance(text, str):
        ids = tokenizer(text + END)["input_ids"]
        return ids, [PROSE_WEIGHT] * len(ids)
    out = tokenizer.apply_chat_template(text, return_dict=True, return_assistant_tokens_mask=True)
    return out["input_ids"], [1.0 if answer else USER_WEIGHT for answer in out["assistant_masks"]]


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Endless (ids, positions, weights), each of shape (rows, row); positions restart at each document of a row."""
    rng = Random(recipe.seed + 1)
    while True:
        rows = [_row(recipe.row, tokenizer, rng) for _ in range(recipe.rows)]
        ids, positions, weights = zip(*rows, strict=True)
        yield torch.tensor(ids), torch.tensor(positions), torch.tensor(weights)


def _row(length: int, tokenizer: PreTrainedTokenizerFast, rng: Random) -> tuple[list[int], list[int], list[float]]:
    """Documents one after the other until the row is full; the last one is cut."""
    ids: list[int] = []
    positions: list[int] = []
    weights: list[float] = []
    while len(ids) < length:
        tokens, counts = encode(tokenizer, document(rng))
        ids += tokens
        positions += range(len(tokens))
        # Nothing leads up to a document's first token, so it is not predicted.
        weights += [0.0, *counts[1:]]
    return ids[:length], positions[:length], weights[:length]


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write model (bfloat16) and tokenizer beside `out`, then move file by file, so that a reader never sees half a file."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".starter-") as folder:
        deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            file.chmod(0o644)
            os.replace(file, out / file.name)


def _loss(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted loss and, to be read by people, the mean loss of answer tokens alone."""
    ids, positions, weights = batch
    # Matrix products in bfloat16 take half the time on processors that know it; weights and sums stay in float32.
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, :-1].float()
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    answers = weight == 1.0
    mean = losses.detach()[answers].sum() / answers.sum().clamp(min=1)
    return (losses * weight).sum() / weight.sum(), mean


def _optimiser(model: LlamaForCausalLM) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    scales = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)


def _rate(recipe: Recipe, step: int, done: float) -> float:
    """Learning rate: a short warm-up, then half a cosine down to 2 % as `done` goes from 0 to 1."""
    return recipe.rate * min(1.0, (step + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * done))


def begin(recipe: Recipe) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A new tokenizer and an untrained model."""
    # A run of a few steps is a trial of the script and need not wait for a good vocabulary.
    documents = min(30_000, 50 * recipe.steps) if recipe.steps else 30_000
    tokenizer = make_tokenizer(recipe.seed, recipe.vocab, documents)
    return make_model(recipe, tokenizer), tokenizer


def load(out: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The tokenizer and the model that an earlier run left in `out`."""
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True)
    return model, PreTrainedTokenizerFast.from_pretrained(out)


def train(recipe: Recipe, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Train the model in place, saving snapshots to `out` on the way and the result at the end."""
    log.info("%d tokens in the vocabulary, %d parameters", len(tokenizer), model.num_parameters())
    optimiser = _optimiser(model)
    begun = saved = time.monotonic()
    model.train()
    mean = 0.0
    for step, batch in enumerate(batches(recipe, tokenizer)):
        now = time.monotonic()
        done = step / recipe.steps if recipe.steps else (now - begun) / 60 / recipe.minutes
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = _rate(recipe, step, done)
        loss, answers = _loss(model, batch)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        mean = answers.item() if step == 0 else 0.97 * mean + 0.03 * answers.item()
        if step % 25 == 0:
            tokens, minutes = (step + 1) * recipe.rows * recipe.row, (now - begun) / 60
            log.info("step %d  %.1f%%  answers %.3f  %d tokens  %.1f min", step, 100 * done, mean, tokens, minutes)
        if now - saved > 60 * recipe.snapshot_minutes:
            save(model, tokenizer, out)
            saved = now
    save(model, tokenizer, out)
    model.eval()


def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, messages: list[Message], temperature: float = 0.0
) -> str:
    """The model's reply to a conversation; greedy at temperature 0."""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    options: dict[str, bool | float] = (
        {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    )
    with torch.no_grad():
        out = model.generate(**prompt, max_new_tokens=120, **options)
    return str(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, train, and show what the model says."""
    parser = argparse.ArgumentParser(description="Train the starter model from text that the project generates.")
    parser.add_argument(
        "--out", type=Path, default=Path("models/starter"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=Recipe.seed, help="same seed and --steps, same model (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=Recipe.minutes, help="training time (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="train this many steps instead of --minutes")
    parser.add_argument(
        "--vocab", type=int, default=Recipe.vocab, help="tokens in the vocabulary (default: %(default)s)"
    )
    parser.add_argument("--hidden", type=int, default=Recipe.hidden, help="hidden size (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=Recipe.layers, help="number of layers (default: %(default)s)")
    parser.add_argument("--row", type=int, default=Recipe.row, help="tokens in a packed row (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=Recipe.rate, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--further", action="store_true", help="go on from the model in --out; give another --seed")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = {name: value for name, value in vars(args).items() if name not in {"out", "further"}}
    recipe = Recipe(**options)
    model, tokenizer = load(args.out) if args.further else begin(recipe)
    train(recipe, model, tokenizer, args.out)
    for question in SAMPLES:
        print(f"> {question}\n{answer(model, tokenizer, [{'role': 'user', 'content': question}])}\n")


if __name__ == "__main__":
    main()
