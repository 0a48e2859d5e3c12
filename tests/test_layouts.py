"""Where answers begin and end is read off a rendering with sentinels, for templates of every kind."""

from __future__ import annotations

import pytest

from tests.tiny import CHATML, FORGETFUL, THOUGHTFUL, make_tokenizer
from training.chat_rendering import ChatRenderer
from training.formats import Message, RowError
from training.layouts import Border, Layout, make_layout, sentinel

TURNS = ["user", "assistant", "user", "assistant"]


def layout_of(template: str, roles: list[str]) -> Layout:
    """The layout of turns with one text each."""
    messages = [Message(role=role, content=sentinel(number)) for number, role in enumerate(roles)]
    return make_layout(ChatRenderer(make_tokenizer(template)), messages, list(range(len(roles))), None)


def shown(layout: Layout, message: int) -> str:
    """The answer with its border, the sentinels as numbers in brackets."""
    borders = layout.answers[message]
    assert not isinstance(borders, str), borders
    start, end = borders
    assert start.slots <= end.slots
    characters = "".join(layout.literals)
    # The slots stand behind the literals before them.
    text, position = "", 0
    for number, literal in enumerate(layout.literals):
        for character in literal:
            if start.literal_characters <= position < end.literal_characters:
                text += character
            position += 1
        if number < len(layout.slots) and start.slots <= number < end.slots:
            text += f"[{layout.slots[number]}]"
    assert position == len(characters)
    return text


def test_template_that_appends() -> None:
    layout = layout_of(CHATML, TURNS)
    assert layout.slots == [0, 1, 2, 3] and len(layout.literals) == 5
    assert layout.literals[0] == "<|im_start|>user\n" and layout.literals[-1] == "<|im_end|>\n"
    assert shown(layout, 1) == "[1]<|im_end|>" and shown(layout, 3) == "[3]<|im_end|>"
    assert set(layout.answers) == {1, 3}


def test_template_with_generation_markers() -> None:
    marked = (
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
        "{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert shown(layout_of(marked, TURNS), 1) == "[1]<|im_end|>"
    # The end token is taken along where the markers leave it out, the new line behind it never.
    outside = marked.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    assert shown(layout_of(outside, TURNS), 1) == "[1]<|im_end|>"
    after = marked.replace("{% endgeneration %}\n", "\n{% endgeneration %}")
    assert shown(layout_of(after, TURNS), 3) == "[3]<|im_end|>"


def test_empty_thought_of_the_last_answer_belongs_to_it() -> None:
    layout = layout_of(THOUGHTFUL, TURNS)
    assert shown(layout, 3) == "<think>\n\n</think>\n\n[3]<|im_end|>"
    # The earlier one is written without: what was its turn is told by its prompt and its end.
    assert shown(layout, 1) == "[1]<|im_end|>"


def test_template_without_an_end_is_refused_for_every_answer() -> None:
    bare = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    layout = layout_of(bare, TURNS)
    for number in (1, 3):
        assert "nothing that ends an answer" in str(layout.answers[number])


def test_text_that_the_template_leaves_out_has_no_slot() -> None:
    last_only = "{% set m = messages[-1] %}<{{ m['role'] }}>{{ m['content'] }}<|im_end|>"
    layout = layout_of(last_only, TURNS)
    assert layout.slots == [3]
    assert isinstance(layout.answers[1], str)


def test_template_that_writes_an_answer_twice_is_refused() -> None:
    twice = CHATML.replace(
        "{%- if add_gen", "{{- messages[1]['content'] + '<|im_end|>' if messages | length > 2 }}{%- if add_gen"
    )
    layout = layout_of(twice, TURNS)
    assert layout.slots.count(1) == 2
    assert isinstance(layout.answers[1], str)


def test_template_that_puts_another_text_into_an_answer_is_refused() -> None:
    mixed = CHATML.replace(
        "message['content'] +", "message['content'] + (messages[0]['content'] if message['role'] != 'user' else '') +"
    )
    layout = layout_of(mixed, TURNS)
    assert isinstance(layout.answers[1], str) and isinstance(layout.answers[3], str)


def test_forgetful_template_without_thoughts_is_as_any() -> None:
    assert shown(layout_of(FORGETFUL, TURNS), 1) == "[1]<|im_end|>"


def test_template_that_refuses_the_whole_conversation() -> None:
    with pytest.raises(RowError, match="no good"):
        layout_of("{{ raise_exception('no good') }}", TURNS)


def test_borders_count_characters_of_the_literals_only() -> None:
    template = "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}<|eot|>{% endfor %}"
    layout = layout_of(template + "{% if add_generation_prompt %}a{% endif %}", TURNS[:2])
    assert layout.literals == ["u", "<|eot|>a", "<|eot|>"]
    assert layout.answers[1] == (Border(9, 1), Border(16, 2))
    # Where nothing prompts the answer, the model has to write what stands before it too.
    assert layout_of(template, TURNS[:2]).answers[1] == (Border(8, 1), Border(16, 2))
