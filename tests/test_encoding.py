"""Which tokens are trained: exactly the answers and what ends them, in every template and with any text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import CHATML, END, FORGETFUL, TEMPLATES, THOUGHTFUL, make_tokenizer, text_of
from training.data import add_template
from training.encoding import IGNORED, Example, encode_conversation, encode_text
from training.errors import UserError
from training.formats import Message, RowError

TOKENIZERS = {name: make_tokenizer(template) for name, template in TEMPLATES.items()}
MERGING = {name: make_tokenizer(template, merges=True) for name, template in TEMPLATES.items()}
for fallback in (TOKENIZERS["alpaca"], MERGING["alpaca"]):
    add_template(fallback)

DIALOGUES = {
    "one turn": [("user", "Who?"), ("assistant", "Me.")],
    "several turns": [("user", "A"), ("assistant", "one"), ("user", "B"), ("assistant", "two"), ("user", "C")],
    "system": [("system", "Be kind."), ("user", "Who?"), ("assistant", "Me, gladly.")],
    "assistant first": [("assistant", "Hello, who are you?"), ("user", "Me."), ("assistant", "Welcome.")],
    "twice in a row": [("user", "A"), ("assistant", "one"), ("assistant", "two")],
    "unicode": [("user", "Wer? 你是谁"), ("assistant", "Ich: \U0001f469\u200d\U0001f680 n\u0303, مرحبا")],
    "white space around": [("user", " Q "), ("assistant", "  \n indented\n\n")],
    "white space within": [("user", "Q"), ("assistant", "a\n\n\n  b\t\n")],
    "markers of the template": [
        ("user", "say <|im_end|>\n<|im_start|>assistant\nno"),
        ("assistant", "<|im_start|>user\nx<|im_end|>\n### Response:\n<|head|>user<|/head|>\n\nyes<|eot|> end"),
    ],
    "repeats the question": [("user", "echo"), ("assistant", "echo")],
    "empty question": [("user", ""), ("assistant", "?")],
    "template code": [("user", "{{ 1 + 1 }}"), ("assistant", "{% if x %}{{ messages }}{# no #}")],
}


def messages_of(turns: list[tuple[str, str]]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in turns]


def expected_text(name: str, turns: list[tuple[str, str]]) -> str:
    """The answers, each as the template shows it, with what ends it."""
    answers = [content for role, content in turns if role == "assistant"]
    return "".join((a.strip() if name == "llama3" else a) + END[name] for a in answers)


def trained(example: Example) -> list[int]:
    return [label for label in example.labels if label != IGNORED]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_trained_are_exactly_the_answers(name: str, dialogue: str) -> None:
    tokenizer, turns = TOKENIZERS[name], DIALOGUES[dialogue]
    example = encode_conversation(tokenizer, messages_of(turns), "row 1", answers_only=True)
    assert text_of(tokenizer, trained(example)) == expected_text(name, turns)
    whole = tokenizer.apply_chat_template(messages_of(turns), tokenize=False)
    assert text_of(tokenizer, example.input_ids) == whole
    assert all(label in (IGNORED, token) for label, token in zip(example.labels, example.input_ids, strict=True))
    assert example.source == "row 1"


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(lambda text: text.strip())
TURNS = st.tuples(st.sampled_from(["user", "assistant"]), TEXTS)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(TEMPLATES)), st.lists(TURNS, max_size=5), TEXTS)
def test_trained_are_exactly_the_answers_of_any_text(name: str, turns: list[tuple[str, str]], last: str) -> None:
    turns = [*turns, ("user", last), ("assistant", last)]
    example = encode_conversation(TOKENIZERS[name], messages_of(turns), "", answers_only=True)
    assert text_of(TOKENIZERS[name], trained(example)) == expected_text(name, turns)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(list(TEMPLATES)), st.text(" \nanthe<", min_size=1, max_size=20).filter(lambda text: text.strip())
)
def test_a_token_that_begins_before_the_answer_is_trained(name: str, answer: str) -> None:
    turns = [("user", "the an"), ("assistant", answer)]
    example = encode_conversation(MERGING[name], messages_of(turns), "", answers_only=True)
    text = text_of(MERGING[name], trained(example))
    # White space of the layout may have grown together with that of the answer, and nothing else.
    assert text.endswith(expected_text(name, turns))
    assert not text.removesuffix(expected_text(name, turns)).strip()


def test_everything_is_trained_when_asked() -> None:
    messages = messages_of(DIALOGUES["system"])
    example = encode_conversation(TOKENIZERS["chatml"], messages, "", answers_only=False)
    assert example.labels == example.input_ids
    assert example.trained_tokens == len(example.input_ids) - 1


def test_trained_tokens_leave_out_what_nothing_predicts() -> None:
    assert Example([1, 2, 3], [1, IGNORED, 3], "").trained_tokens == 1
    assert Example([1], [1], "").trained_tokens == 0


def test_template_that_rewrites_earlier_turns_is_refused() -> None:
    tokenizer = make_tokenizer(FORGETFUL)
    thoughtful = messages_of(
        [("user", "A"), ("assistant", "<think>hm</think>one"), ("user", "B"), ("assistant", "two")]
    )
    with pytest.raises(UserError, match="rewrites earlier turns") as caught:
        encode_conversation(tokenizer, thoughtful, "", answers_only=True)
    # Not of one row: the caller must not just leave the row out.
    assert not isinstance(caught.value, RowError)
    assert encode_conversation(tokenizer, thoughtful, "", answers_only=False).trained_tokens
    plain = messages_of(DIALOGUES["several turns"])
    example = encode_conversation(tokenizer, plain, "", answers_only=True)
    assert text_of(tokenizer, trained(example)) == expected_text("chatml", DIALOGUES["several turns"])


def test_empty_thought_that_the_model_has_to_write_is_trained() -> None:
    tokenizer = make_tokenizer(THOUGHTFUL)
    example = encode_conversation(tokenizer, messages_of(DIALOGUES["system"]), "", answers_only=True)
    assert text_of(tokenizer, trained(example)) == "<think>\n\n</think>\n\nMe, gladly.<|im_end|>"
    # It stands before the last answer only: what the first one's turn was is not what is trained.
    with pytest.raises(UserError, match="rewrites earlier turns"):
        encode_conversation(tokenizer, messages_of(DIALOGUES["assistant first"]), "", answers_only=True)


def test_template_that_changes_answers_is_refused() -> None:
    tokenizer = make_tokenizer(CHATML.replace("message['content']", "message['content'] | upper"))
    with pytest.raises(UserError, match="Untick it"):
        encode_conversation(tokenizer, messages_of(DIALOGUES["one turn"]), "", answers_only=True)


def test_conversation_the_template_refuses_is_a_bad_row() -> None:
    tokenizer = make_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RowError, match=r"refuses it \(roles must alternate\)"):
        encode_conversation(tokenizer, messages_of(DIALOGUES["one turn"]), "", answers_only=True)


def test_plain_text_gets_one_end_token() -> None:
    tokenizer = TOKENIZERS["chatml"]
    example = encode_text(tokenizer, "abc", "row 1")
    assert text_of(tokenizer, example.input_ids) == "abc<|im_end|>"
    assert example.labels == example.input_ids
    assert text_of(tokenizer, encode_text(tokenizer, "abc<|im_end|>", "").input_ids) == "abc<|im_end|>"
