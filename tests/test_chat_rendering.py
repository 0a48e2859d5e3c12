"""Rendering conversations: what a template raises becomes a reason, and which tokens no text is made of."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHATML, make_tokenizer
from training.chat_rendering import ChatRenderer
from training.formats import Conversation, Message, RowError

TURNS = [Message(role="user", content="Q"), Message(role="assistant", content="A")]


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('never') }}",
        "{{ 1 / 0 }}",
        "{{ messages[5].content.x }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages | map(attribute='content') | sum }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% for a in messages %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)
def test_what_a_template_raises_is_a_reason(source: str) -> None:
    renderer = ChatRenderer(make_tokenizer(source))
    with pytest.raises(RowError, match=r"^the chat template refuses it"):
        renderer.text(TURNS)
    (result,) = renderer.texts([Conversation(TURNS)])
    assert isinstance(result, RowError)


def test_special_token_behind_white_space() -> None:
    found = ChatRenderer(make_tokenizer(CHATML)).special_token.match("A\n<|im_end|>\n", 1)
    assert found is not None and found[0] == "\n<|im_end|>"


def test_without_added_tokens_there_is_no_special_token() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"A": 0}, merges=[])))
    assert not tokenizer.added_tokens_decoder and not tokenizer.all_special_tokens
    special_token = ChatRenderer(tokenizer).special_token
    assert special_token.match("### end") is None and special_token.match(" ") is None
