"""Turns conversations and texts into token ids and labels: the one place that decides which tokens are trained.

Labels are the ids where a token is trained and IGNORED elsewhere; the shift by one position is left to the loss.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from training.errors import UserError
from training.formats import Message, RowError

IGNORED = -100  # what torch's cross entropy leaves out
# Some models that can reason put this before an answer without thoughts. They have to write it, so it is trained too.
_NO_THOUGHT = re.compile(r"^\s*<think>\s*</think>\s*")


@dataclass(frozen=True)
class Example:
    """Token ids, their labels, and where in the user's file they come from."""

    input_ids: list[int]
    labels: list[int]
    source: str

    @property
    def trained_tokens(self) -> int:
        """Tokens that count in the loss; the first has nothing before it to be predicted from."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], source: str, *, answers_only: bool
) -> Example:
    """The conversation in the chat template; with `answers_only` each assistant turn and its end is trained.

    Raises RowError when the template refuses the conversation, and UserError when it hides where the answers are.
    """
    text = _render(tokenizer, messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    if not answers_only:
        return Example(ids, list(ids), source)
    spans = _answer_spans(tokenizer, messages, text)
    labels = [
        token if any(start < span_end and end > span_start for span_start, span_end in spans) else IGNORED
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return Example(ids, labels, source)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, source: str) -> Example:
    """Plain text with the tokenizer's own start token, if it has one, and an end token; all of it is trained."""
    ids: list[int] = tokenizer(text)["input_ids"]
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    return Example(ids, list(ids), source)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, prompt_answer: bool = False) -> str:
    try:
        # As a batch of one: only so does the library take a conversation without turns, as before a first answer.
        return str(tokenizer.apply_chat_template([messages], tokenize=False, add_generation_prompt=prompt_answer)[0])
    except TemplateError as error:
        raise RowError(f"the model's chat template refuses it ({error})") from error


def _answer_spans(tokenizer: PreTrainedTokenizerBase, messages: list[Message], text: str) -> list[tuple[int, int]]:
    """Where in `text` the assistant's turns stand, each with its end-of-turn token, as (start, end) in characters.

    A turn begins where the prompt for it ends and ends where the conversation up to it ends. That holds for templates
    that only ever append; for any other, training on a guess is refused.
    """
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:number], prompt_answer=True)
        through = _render(tokenizer, messages[: number + 1])
        if not (through.startswith(before) and text.startswith(through.rstrip())):
            raise _unknown_answers()
        turn = through[len(before) :].rstrip()
        answer = message["content"].strip()
        if not (turn.lstrip().startswith(answer) or _NO_THOUGHT.sub("", turn).startswith(answer)):
            raise _unknown_answers()
        # White space after the end-of-turn token belongs to the layout; inside the answer it stays.
        spans.append((len(before), len(before) + max(len(turn), len(answer))))
    return spans


def _unknown_answers() -> UserError:
    return UserError(
        "Train only on answers: this model's chat template rewrites earlier turns, so it cannot be told for certain "
        "which tokens are answers. Untick it to train on everything, or choose another base model."
    )
