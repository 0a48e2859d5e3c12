"""Talks to a base model with or without a LoRA: one model in memory at a time, loaded at the first message and kept.

torch and transformers are imported by the thread that answers, so that a page that only offers a chat opens fast.
"""

from __future__ import annotations

import gc
import itertools
import logging
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.adapters import adapter_folder
from training.base_models import local_base_model
from training.begun_here import was_begun_here
from training.errors import UserError
from training.formats import Message
from training.libraries import load_libraries
from training.paths import Folders
from training.runs import find_run, is_adapter
from training.sampling import Sampling
from training.settings import Precision, Settings
from training.supervisor import active_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from training.generation import Answer, Prompt

log = logging.getLogger(__name__)
PUT_AWAY = (
    "A training has started and needs the memory, so the model was put away; it is loaded again with your next message."
)


@dataclass(frozen=True)
class ChatModel:
    """What to talk to: a base model, and on it the final adapter of a run, or the one of its checkpoint at a step."""

    base_model: str
    adapter: str | None = None
    checkpoint: int | None = None
    precision: Precision = "16-bit"


@dataclass(frozen=True)
class Reply:
    """An answer as far as it is there, and in words what is being done or was done."""

    text: str = ""
    status: str = ""


def checked(messages: list[Message]) -> list[Message]:
    """The conversation as a template takes it: an optional system prompt, answered questions, and the new one.

    Questions that got no answer are left out, because many templates refuse two in a row. Raises UserError when the
    last message is not a question.
    """
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise UserError("The message is empty: type something to say.")
    system = [m for m in messages[:1] if m["role"] == "system" and m["content"].strip()]
    turns = [m for m in messages if m["role"] != "system"]
    kept: list[Message] = []
    for question, answer in itertools.pairwise(turns):
        if question["role"] == "user" and answer["role"] == "assistant" and answer["content"].strip():
            kept += [question, answer]
    return [*system, *kept, turns[-1]]


@dataclass
class _Job:
    """One question on its way to the thread that answers it, and the queue on which the answer comes back."""

    what: ChatModel
    messages: list[Message]
    sampling: Sampling
    with_adapter: bool
    stop_event: threading.Event
    closed: threading.Event = field(default_factory=threading.Event)
    pushed_out: bool = False  # by a training, which needs the memory
    remark: str = ""  # what there is to say beside how long it took
    outbox: queue.SimpleQueue[Reply | Exception | None] = field(default_factory=queue.SimpleQueue)

    def stopped(self) -> bool:
        return self.stop_event.is_set() or self.closed.is_set()

    def show(self, status: str, text: str = "") -> None:
        self.outbox.put(Reply(text, status))

    def show_stopped(self) -> None:
        self.show(PUT_AWAY if self.pushed_out else "Stopped.")

    def push_out(self) -> None:
        """End it in favour of a training; what is asked together with it ends too."""
        self.pushed_out = True
        self.stop_event.set()


@dataclass
class _Loaded:
    """The model in memory, with an adapter on it or not, and what it was made of.

    `base` is where its weights come from and in which precision; `written` is when the adapter was saved, which another
    training under its name changes.
    """

    base: tuple[str, Precision]
    adapter: Path | None
    written: int
    model: Any
    tokenizer: PreTrainedTokenizerBase


