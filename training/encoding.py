"""Turns conversations and texts into token ids and says which of them are trained: the one place that decides it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from transformers import PreTrainedTokenizerBase

from training.answers import AnswerFinder, Rendered
from training.formats import Conversation, RowError, Text
from training.settings import TrainOn
from training.token_spans import Encoded, SpanTokenizer

Converted = Conversation | Text


class Encoder:
    """Encodes in batches, with one tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn) -> None:
        self._train_on = train_on
        self._answers = AnswerFinder(tokenizer)
        self._spans = SpanTokenizer(tokenizer)
        self._start, self._end = text_borders(tokenizer)
        self._start_text, self._end_text = tokenizer.decode([self._start, self._end])

    def encode(self, converted: Sequence[Converted]) -> list[Encoded | RowError]:
        """Each conversation in the chat template, each text between its start and end token; or why it cannot be.

        What is trained of them decodes to the answers and what ends each, or all of a text where it names no answers.
        """
        return next(self.encode_all([converted]))

    def encode_all(self, batches: Iterable[Sequence[Converted]]) -> Iterator[list[Encoded | RowError]]:
        """The same for batch after batch; while one is tokenized, the next is taken and rendered."""
        waiting: deque[tuple[Sequence[Converted], list[Rendered | RowError], Future[list[list[int]]]]] = deque()
        with ThreadPoolExecutor(1) as executor:
            for batch in batches:
                rendered = self._render(batch)
                texts = [one.text for one in rendered if isinstance(one, Rendered)]
                waiting.append((batch, rendered, executor.submit(self._spans.ids, texts)))
                if len(waiting) > 1:
                    yield self._finished(*waiting.popleft())
            while waiting:
                yield self._finished(*waiting.popleft())

    def _finished(
        self, batch: Sequence[Converted], rendered: list[Rendered | RowError], tokenized: Future[list[list[int]]]
    ) -> list[Encoded | RowError]:
        ids = iter(tokenized.result())
        return [
            result if isinstance(result, RowError) else self._encoded(one, result, next(ids))
            for one, result in zip(batch, rendered, strict=True)
        ]

    def _encoded(self, one: Converted, rendered: Rendered, ids: list[int]) -> Encoded | RowError:
        encoded = self._spans.encoded(rendered, ids)
        is_plain = isinstance(one, Text) and not one.answers
        return self._with_borders(encoded) if is_plain and isinstance(encoded, Encoded) else encoded

    def _render(self, batch: Sequence[Converted]) -> list[Rendered | RowError]:
        conversations = [one for one in batch if isinstance(one, Conversation)]
        rendered = iter(self._answers.render_all(conversations, self._train_on))
        return [self._as_it_stands(one) if isinstance(one, Text) else next(rendered) for one in batch]

    def _as_it_stands(self, text: Text) -> Rendered:
        if not text.answers:
            return Rendered(text.text, [(0, len(text.text))])
        # A question and its answer: the borders are written into the text, as a chat template writes them.
        start = "" if text.text.startswith(self._start_text) else self._start_text
        end = "" if self._end_text and text.text.endswith(self._end_text) else self._end_text
        whole = start + text.text + end
        trained = [(first + len(start), last + len(start)) for first, last in text.answers]
        trained[-1] = (trained[-1][0], len(whole))  # so the model learns to stop
        return Rendered(whole, [(0, len(whole))] if self._train_on == "everything" else trained)

    def _with_borders(self, encoded: Encoded) -> Encoded:
        """A plain text with its start and end token, all of it trained.

        Texts made for another program often have them already.
        """
        ids = encoded.input_ids
        start = [] if ids[: len(self._start)] == self._start else self._start
        end = [] if self._end and ids[-1:] == self._end else self._end
        ids = [*start, *ids, *end]
        return Encoded(encoded.text, ids, [(0, len(ids))])


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Converted], train_on: TrainOn
) -> list[Encoded | RowError]:
    """What an `Encoder` made for these alone gives."""
    return Encoder(tokenizer, train_on).encode(conversations)


def text_borders(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that stand before a plain text, as the tokenizer has it, and the end token behind it."""
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    with_special: list[int] = tokenizer("a")["input_ids"]
    found = next(i for i in range(len(with_special) + 1) if with_special[i : i + len(plain)] == plain)
    end = tokenizer.eos_token_id
    return with_special[:found], [] if end is None else [end]
