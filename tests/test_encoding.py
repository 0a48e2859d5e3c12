"""Which tokens are trained: exactly the answers and what ends them, with any text and any kind of tokenizer."""

from __future__ import annotations

from functools import cache
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.tiny import (
    CHATML,
    END,
    FORGETFUL,
    KINDS,
    TEMPLATES,
    THOUGHTFUL,
    LetterTokenizer,
    make_tokenizer,
    make_tokenizer_like,
    text_of,
)
from training.answers import TrainOn
from training.chat_templates import OWN, use_template
from training.encoding import Encoder, encode_conversations, text_borders
from training.formats import Conversation, Message, RowError, Text
from training.paths import Folders
from training.token_spans import Encoded


@cache
def tokenizer_of(template: str, *, merges: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(TEMPLATES[template], merges=merges)
    use_template(tokenizer, Folders(), OWN)
    return tokenizer


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


def conversation_of(turns: list[tuple[str, str]]) -> Conversation:
    return Conversation([Message(role=role, content=content) for role, content in turns])


def encoded(
    tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]] | Text, train_on: TrainOn = "answers"
) -> Encoded:
    converted = turns if isinstance(turns, Text) else conversation_of(turns)
    (one,) = encode_conversations(tokenizer, [converted], train_on)
    assert isinstance(one, Encoded), one
    return one


def refused(
    tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]] | Text, train_on: TrainOn = "answers"
) -> str:
    """Why it is refused."""
    converted = turns if isinstance(turns, Text) else conversation_of(turns)
    (one,) = encode_conversations(tokenizer, [converted], train_on)
    assert isinstance(one, RowError), one
    return str(one)


def expected_texts(name: str, turns: list[tuple[str, str]]) -> list[str]:
    """The answers, each as the template shows it, with what ends it."""
    answers = [content for role, content in turns if role == "assistant"]
    return [(a.strip() if name == "llama3" else a) + END[name] for a in answers]


def trained_texts(tokenizer: PreTrainedTokenizerBase, one: Encoded) -> list[str]:
    return [text_of(tokenizer, one.input_ids[start:end]) for start, end in one.trained]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_trained_are_exactly_the_answers(name: str, dialogue: str) -> None:
    tokenizer, turns = tokenizer_of(name), DIALOGUES[dialogue]
    one = encoded(tokenizer, turns)
    assert trained_texts(tokenizer, one) == expected_texts(name, turns)
    whole = tokenizer.apply_chat_template(conversation_of(turns).messages, tokenize=False)
    assert one.text == whole == text_of(tokenizer, one.input_ids)


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(lambda text: text.strip())
TURNS = st.tuples(st.sampled_from(["user", "assistant"]), TEXTS)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(TEMPLATES)), st.lists(TURNS, max_size=5), TEXTS)
def test_trained_are_exactly_the_answers_of_any_text(name: str, turns: list[tuple[str, str]], last: str) -> None:
    turns = [*turns, ("user", last), ("assistant", last)]
    tokenizer = tokenizer_of(name)
    assert trained_texts(tokenizer, encoded(tokenizer, turns)) == expected_texts(name, turns)
    assert trained_texts(tokenizer, encoded(tokenizer, turns, "last answer")) == expected_texts(name, turns)[-1:]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(TEMPLATES)), st.text(" \nanthe<", min_size=1, max_size=20).filter(lambda text: text.strip())
)
def test_no_token_reaches_over_the_border_of_an_answer(name: str, answer: str) -> None:
    """White space of the template would grow together with that of the answer: at chat it never does."""
    turns = [("user", "the an"), ("assistant", answer), ("user", answer), ("assistant", "the")]
    tokenizer = tokenizer_of(name, merges=True)
    one = encoded(tokenizer, turns)
    assert trained_texts(tokenizer, one) == expected_texts(name, turns)
    assert text_of(tokenizer, one.input_ids) == one.text


def test_everything_is_trained_when_asked() -> None:
    one = encoded(tokenizer_of("chatml"), DIALOGUES["system"], "everything")
    assert one.trained == [(0, len(one.input_ids))]


def test_template_that_leaves_thoughts_out_refuses_to_train_on_them() -> None:
    tokenizer = make_tokenizer(FORGETFUL)
    thoughtful = [("user", "A"), ("assistant", "<think>hm</think>one"), ("user", "B"), ("assistant", "two")]
    assert "leaves out the thoughts of turn 2" in refused(tokenizer, thoughtful)
    assert trained_texts(tokenizer, encoded(tokenizer, thoughtful, "last answer")) == ["two<|im_end|>"]
    assert "leaves out the thoughts of turn 2" in refused(tokenizer, thoughtful, "everything")
    plain = DIALOGUES["several turns"]
    assert trained_texts(tokenizer, encoded(tokenizer, plain)) == expected_texts("chatml", plain)