class Chat:
    """Answers conversations with the one model it keeps. Whoever asks while it answers another waits their turn."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._jobs: list[_Job] = []  # under way or waiting for their turn
        self._giving_way = 0  # how many trainings are about to take the memory
        self._jobs_lock = threading.Lock()
        self.put_away = False  # the model made room for a training and was not loaded again since

    def reply(
        self,
        what: ChatModel,
        messages: list[Message],
        sampling: Sampling,
        *,
        with_adapter: bool = True,
        stop_event: threading.Event | None = None,
    ) -> Iterator[Reply]:
        """The answer, growing; the last one yielded is whole. `with_adapter=False` lets the base model answer alone.

        Setting `stop_event`, or closing the iterator, ends it after the token at hand. Raises UserError.
        """
        job = _Job(what, checked(messages), sampling.settled(), with_adapter, stop_event or threading.Event())
        # The thread owns the lock, so a reader who walks away cannot keep it.
        threading.Thread(target=self._work, args=(job,), name="chat", daemon=True).start()
        try:
            while (item := job.outbox.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            job.closed.set()

    def unload(self) -> None:
        """Free the model's memory, once the answer under way is done."""
        with self._lock:
            self._drop()

    def give_way(self) -> None:
        """Free the model's memory for a training: answers under way end after the token at hand."""
        with self._jobs_lock:
            self._giving_way += 1
            for job in self._jobs:
                job.push_out()
        try:
            with self._lock:
                self.put_away = self.put_away or self._loaded is not None
                self._drop()
        finally:
            with self._jobs_lock:
                self._giving_way -= 1

    def _work(self, job: _Job) -> None:
        """Answer one job in a thread of its own; whatever goes wrong reaches the reader."""
        with self._jobs_lock:
            self._jobs.append(job)
            if self._giving_way:
                job.push_out()
        try:
            if not self._lock.acquire(blocking=False):
                job.show("Waiting for the answer to another chat ...")
                while not self._lock.acquire(timeout=0.2):
                    if job.stopped():
                        job.show_stopped()
                        return
            try:
                self._answer(job)
            finally:
                self._lock.release()
        except UserError as error:
            job.outbox.put(error)
        except Exception as error:
            log.exception("answering failed")
            job.outbox.put(error)
        finally:
            with self._jobs_lock:
                self._jobs.remove(job)
            job.outbox.put(None)

    def _answer(self, job: _Job) -> None:
        try:
            loaded = self._load(job)
            if job.stopped():
                job.show_stopped()
            else:
                _generate(loaded, job)
            return
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            log.exception("answering ran out of memory")
        # Out here, because the error above holds on to the memory that is to be freed.
        self._drop()
        raise UserError(
            "Memory ran out: load the model in 4-bit, choose a smaller one, shorten the conversation, "
            "or wait until a running training has ended."
        )

    def _load(self, job: _Job) -> _Loaded:
        """The model of the job: the one in memory, or its base with another adapter, or one loaded anew."""
        what = job.what
        settings = self._settings(what)
        source = local_base_model(self._folders, what.base_model, run_code=settings.trust_remote_code)
        adapter = adapter_folder(self._folders, what.adapter, what.checkpoint) if what.adapter else None
        if adapter and not is_adapter(adapter):  # full fine-tuning left a whole model
            source, adapter = str(adapter) if job.with_adapter else source, None
        base = source, what.precision
        # A whole model changes its files' times too when another is trained under its name.
        written = (adapter or Path(source)).stat().st_mtime_ns if adapter or Path(source).is_dir() else 0
        loaded = self._loaded
        if loaded and (loaded.base, loaded.adapter, loaded.written) == (base, adapter, written):
            return loaded
        if training := active_run(self._folders):
            job.remark = f"The training of '{training.name}' shares the memory with the model and is slower meanwhile."
        name = what.adapter if loaded and loaded.base == base and adapter else what.base_model
        job.show(f"Loading {name} ... {job.remark}".strip())
        load_libraries()
        from training import model as models

        # Forgotten until all has gone well: an adapter that fails halfway leaves its base unfit for use.
        self._loaded = None
        tokenizer = self._tokenizer(source, what, settings)
        model = models.without_adapter(loaded.model) if loaded and loaded.base == base else None
        if model is None:
            loaded = None
            self._drop()
            model = models.load_base(source, settings)
        if adapter:
            models.fit_embeddings(model, tokenizer)
            model = models.load_adapter(model, adapter)
        self._loaded, self.put_away = _Loaded(base, adapter, written, model.eval(), tokenizer), False
        return self._loaded

    def _settings(self, what: ChatModel) -> Settings:
        """How to load: code of the model's own runs only where it was allowed to in the training."""
        try:
            trusted = bool(what.adapter) and find_run(self._folders, str(what.adapter)).settings().trust_remote_code
            trusted = trusted and was_begun_here(self._folders.loras / str(what.adapter))
        except UserError:
            trusted = False  # the adapter comes from elsewhere
        return Settings(precision=what.precision, trust_remote_code=trusted)

    def _tokenizer(self, source: str, what: ChatModel, settings: Settings) -> PreTrainedTokenizerBase:
        """With the template of the training: the one saved with the adapter, else what the training would take."""
        from training.chat_templates import OWN, use_template
        from training.model import load_tokenizer

        run = find_run(self._folders, what.adapter) if what.adapter else None
        if run and run.has_tokenizer():
            tokenizer = load_tokenizer(str(run.folder), trust_remote_code=settings.trust_remote_code)
            if tokenizer.chat_template:
                return tokenizer
        tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
        use_template(tokenizer, self._folders, OWN)
        return tokenizer

    def _drop(self) -> None:
        self._loaded = None
        gc.collect()
        if "torch" in sys.modules:
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _generate(loaded: _Loaded, job: _Job) -> None:
    """Stream the answer into the job, and at its end what there is to say about it."""
    from training.generation import make_prompt, write_answer

    model, tokenizer = loaded.model, loaded.tokenizer
    prompt = make_prompt(model, tokenizer, job.messages, job.sampling.max_tokens)
    alone: AbstractContextManager[Any] = nullcontext()
    if loaded.adapter and not job.with_adapter:
        alone = model.disable_adapter()
    job.show("Writing ...")
    with alone:
        answer = write_answer(
            model, tokenizer, prompt, job.sampling, job.stopped, lambda text: job.show("Writing ...", text)
        )
    said = PUT_AWAY if job.pushed_out else f"{_summary(prompt, answer, job.stopped())} {job.remark}".strip()
    job.show(said, answer.text)


def _summary(prompt: Prompt, answer: Answer, stopped: bool) -> str:
    tokens = "1 token" if answer.tokens == 1 else f"{answer.tokens} tokens"
    parts = [f"{tokens}, {answer.tokens / max(answer.seconds, 1e-3):,.0f} a second."]
    if stopped and not answer.ended:
        parts.insert(0, "Stopped.")
    elif not answer.ended:
        parts.append("It was cut off there: raise Max tokens for more.")
    if count := prompt.turns_left_out:
        many = "turn was" if count == 1 else f"{count} turns were"
        parts.append(f"The model reads {prompt.context:,} tokens at once, so the oldest {many} left out.")
    return " ".join(parts)


def _out_of_memory(error: Exception) -> bool:
    import torch

    # The CPU's allocator has no exception class of its own.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
