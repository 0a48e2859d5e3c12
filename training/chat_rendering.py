"""Renders conversations in a tokenizer's chat template, as training, chat and preview all do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from training.formats import Conversation, Message, RowError
from training.template_trial import TEMPLATE_ERRORS

Span = tuple[int, int]  # half open; in characters unless said otherwise
_GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")


class ChatRenderer:
    """One tokenizer's chat template. The library's own function is called, without its work for tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = dict(tokenizer.special_tokens_map)
        added = {*tokenizer.all_special_tokens, *(token.content for token in tokenizer.added_tokens_decoder.values())}
        # One of the tokens that no text is made of, with the white space before it; the longest of those that fit.
        # Without any it matches nothing, where an empty choice would match everywhere.
        tokens = "|".join(re.escape(token) for token in sorted(added, key=len, reverse=True))
        self.special_token = re.compile(rf"\s*(?:{tokens or '(?!)'})")

    def text(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None, *, prompt_answer: bool = False
    ) -> str:
        """The conversation as text, with `prompt_answer` up to where an answer begins; raises RowError."""
        return self._render(messages, tools, add_generation_prompt=prompt_answer)[0]

    def texts(self, conversations: Sequence[Conversation]) -> list[str | RowError]:
        """Each conversation as text, or why it cannot be. Those without tools are rendered in one call."""
        plain = [list(one.messages) for one in conversations if not one.tools]
        try:
            rendered = iter(self._call(plain)[0] if plain else [])
        except TEMPLATE_ERRORS:  # somewhere among them
            return [self._text_or_error(one) for one in conversations]
        return [self._text_or_error(one) if one.tools else next(rendered) for one in conversations]

    def _text_or_error(self, conversation: Conversation) -> str | RowError:
        try:
            return self.text(conversation.messages, conversation.tools)
        except RowError as error:
            return error

    def marked_text(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None) -> tuple[str, list[Span]]:
        """The text, and what the template's generation markers enclose: nothing where it has none."""
        marked = bool(_GENERATION.search(self._tokenizer.get_chat_template(tools=tools)))
        return self._render(messages, tools, return_assistant_tokens_mask=marked)

    def _render(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, **options: bool
    ) -> tuple[str, list[Span]]:
        try:
            texts, spans = self._call([list(messages)], tools, **options)
        except TEMPLATE_ERRORS as error:
            raise RowError(f"the chat template refuses it ({error})") from error
        return texts[0], spans[0] if spans else []

    def _call(
        self, conversations: list[list[Message]], tools: list[dict[str, Any]] | None = None, **options: bool
    ) -> tuple[list[str], list[list[Span]]]:
        template = self._tokenizer.get_chat_template(tools=tools)
        texts, spans = render_jinja_template(
            conversations, tools=tools, chat_template=template, **options, **self._special_tokens
        )
        return texts, spans