def test_empty_thought_that_the_model_has_to_write_is_trained() -> None:
    tokenizer = make_tokenizer(THOUGHTFUL)
    one = encoded(tokenizer, DIALOGUES["system"])
    assert trained_texts(tokenizer, one) == ["<think>\n\n</think>\n\nMe, gladly.<|im_end|>"]


def test_template_that_changes_answers_is_refused() -> None:
    tokenizer = make_tokenizer(CHATML.replace("message['content']", "message['content'] | upper"))
    assert "changes the texts" in refused(tokenizer, DIALOGUES["one turn"])
    assert encoded(tokenizer, DIALOGUES["one turn"], "everything").trained


def test_conversation_the_template_refuses_is_a_bad_row() -> None:
    tokenizer = make_tokenizer("{{ raise_exception('roles must alternate') }}")
    assert "refuses it (roles must alternate)" in refused(tokenizer, DIALOGUES["one turn"])
    assert "refuses it" in refused(tokenizer, DIALOGUES["one turn"], "everything")


def test_conversation_without_an_answer_is_a_bad_row() -> None:
    assert "no turn is the assistant's" in refused(tokenizer_of("chatml"), [("user", "Q")])


def test_plain_text_is_trained_whole_with_one_end_token() -> None:
    tokenizer = tokenizer_of("chatml")
    one = encoded(tokenizer, Text("abc"))
    assert text_of(tokenizer, one.input_ids) == "abc<|im_end|>"
    assert one.trained == [(0, len(one.input_ids))]


# Tokenizers of other kinds

_WORDS = ["the", "then", " hen", "an eel.", "\n", "\n\n", "  ", "é", "n\u0303", "你好", "\U0001f469", "!", "x"]
SENTENCES = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=8).map("".join).filter(str.strip)
like = cache(make_tokenizer_like)
NAMED = ["chatml", "llama2", "gemma", "zephyr", "alpaca", "vicuna", "plain", "mistral"]


@cache
def named(kind: str, template: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer_like(kind)
    use_template(tokenizer, Folders(), template)
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMED), st.lists(SENTENCES, min_size=2, max_size=4))
def test_trained_tokens_are_the_answers_in_tokenizers_as_real_ones_are(
    kind: str, template: str, texts: list[str]
) -> None:
    """In any of them the trained tokens spell the answer, and all tokens the whole text; or the row is refused."""
    tokenizer = named(kind, template)
    turns = [("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(texts)]
    (one,) = encode_conversations(tokenizer, [conversation_of(turns)], "answers")
    if isinstance(one, RowError):
        assert "joins an answer" in str(one) or "writes earlier answers" in str(one)
        return
    whole = normalize("NFC", one.text)
    assert normalize("NFC", text_of(tokenizer, one.input_ids)).strip() == whole.strip()
    shown = [normalize("NFC", text).strip() for text in trained_texts(tokenizer, one)]
    answers = [normalize("NFC", text).strip() for text in texts[1::2]]
    assert len(shown) == len(answers)
    for text, answer in zip(shown, answers, strict=True):
        assert text.startswith(answer)
        end = text.removeprefix(answer).strip()
        assert end and len(end) < 20 and "the" not in end
    last = one.trained[0][0]
    for start, end in one.trained:
        assert last <= start < end <= len(one.input_ids)
        last = end


PROMPT_ENDS = ["", " ", ": ", ":", "\n", "\n\n", ":\n\n", " \n", "\n\n\n  "]
_PROMPTING = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ m.content }}{% else %}{{ PROMPT + m.content + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ PROMPT }}{% endif %}"
)


