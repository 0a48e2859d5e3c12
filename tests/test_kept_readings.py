"""What was read of a conversation is kept for its next turn, and changes no digit of what comes out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tests.architectures import ARCHITECTURES
from tests.tiny import CHATML, FORGETFUL, make_model, make_tokenizer
from training.formats import Message
from training.generation import Speaker, end_tokens, make_prompt, write_answer
from training.kept_readings import Reading, Readings, RoomyLayer, read_ahead, roomy_cache
from training.sampling import Sampling

KEY = (Path("loras/a"), 1)
GREEDY = Sampling(temperature=0, max_tokens=12)


def talk(turns: int, system: str = "") -> list[Message]:
    """So many questions, all but the last answered."""
    said: list[Message] = [{"role": "system", "content": system}] if system else []
    for number in range(turns):
        said.append({"role": "user", "content": f"Question {number}?"})
        said.append({"role": "assistant", "content": f"<think>why</think>Answer {number}!"})
    return said[:-1]


class Reader:
    """A speaker that notes how many tokens its model reads at a time."""

    def __init__(self, model: PreTrainedModel | None = None, template: str = CHATML) -> None:
        tokenizer = make_tokenizer(template)
        self.model = (model or make_model(len(tokenizer))).eval()
        self.speaker = Speaker(self.model, tokenizer, end_tokens(self.model, tokenizer), Readings())
        self.pieces: list[int] = []
        self.model.base_model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.pieces.append(kwargs["input_ids"].shape[1])

    def ask(self, messages: list[Message], sampling: Sampling = GREEDY, key: Any = None) -> str:
        self.pieces.clear()
        speaker = replace(self.speaker, key=key)
        prompt = make_prompt(speaker, messages, sampling.max_tokens)
        return write_answer(speaker, prompt, sampling, lambda: False, lambda _: None).text

    def read(self) -> int:
        """Tokens of the prompt that the last answer had read, the answer's own aside."""
        return sum(piece for piece in self.pieces if piece > 1)


def test_a_roomy_layer_holds_what_a_plain_one_does() -> None:
    roomy, plain = RoomyLayer(), DynamicLayer()
    for tokens in (5, 1, 1, 300, 1, 400):
        keys, values = torch.randn(1, 2, tokens, 8), torch.randn(1, 2, tokens, 4)
        for mine, its in zip(roomy.update(keys, values), plain.update(keys, values), strict=True):
            assert torch.equal(mine, its)
        for layer in (roomy, plain):
            layer.crop(-2)
        assert roomy.get_seq_length() == plain.get_seq_length()
    place = roomy.keys.data_ptr()
    roomy.update(keys[:, :, :1], values[:, :, :1])
    assert roomy.keys.data_ptr() == place, "there was room"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, max_tokens=12, seed=3)])
def test_a_kept_beginning_changes_nothing(sampling: Sampling) -> None:
    kept = Reader()
    for turns in (1, 2, 3):
        fresh = Reader(kept.model)
        fresh.model.base_model._forward_pre_hooks.clear()
        fresh.model.base_model.register_forward_pre_hook(kept._note, with_kwargs=True)
        assert kept.ask(talk(turns), sampling) == fresh.ask(talk(turns), sampling), turns
        mine, its = kept.speaker.readings._kept[-1].cache, fresh.speaker.readings._kept[-1].cache
        for own, other in zip(mine.layers, its.layers, strict=True):
            assert torch.equal(own.keys, other.keys) and torch.equal(own.values, other.values), "to the last digit"


def test_a_next_turn_reads_only_what_is_new() -> None:
    reader = Reader()
    lengths = [len(make_prompt(reader.speaker, talk(turns), 12).ids) for turns in (1, 2, 3)]
    read = []
    for turns in (1, 2, 3):
        reader.ask(talk(turns))
        read.append(reader.read())
    assert read == [lengths[0], lengths[1] - lengths[0], lengths[2] - lengths[1]]
    reader.ask(talk(3))
    assert reader.read() == lengths[2] - lengths[1], "the same question again"
    reader.ask(talk(1))
    assert reader.read() == lengths[0], "a new conversation"


def test_an_answer_is_the_same_whether_it_is_the_first_or_asked_again() -> None:
    reader, drawn = Reader(), Sampling(temperature=1.5, max_tokens=12, seed=3)
    reader.ask(talk(2))
    assert reader.ask(talk(3), drawn) == reader.ask(talk(3), drawn) == Reader().ask(talk(3), drawn)


