"""Talks to a base model with or without a LoRA: one question at a time, all answered by one thread."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from training.chat_models import ChatModel, ChatModels
from training.errors import UserError
from training.formats import Message
from training.paths import Folders
from training.sampling import Sampling
from training.supervisor import active_run

if TYPE_CHECKING:
    from training.generation import Answer, Prompt, Speaker

log = logging.getLogger(__name__)
PUT_AWAY = (
    "A training has started and needs the memory, so the model was put away; it is loaded again with your next message."
)
_SECONDS_BETWEEN_LOOKS = 0.2  # whether a question that waits for its turn was stopped


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
    _taken: threading.Lock = field(default_factory=threading.Lock)
    pushed_out: bool = False  # by a training, which needs the memory
    remark: str = ""  # what there is to say beside how long it took
    outbox: queue.SimpleQueue[Reply | Exception | None] = field(default_factory=queue.SimpleQueue)

    def stopped(self) -> bool:
        return self.stop_event.is_set() or self.closed.is_set()

    def take(self) -> bool:
        """Whether it is the caller who answers it, or says that it was stopped before its turn came."""
        return self._taken.acquire(blocking=False)

    def next(self) -> Reply | Exception | None:
        """What comes next; None behind the last. One that is stopped before its turn comes ends here."""
        while True:
            try:
                return self.outbox.get(timeout=_SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                if self.stopped() and self.take():
                    self.show_stopped()
                    self.outbox.put(None)

    def show(self, status: str, text: str = "") -> None:
        self.outbox.put(Reply(text, status))

    def show_stopped(self) -> None:
        self.show(PUT_AWAY if self.pushed_out else "Stopped.")

    def push_out(self) -> None:
        """End it in favour of a training; what is asked together with it ends too."""
        self.pushed_out = True
        self.stop_event.set()


class Chat:
    """Answers conversations with the one model it keeps. Whoever asks while it answers another waits their turn."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._lock = threading.Lock()
        self._models = ChatModels(folders)
        self._jobs: list[_Job] = []  # under way or waiting for their turn
        self._asked: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None  # started with the first question
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
        self._hand_in(job)
        try:
            while (item := job.next()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            job.closed.set()
            with self._jobs_lock:
                self._jobs.remove(job)

    def unload(self) -> None:
        """Free the model's memory, once the answer under way is done."""
        with self._lock:
            self._models.drop()

    def give_way(self) -> None:
        """Free the model's memory for a training: answers under way end after the token at hand."""
        with self._jobs_lock:
            self._giving_way += 1
            for job in self._jobs:
                job.push_out()
        try:
            with self._lock:
                self.put_away = self.put_away or self._models.loaded is not None
                self._models.drop()
        finally:
            with self._jobs_lock:
                self._giving_way -= 1

    def _hand_in(self, job: _Job) -> None:
        with self._jobs_lock:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="chat", daemon=True)
                thread.start()  # which fails where memory has run out: nothing was promised yet, and the next may try
                self._thread = thread
            if self._jobs or self._lock.locked():
                job.show("Waiting for the answer to another chat ...")
            self._jobs.append(job)
            if self._giving_way:
                job.push_out()
            self._asked.put(job)

    def _work(self) -> None:
        """Answer all that is asked, always in this thread: each new one would have torch set up its threads anew.

        It owns the lock, so a reader who walks away cannot keep it.
        """
        while True:
            job = self._asked.get()
            with self._lock:
                if job.take():
                    self._finish(job)
            del job  # with all it holds, before the wait for the next

    def _finish(self, job: _Job) -> None:
        """Answer it; whatever goes wrong reaches the reader."""
        try:
            if job.stopped():  # before its turn: a training may need the memory that loading for it would take
                job.show_stopped()
            else:
                self._answer(job)
        except UserError as error:
            job.outbox.put(error)
        except Exception as error:
            log.exception("answering failed")
            job.outbox.put(error)
        finally:
            job.outbox.put(None)

    def _answer(self, job: _Job) -> None:
        if self._answered(job):
            return
        # Out here, because the error holds on to the memory that is to be freed.
        if (loaded := self._models.loaded) and loaded.clear():
            log.info("trying again without what was kept for other answers")
            if self._answered(job):
                return
        self._models.drop()
        raise UserError(
            "Memory ran out: load the model in 4-bit, choose a smaller one, shorten the conversation, "
            "or wait until a running training has ended."
        )

    def _answered(self, job: _Job) -> bool:
        """Answer; False when memory ran out."""
        try:
            speaker = self._ready(job)
            if job.stopped():
                job.show_stopped()
            else:
                _generate(speaker, job)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            log.exception("answering ran out of memory")
            return False
        return True

    def _ready(self, job: _Job) -> Speaker:
        def loading(name: str) -> None:
            if training := active_run(self._folders):
                job.remark = (
                    f"The training of '{training.name}' shares the memory with the model and is slower meanwhile."
                )
            job.show(f"Loading {name} ... {job.remark}".strip())

        speaker = self._models.ready(job.what, with_adapter=job.with_adapter, loading=loading)
        self.put_away = False
        return speaker


def _generate(speaker: Speaker, job: _Job) -> None:
    """Stream the answer into the job, and at its end what there is to say about it."""
    from training.generation import make_prompt, write_answer

    prompt = make_prompt(speaker, job.messages, job.sampling.max_tokens)
    job.show("Writing ...")
    answer = write_answer(speaker, prompt, job.sampling, job.stopped, lambda text: job.show("Writing ...", text))
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