@pytest.mark.parametrize("end", PROMPT_ENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_before_an_answer_are_those_of_the_prompt_alone(kind: str, end: str) -> None:
    tokenizer = make_tokenizer_like(kind)
    tokenizer.chat_template = _PROMPTING.replace("PROMPT", repr("Hen" + end))
    for answer in ("the ant", " an", "\nan", "\n\nthe", "  the", "Yes \U0001f600", "1"):
        messages: list[Message] = [{"role": "user", "content": "the hen?"}, {"role": "assistant", "content": answer}]
        one = encoded(tokenizer, [(m["role"], m["content"]) for m in [*messages, *messages]])
        assert text_of(tokenizer, one.input_ids) == one.text
        first, last = one.trained[0]
        prompt = str(tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False))
        assert one.input_ids[:first] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert text_of(tokenizer, one.input_ids[:last]) == prompt + answer + "</s>"
        first, last = one.trained[1]
        assert text_of(tokenizer, one.input_ids[:first]) == prompt + answer + "</s>" + prompt.removeprefix("<s>")
        assert last == len(one.input_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_rows_are_never_refused(kind: str) -> None:
    for template in NAMED:
        tokenizer = named(kind, template)
        for dialogue in ("one turn", "unicode", "repeats the question", "white space within"):
            one = encoded(tokenizer, DIALOGUES[dialogue], "last answer")
            assert one.trained, (template, dialogue)


def test_normalizer_that_changes_letters() -> None:
    """It reads what it would read at chat: the trained tokens are those of the answer as it writes it."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    one = encoded(tokenizer, [("user", "WHO? \uff21"), ("assistant", "ME, ½ \ufb01ne.\u2026")])
    assert trained_texts(tokenizer, one) == ["me, 1\u20442 fine....<|im_end|>"]


@pytest.mark.parametrize("dialogue", ["one turn", "several turns", "system", "white space within", "empty question"])
def test_tokenizer_that_knows_no_places(dialogue: str) -> None:
    tokenizer = LetterTokenizer()
    tokenizer.chat_template = CHATML
    assert not tokenizer.is_fast
    turns = DIALOGUES[dialogue]
    one = encoded(tokenizer, turns)
    assert trained_texts(tokenizer, one) == expected_texts("chatml", turns)
    assert text_of(tokenizer, one.input_ids) == one.text
    assert encode_conversations(tokenizer, [], "answers") == []


# Texts and batches


@pytest.mark.parametrize("text", ["the hen", "<s>the hen", "the hen</s>", "<s>the hen</s>"])
def test_text_that_has_its_borders_already_gets_no_second_ones(text: str) -> None:
    tokenizer = like("gemma")
    one = encoded(tokenizer, Text(text))
    assert text_of(tokenizer, one.input_ids) == "<s>the hen</s>"
    assert one.trained == [(0, len(one.input_ids))]
    begin = text.index("hen")
    masked = encoded(tokenizer, Text(text, ((begin, begin + 3),)))
    assert trained_texts(tokenizer, masked) == ["hen</s>"]


def test_text_with_answers_is_trained_on_them_and_its_end() -> None:
    tokenizer = like("gemma")
    text = Text("User: the\nBot: hen\nUser: an\nBot: eel", ((15, 18), (33, 36)))
    one = encoded(tokenizer, text)
    assert trained_texts(tokenizer, one) == ["hen", "eel</s>"]
    assert one.input_ids[0] == tokenizer.bos_token_id and one.input_ids[-1] == tokenizer.eos_token_id
    whole = encoded(tokenizer, text, "everything")
    assert whole.trained == [(0, len(whole.input_ids))]
    assert text_of(tokenizer, whole.input_ids) == text_of(tokenizer, one.input_ids) == f"<s>{text.text}</s>"


@pytest.mark.parametrize("kind", KINDS)
def test_borders_of_plain_texts_are_the_tokenizers_own(kind: str) -> None:
    tokenizer = like(kind)
    start, end = text_borders(tokenizer)
    assert start == ([tokenizer.bos_token_id] if kind in ("llama", "gemma") else []) and end == [tokenizer.eos_token_id]
    one = encoded(tokenizer, Text("the hen"))
    assert one.input_ids == [*tokenizer("the hen")["input_ids"], tokenizer.eos_token_id]


def test_tokenizer_without_an_end_token() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    assert text_of(tokenizer, encoded(tokenizer, Text("abc")).input_ids) == "abc"


def test_batch_gives_each_its_own_whatever_stands_beside_it() -> None:
    tokenizer = tokenizer_of("chatml")
    rows = [conversation_of(DIALOGUES["one turn"]), conversation_of([("user", "Q")]), Text("abc"), Text("d", ((0, 1),))]
    encoder = Encoder(tokenizer, "answers")
    together = encoder.encode(rows)
    alone = [encoder.encode([row])[0] for row in rows]
    assert [str(one) for one in together] == [str(one) for one in alone]
    assert isinstance(together[1], RowError)
    batches = list(encoder.encode_all([rows, [], rows[2:]]))
    assert [str(one) for batch in batches for one in batch] == [str(one) for one in [*together, *together[2:]]]
