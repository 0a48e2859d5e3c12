"""Answers are found in what the template wrote, proved letter for letter, or the conversation is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import CHATML, FORGETFUL, make_tokenizer
from training import answers as module
from training.answers import AnswerFinder, Rendered
from training.formats import Conversation, Message, RowError
from training.layouts import sentinel
from training.settings import TrainOn


def conversation(*turns: str, thought: str | None = None) -> Conversation:
    """Questions and answers in turn."""
    messages = [Message(role="user" if n % 2 == 0 else "assistant", content=turn) for n, turn in enumerate(turns)]
    if thought is not None:
        messages[-1]["reasoning_content"] = thought
    return Conversation(messages)


def found(finder: AnswerFinder, asked: Conversation, train_on: TrainOn = "answers") -> list[str]:
    """The texts that are trained."""
    [rendered] = finder.render_all([asked], train_on)
    assert isinstance(rendered, Rendered)
    return [rendered.text[start:end] for start, end in rendered.trained]


def refusal(template: str, asked: Conversation, train_on: TrainOn = "answers") -> str:
    [refused] = AnswerFinder(make_tokenizer(template)).render_all([asked], train_on)
    assert isinstance(refused, RowError)
    return str(refused)


# Texts that look like what stands for them, or like the template's own.
ODD = [
    sentinel(0),
    sentinel(1),
    sentinel(10),
    "\ue0f0",
    "\ue0f1",
    "\ue0f00",
    "<|im_end|>\n<|im_start|>assistant\n",
    "{{ x }}",
]
ANY = st.text(min_size=1, max_size=20).filter(str.strip) | st.lists(st.sampled_from(ODD), min_size=1).map("".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(ANY, min_size=2, max_size=8))
def test_any_texts_are_found_as_they_are(texts: list[str]) -> None:
    finder = AnswerFinder(make_tokenizer(CHATML))
    asked = conversation(*texts)
    wanted = [text + "<|im_end|>" for text in texts[1::2]]
    assert found(finder, asked) == wanted
    assert found(finder, asked, "last answer") == wanted[-1:]
    (whole,) = found(finder, asked, "everything")
    assert whole.startswith("<|im_start|>user\n" + texts[0])


def test_rows_of_one_shape_need_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make_layout = module.make_layout
    monkeypatch.setattr(module, "make_layout", lambda *given: made.append(given) or make_layout(*given))
    finder = AnswerFinder(make_tokenizer(CHATML))
    for number in range(5):
        assert found(finder, conversation(f"Q{number}", f"A{number}")) == [f"A{number}<|im_end|>"]
    assert len(made) == 1
    found(finder, conversation("Q", "A", "Q", "A"))
    assert len(made) == 2
    # A blank text is another shape: templates ask whether there is one.
    found(finder, conversation(" ", "A"))
    assert len(made) == 3


def test_layouts_are_forgotten_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_LAYOUTS", 3)
    finder = AnswerFinder(make_tokenizer(CHATML))
    for _ in range(2):
        for turns in (2, 4, 6, 8, 10):
            assert len(found(finder, conversation(*("x" for _ in range(turns))))) == turns // 2
    assert len(finder._layouts) <= 3


def test_template_with_a_clock_is_rendered_anew_when_it_has_moved_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer("{{ clock }}" + CHATML)
    minutes = iter(range(100))
    finder = AnswerFinder(tokenizer)
    template = tokenizer.chat_template
    now = [0]

    def at_this_minute(**_: Any) -> str:
        return template.replace("{{ clock }}", f"{now[0]:02} ")

    monkeypatch.setattr(tokenizer, "get_chat_template", at_this_minute)
    for _ in range(3):
        now[0] = next(minutes)
        assert found(finder, conversation("Q", "A")) == ["A<|im_end|>"]


def test_trimming_templates_show_what_they_leave() -> None:
    trimming = CHATML.replace("message['content']", "message['content'] | trim")
    finder = AnswerFinder(make_tokenizer(trimming))
    assert found(finder, conversation(" Q ", "\n A b \n")) == ["A b<|im_end|>"]
    assert found(finder, conversation("Q", "A b")) == ["A b<|im_end|>"]


@pytest.mark.parametrize("change", ["upper", "replace('a', 'b')", "truncate(3)", "reverse", "escape", "first"])
def test_templates_that_change_texts_are_refused(change: str) -> None:
    template = CHATML.replace("message['content']", f"(message['content'] | {change} | string)")
    assert "changes the texts" in refusal(template, conversation("abcabc", "<aaa bbb>"))


def test_question_that_is_left_out_is_refused_and_named() -> None:
    template = CHATML.replace("in messages -%}", "in messages[1:] -%}")
    assert "leaves out turn 1 (user)" in refusal(template, conversation("Q", "A"))


def test_thoughts_that_are_left_out_are_refused_only_where_they_would_be_learnt() -> None:
    asked = conversation("Q", "<think>hm</think>one", "R", "<think>ah</think>two")
    assert "the thoughts of turn 2" in refusal(FORGETFUL, asked)
    assert found(AnswerFinder(make_tokenizer(FORGETFUL)), asked, "last answer") == ["<think>ah</think>two<|im_end|>"]
    # Reasoning in a field of its own, which this template does not know.
    assert "the thoughts of turn 2" in refusal(CHATML, conversation("Q", "A", thought="hm"))


def test_no_answer_is_a_bad_row_unless_everything_is_trained() -> None:
    asked = Conversation([Message(role="user", content="Q")])
    assert "no turn is the assistant's" in refusal(CHATML, asked)
    assert found(AnswerFinder(make_tokenizer(CHATML)), asked, "everything") == ["<|im_start|>user\nQ<|im_end|>\n"]


def test_blank_answer_is_refused() -> None:
    """The formats drop such rows already: there is nothing to learn but to be silent."""
    refusal(CHATML, conversation("Q", "", "R", "A"))


@pytest.mark.parametrize("error", ["{{ 1 / 0 }}", "{{ messages[99]['x'] }}", "{{ messages + 1 }}", "{{ none.x.y }}"])
def test_template_that_breaks_is_a_bad_row(error: str) -> None:
    assert "the chat template refuses it" in refusal(error, conversation("Q", "A"))


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 5}}}
NAMES_TOOLS = "{%- for tool in tools or [] -%}{{ tool.function.name }};{%- endfor -%}" + CHATML


def calling() -> Conversation:
    messages = [
        Message(role="user", content="How much?"),
        Message(role="assistant", content="", tool_calls=[CALL]),
        Message(role="assistant", content="Five."),
    ]
    return Conversation(messages, [TOOL])


@pytest.mark.parametrize("train_on", ["answers", "last answer", "everything"])
def test_calls_are_missed_though_the_tools_are_named(train_on: TrainOn) -> None:
    assert "leaves out the tool calls of turn 2" in refusal(NAMES_TOOLS, calling(), train_on)


def test_tools_are_missed_though_a_call_names_one() -> None:
    calls = "(message['tool_calls'] | tojson if message['tool_calls'] else message['content'])"
    assert "leaves out the tools" in refusal(CHATML.replace("message['content']", calls), calling())


@pytest.mark.parametrize("train_on", ["answers", "everything"])
def test_system_prompt_that_is_left_out_is_told_in_every_mode(train_on: TrainOn) -> None:
    asked = Conversation(
        [
            Message(role="system", content="Be kind."),
            Message(role="user", content="Q"),
            Message(role="assistant", content="A"),
        ]
    )
    template = CHATML.replace("in messages -%}", "in messages if message['role'] != 'system' -%}")
    assert "leaves out turn 1 (system)" in refusal(template, asked, train_on)


def test_next_turns_header_is_never_an_answers_end() -> None:
    template = (
        "{%- for message in messages -%}{{ '<|head|>' + message['role'] + '<|/head|>' + message['content'] }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|head|>assistant<|/head|>' }}"
        "{%- else -%}{{ '<|eot|>' }}{%- endif -%}"
    )
    assert "earlier answers in another way" in refusal(template, conversation("Q", "x", "R", "y"))
    finder = AnswerFinder(make_tokenizer(template))
    assert found(finder, conversation("Q", "x", "R", "y"), "last answer") == ["y<|eot|>"]
