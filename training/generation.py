"""Writes one answer to a conversation, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.errors import UserError
from training.formats import Message
from training.kept_readings import Key, Readings, read_ahead
from training.sampling import Sampling

_SECONDS_BETWEEN_PIECES = 0.04  # as often as an eye can follow; decoding more often only takes time from the model


@dataclass(frozen=True)
class Speaker:
    """A model that answers, its tokenizer, and what was read before; `key`: the adapter it wears.

    `ends` are the tokens that end an answer, as `end_tokens` finds them.
    Where an adapter takes part in each call the model is a PeftModel; `base_alone` then leaves the adapter out.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    ends: Sequence[int]
    readings: Readings
    key: Key | None = None
    base_alone: bool = False


@dataclass(frozen=True)
class Prompt:
    """A conversation as token ids, the tokens left for the answer, and the oldest turns that found no room.

    `ends`: after how many tokens each question, ready to be answered, ended; the last is the length of all.
    """

    ids: list[int]
    ends: list[int]
    answer_tokens: int
    context: int
    turns_left_out: int


@dataclass(frozen=True)
class Answer:
    """A whole answer, or what there was of it when it was stopped; `ended`: the model itself came to its end."""

    text: str
    tokens: int
    seconds: float
    ended: bool


def make_prompt(speaker: Speaker, messages: list[Message], max_tokens: int) -> Prompt:
    """The conversation without as many of its oldest turns as it takes to fit the model; raises UserError if none fits.

    A quarter of the context, or `max_tokens` where that is less, is kept free for the answer.
    """
    context = _context_length(speaker.model, speaker.tokenizer)
    longest = context - min(max_tokens, context // 4)
    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    length = 0
    for first in range(0, len(turns), 2):  # a turn is a question and its answer
        kept = [*system, *turns[first:]]
        ids = _encode(speaker.tokenizer, kept)
        length = len(ids)
        if length <= longest:
            ends = _question_ends(speaker.tokenizer, kept, len(system), length)
            return Prompt(ids, ends, min(max_tokens, context - length), context, first // 2)
    raise UserError(
        f"The message is too long: it makes {length:,} tokens, and this model can read {longest:,}. Shorten it."
    )


def write_answer(
    speaker: Speaker, prompt: Prompt, sampling: Sampling, stopped: Callable[[], bool], show: Callable[[str], None]
) -> Answer:
    """Generate the answer, giving `show` its growing text, until it ends or `stopped` says so after a token."""
    model, tokenizer = speaker.model, speaker.tokenizer
    stream = _Stream(tokenizer, show)
    drawing: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        # No top-k behind the scenes: what the controls say is all that is done.
        drawing = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        torch.manual_seed(sampling.settled().seed)
    started = time.monotonic()
    reading = None
    if isinstance(model, PreTrainedModel):  # an adapter that takes part in each call may change what was read
        reading = speaker.readings.begin(model, speaker.key, prompt.ids, prompt.ends)
    is_whole = reading is not None and read_ahead(model, reading, stopped)
    ids = torch.tensor([prompt.ids], device=model.device)
    with model.disable_adapter() if speaker.base_alone else nullcontext():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=reading.cache if reading else None,
            max_new_tokens=prompt.answer_tokens,
            eos_token_id=list(speaker.ends) or None,
            pad_token_id=tokenizer.pad_token_id,
            streamer=stream,
            stopping_criteria=[lambda *_: stopped()],
            **drawing,
        )
    if reading and is_whole:
        speaker.readings.keep(reading)
    return Answer(stream.text(), len(stream.ids), time.monotonic() - started, stream.ids[-1] in speaker.ends)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the model's, the tokenizer's, and the one that the template puts after an answer.

    A base model's config often lacks the last, yet it is what a LoRA trained with that template writes.
    """
    configured = model.generation_config.eos_token_id
    ends = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id}
    answer = "ok"
    turns = [{"role": "user", "content": answer}, {"role": "assistant", "content": answer}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    after = tokenizer(text[text.rfind(answer) + len(answer) :].strip(), add_special_tokens=False)["input_ids"]
    if after and (after[0] in tokenizer.all_special_ids or after[0] in tokenizer.added_tokens_decoder):
        ends.add(after[0])
    return sorted(end for end in ends if end is not None)


class _Stream:
    """Where `generate` puts its tokens. All are decoded again each time, since a letter may span several."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], None]) -> None:
        self.ids: list[int] = []
        self._tokenizer = tokenizer
        self._show = show
        self._prompt_seen = False
        self._shown_at = 0.0

    def text(self) -> str:
        return str(self._tokenizer.decode(self.ids, skip_special_tokens=True)).strip()

    def put(self, ids: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True  # generate puts the prompt first
            return
        self.ids += ids.tolist()
        if time.monotonic() - self._shown_at >= _SECONDS_BETWEEN_PIECES:
            self._show(self.text().rstrip("\ufffd"))  # half a letter
            self._shown_at = time.monotonic()

    def end(self) -> None:
        """Asked for by `generate`; nothing is held back here."""


def _context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens the model can read and write in all."""
    config = model.config.get_text_config()
    lengths = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    return int(min(length for length in (*lengths, tokenizer.model_max_length) if length))


def _encode(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """The conversation and the beginning of an answer as token ids, exactly as the training encodes them."""
    ids: list[int] = tokenizer(_write_out(tokenizer, messages), add_special_tokens=False)["input_ids"]
    return ids


def _write_out(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        hint = " Try it without the system prompt." if messages[0]["role"] == "system" else ""
        raise UserError(f"This model's chat template refuses the conversation ({error}).{hint}") from error


def _question_ends(tokenizer: PreTrainedTokenizerBase, messages: list[Message], before: int, length: int) -> list[int]:
    """After how many tokens each question ended when it was asked, `before` messages standing before the first one.

    One is left out where the template has changed what stands before it since, or where a token reaches across its
    end; all but the last are with a tokenizer that does not tell where its tokens stand.
    """
    if not tokenizer.is_fast or len(messages) <= before + 1:
        return [length]
    text = _write_out(tokenizer, messages)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    tokens_to = {end: number for number, (_, end) in enumerate(spans, 1)}  # the last of those that end there
    earlier = [_write_out(tokenizer, messages[: asked + 1]) for asked in range(before, len(messages) - 1, 2)]
    ends = [tokens_to[len(part)] for part in earlier if text.startswith(part) and len(part) in tokens_to]
    return [*ends, length]