def test_nobody_else_reads_on() -> None:
    """Neither another adapter, nor one trained again, nor after another system prompt or a changed text."""
    reader = Reader()
    reader.ask(talk(2), key=KEY)
    changed = talk(3)
    changed[0] = {"role": "user", "content": "Question X?"}
    for messages, key in ((talk(3), None), (talk(3), (KEY[0], 2)), (changed, KEY)):
        reader.ask(messages, key=key)
        assert reader.read() == len(make_prompt(reader.speaker, messages, 12).ids), (messages, key)
    reader.ask(talk(3), key=KEY)
    assert reader.read() < len(make_prompt(reader.speaker, talk(3), 12).ids), "it was kept meanwhile"
    reader.ask(talk(3, "Be brief."), key=KEY)
    assert reader.read() == len(make_prompt(reader.speaker, talk(3, "Be brief."), 12).ids)


def test_what_was_read_in_other_pieces_is_not_shared() -> None:
    reading = Reading(None, [1, 2, 3, 4, 5, 6], [2, 4, 6], roomy_cache(make_model(50)))  # type: ignore[arg-type]
    longer = [1, 2, 3, 4, 5, 6, 7, 8]
    assert reading.shared(longer, [2, 4, 6, 8]) == 6
    assert reading.shared(longer, [2, 5, 6, 8]) == 2
    assert reading.shared(longer, [4, 6, 8]) == 0
    assert reading.shared([1, 2, 3, 9, 5, 6, 7, 8], [2, 4, 6, 8]) == 2
    assert reading.shared([1, 2, 3, 4, 5, 6], [2, 4, 6]) == 4, "the last piece is read again"


def test_only_few_are_kept() -> None:
    reader = Reader()
    for number in range(6):
        reader.ask(talk(1, f"Be {number}."))
    assert len(reader.speaker.readings._kept) == 4
    assert reader.speaker.readings.clear() and not reader.speaker.readings.clear()


def test_a_template_that_changes_earlier_turns_is_read_anew() -> None:
    now = CHATML.replace("message['content'] +", "('Now: ' if loop.last else '') + message['content'] +")
    reader = Reader(template=now)
    for turns in (1, 2, 3):
        assert reader.ask(talk(turns)) == Reader(template=now).ask(talk(turns))
        assert reader.read() == len(make_prompt(reader.speaker, talk(turns), 12).ids)
    forgetful = Reader(template=FORGETFUL)
    forgetful.ask(talk(2))
    forgetful.ask(talk(3))
    assert forgetful.read() < len(make_prompt(forgetful.speaker, talk(3), 12).ids), "thoughts were gone before"


def test_stopping_while_reading_keeps_nothing_half_read() -> None:
    reader = Reader()
    prompt = make_prompt(reader.speaker, talk(3), 12)
    answer = write_answer(reader.speaker, prompt, GREEDY, lambda: True, lambda _: None)
    assert answer.tokens == 1
    assert not reader.speaker.readings._kept
    reading = Reading(None, prompt.ids, prompt.ends, roomy_cache(reader.model))  # type: ignore[arg-type]
    assert not read_ahead(reader.model, reading, lambda: True) and read_ahead(reader.model, reading, lambda: False)
    assert reading.cache.get_seq_length() == prompt.ends[-2]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_family_answers_as_generate_does(name: str) -> None:
    torch.manual_seed(0)
    config = ARCHITECTURES[name]
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.2)
    tokenizer = make_tokenizer()
    speaker = Speaker(model, tokenizer, end_tokens(model, tokenizer), Readings())
    for turns in (1, 2):
        messages: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}] * turns
        prompt = make_prompt(speaker, messages[:-1], 8)
        ids = torch.tensor([prompt.ids])
        plain = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=258,
        )
        expected = tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True).strip()
        answer = write_answer(speaker, prompt, GREEDY, lambda: False, lambda _: None)
        assert answer.text == expected
        assert len(prompt.ends) == turns
    keeps = name not in ("gemma", "mistral", "mamba")  # sliding windows, and a state
    assert bool(speaker.readings._kept) == keeps


def test_a_model_with_its_own_code_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(50)
    assert roomy_cache(model)
    monkeypatch.setattr(LlamaForCausalLM, "is_remote_code", lambda _: True)
    assert roomy_cache(model) is None


def test_a_tokenizer_without_places_reads_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    monkeypatch.setattr(type(reader.speaker.tokenizer), "is_fast", False)
    prompt = make_prompt(reader.speaker, talk(3), 12)
    assert prompt.ends == [len(prompt.ids)]
