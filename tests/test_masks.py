"""What is trained in the chat templates of real model families: each answer with what ends it, exactly, or nothing.

`families/` holds the families' own templates, written down from how they behave; the named ones that ship are tested
in the same way. FAMILIES says what each shows and which conversations it may refuse: it must accept all others.
"""

# ruff: noqa: RUF001 - DeepSeek writes its markers with letters that look like others

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.tiny import make_tokenizer, text_of
from training.encoding import Encoded, encode_conversations
from training.formats import Conversation, Message, RowError
from training.paths import PROJECT

FOLDER = Path(__file__).parent / "families"


def user(content: str) -> Message:
    return Message(role="user", content=content)


def answer(content: str, thought: str | None = None) -> Message:
    message = Message(role="assistant", content=content)
    if thought is not None:
        message["reasoning_content"] = thought
    return message


def system(content: str) -> Message:
    return Message(role="system", content=content)


def calling(content: str, *cities: str) -> Message:
    calls = [
        {
            "type": "function",
            "id": f"call{n:05}",
            "function": {"name": "weather", "arguments": {"city": city, "days": n}},
        }
        for n, city in enumerate(cities, start=1)
    ]
    return Message(role="assistant", content=content, tool_calls=calls)


def result(content: str, number: int = 1) -> Message:
    return Message(role="tool", content=content, tool_call_id=f"call{number:05}", name="weather")


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
]
MARKERS = "markers of the template"  # made for each family
CONVERSATIONS: dict[str, list[Message]] = {
    "one turn": [user("Who?"), answer("Me.")],
    "several turns": [user("A"), answer("one"), user("B"), answer("two"), user("C"), answer("three")],
    "question at the end": [user("A"), answer("one"), user("B")],
    "system": [system("Be kind."), user("Who?"), answer("Me, gladly.")],
    "system, several turns": [system("Be kind."), user("A"), answer("one"), user("B"), answer("two")],
    "empty system": [system(""), user("Who?"), answer("Me.")],
    "unicode": [
        user("Wer? 你是谁"),
        answer("Ich: \U0001f469\u200d\U0001f680 n\u0303, مرحبا\ue0f00\ue0f1"),
        user("👍🏽"),
        answer("🇩🇪"),
    ],
    "space around": [user(" Q "), answer("\n  indented\n\n"), user("\tR"), answer("\t tab\r\n")],
    "space within": [user("Q"), answer("a\n\n\n  b\t\n c  d"), user("R\n\nS"), answer("- x\n- y")],
    MARKERS: [],
    "template code": [user("{{ 1 + 1 }}"), answer("{% if x %}{{ messages }}{# no #}"), user("{%"), answer("%} {{")],
    "repeats the question": [user("echo"), answer("echo"), user("echo"), answer("echo")],
    "a piece of the prompt": [user("assistant"), answer("assistant"), user("user"), answer("model")],
    "thought in the last": [user("Q"), answer("<think>\nHm, hm.\n</think>\n\nYes.")],
    "thought in an earlier": [user("Q"), answer("<think>\nHm.\n</think>\n\nYes."), user("R"), answer("No.")],
    "reasoning in the last": [user("Q"), answer("Yes.", "Hm, hm.")],
    "reasoning in an earlier": [user("Q"), answer("Yes.", "Hm."), user("R"), answer("No.", "Ah.")],
    "tool call": [user("Sun?"), calling("", "Rome"), result("21"), answer("It is 21 degrees.")],
    "tool calls": [
        user("Sun?"),
        calling("I look.", "Rome", "Oslo"),
        result("21"),
        result("3", 2),
        answer("Rome."),
        user("And now?"),
        answer("Still."),
    ],
    "answer first": [answer("Hello, who?"), user("Me."), answer("Welcome.")],
    "twice in a row": [user("A"), answer("one"), answer("two")],
}
# What most families cannot show.
TOOL_TURNS = frozenset({"tool call", "tool calls"})
REASONING = frozenset({"reasoning in the last", "reasoning in an earlier"})
THOUGHTS = frozenset({"thought in the last", "thought in an earlier"})
OUT_OF_TURN = frozenset({"answer first", "twice in a row"})
SYSTEM = frozenset({"system", "system, several turns", "empty system"})
ALL = frozenset(CONVERSATIONS)
NO_EXTRAS = TOOL_TURNS | REASONING
Show = Callable[[list[Message], int], str]


def as_is(messages: list[Message], number: int) -> str:
    return messages[number]["content"]


def stripped(messages: list[Message], number: int) -> str:
    return messages[number]["content"].strip()


def without_new_lines(messages: list[Message], number: int) -> str:
    return messages[number]["content"].lstrip("\n")


def hermes_calls(message: Message) -> str:
    calls = [
        f"<tool_call>\n{json.dumps({key: call['function'][key] for key in ('name', 'arguments')})}\n</tool_call>"
        for call in message.get("tool_calls", [])
    ]
    return "\n".join([message["content"], *calls] if message["content"] else calls)


def hermes(messages: list[Message], number: int) -> str:
    message = messages[number]
    thought = message.get("reasoning_content")
    return (f"<think>\n{thought}\n</think>\n\n" if thought else "") + (hermes_calls(message) or message["content"])


def always_thoughtful(messages: list[Message], number: int) -> str:
    shown = hermes(messages, number)
    return shown if shown.startswith("<think>") else f"<think>\n\n</think>\n\n{shown}"


def qwen3(messages: list[Message], number: int) -> str:
    """Thoughts are kept behind the last question only, and the last answer always has one."""
    message = messages[number]
    questions = [n for n, m in enumerate(messages) if m["role"] == "user"]
    thought, text = message.get("reasoning_content", ""), hermes_calls(message)
    if "</think>" in text:
        thought, text = (part.strip("\n") for part in text.removeprefix("<think>").split("</think>"))
    if number > questions[-1] and (thought or number == len(messages) - 1):
        return f"<think>\n{thought}\n</think>\n\n" + text.lstrip("\n")
    return text


def llama_calls(messages: list[Message], number: int) -> str:
    for call in messages[number].get("tool_calls", []):
        shown = {"name": call["function"]["name"], "parameters": call["function"]["arguments"]}
        return json.dumps(shown)
    return stripped(messages, number)


def mistral_calls(messages: list[Message], number: int) -> str:
    calls = [{**call["function"], "id": call["id"]} for call in messages[number].get("tool_calls", [])]
    return f"[TOOL_CALLS] {json.dumps(calls)}" if calls else stripped(messages, number)


def granite_calls(messages: list[Message], number: int) -> str:
    calls = [call["function"] for call in messages[number].get("tool_calls", [])]
    return f"<|tool_call|>{json.dumps(calls)}" if calls else as_is(messages, number)


def deepseek_calls(messages: list[Message], number: int) -> str:
    calls = [
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{call['function']['name']}\n```json\n"
        f"{json.dumps(call['function']['arguments'])}\n```<｜tool▁call▁end｜>"
        for call in messages[number].get("tool_calls", [])
    ]
    shown = "<｜tool▁calls▁begin｜>" + "\n".join(calls) + "<｜tool▁calls▁end｜>" if calls else ""
    return messages[number]["content"] + shown


def harmony(messages: list[Message], number: int) -> str:
    thought = messages[number].get("reasoning_content")
    shown = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant" if thought else ""
    return f"{shown}<|channel|>final<|message|>{messages[number]['content']}"


@dataclass(frozen=True)
class Family:
    """A model family: its special tokens, and how its template shows an answer."""

    prompt: str | tuple[str, ...]  # what stands right before a trained part
    end: str
    tokens: str  # those beside bos and eos
    refuses: frozenset[str] = NO_EXTRAS
    show: Show = as_is
    lead: str = ""  # what the model writes before the answer's text, and may be trained
    bos: str | None = None
    eos: str = "</s>"
    last_end: str = ""  # where the last answer ends in another way
    unsettled: frozenset[str] = frozenset()  # may be refused, but has to be right where it is not


CHATML = {"prompt": "<|im_start|>assistant\n", "end": "<|im_end|>", "tokens": "<|im_start|>", "eos": "<|im_end|>"}
BARS = {"prompt": "<|assistant|>\n", "tokens": "<|system|> <|user|> <|assistant|>"}
LLAMA3 = {
    "prompt": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "end": "<|eot_id|>",
    "tokens": "<|start_header_id|> <|end_header_id|>",
    "bos": "<|begin_of_text|>",
    "eos": "<|eot_id|>",
}
GEMMA = {
    "prompt": "<start_of_turn>model\n",
    "end": "<end_of_turn>",
    "tokens": "<start_of_turn> <end_of_turn>",
    "bos": "<bos>",
    "eos": "<eos>",
}
COMMAND = {
    "prompt": "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "end": "<|END_OF_TURN_TOKEN|>",
    "tokens": "<|START_OF_TURN_TOKEN|> <|SYSTEM_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|>",
    "bos": "<BOS_TOKEN>",
    "eos": "<|END_OF_TURN_TOKEN|>",
}
DEEPSEEK = {
    "prompt": "<｜Assistant｜>",
    "end": "<｜end▁of▁sentence｜>",
    "tokens": "<｜User｜> <｜Assistant｜>",
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
}
DEEPSEEK_TOOLS = (
    "<｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁sep｜> "
    "<｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜>"
)


def like(common: dict[str, Any], **own: Any) -> Family:
    return Family(**(common | own))


FAMILIES = {
    # the families' own templates
    "llama2": Family(" [/INST]", " </s>", "", NO_EXTRAS | OUT_OF_TURN, stripped, lead=" ", bos="<s>"),
    "llama3": like(LLAMA3, show=stripped),
    # It shows one call at a time, and thinks that the first turn is a question.
    "llama31": like(LLAMA3, show=llama_calls, refuses=REASONING | {"tool calls"}),
    "mistral01": Family(" [/INST]", "</s>", "", NO_EXTRAS | OUT_OF_TURN | SYSTEM, bos="<s>"),
    "mistral03": Family(
        ("[/INST]", "[/TOOL_RESULTS]"),
        "</s>",
        "[INST] [/INST] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS]",
        REASONING | OUT_OF_TURN | {"tool calls"},  # text beside a call is not shown
        mistral_calls,
        lead=" ",
        bos="<s>",
    ),
    "mixtral": Family(" [/INST]", "</s>", "", NO_EXTRAS | OUT_OF_TURN, lead=" ", bos="<s>"),
    "gemma": like(GEMMA, show=stripped, refuses=NO_EXTRAS | OUT_OF_TURN | SYSTEM),
    "gemma3": like(GEMMA, show=stripped, refuses=NO_EXTRAS | OUT_OF_TURN),
    "qwen25": like(CHATML, show=hermes, refuses=REASONING),
    "qwen3": like(
        CHATML,
        show=qwen3,
        tokens="<|im_start|> <tool_call> </tool_call>",
        refuses=frozenset({"thought in an earlier", "reasoning in an earlier"}),
    ),
    "qwq": like(CHATML, show=without_new_lines, refuses=NO_EXTRAS | THOUGHTS),
    "deepseek-r1": like(DEEPSEEK, refuses=NO_EXTRAS | THOUGHTS),
    "deepseek-v2": like(DEEPSEEK, prompt="Assistant:", tokens="", lead=" "),
    "deepseek-v3": like(
        DEEPSEEK,
        prompt=(
            "<｜Assistant｜>",
            "<｜tool▁outputs▁end｜>",
            "sentence｜>",
        ),  # only questions ask
        tokens=f"{DEEPSEEK['tokens']} {DEEPSEEK_TOOLS}",
        show=deepseek_calls,
        refuses=REASONING | {"tool call", "tool calls"},  # it has no place for the tools themselves
    ),
    "phi3": like(BARS, end="<|end|>", tokens="<|system|> <|user|> <|assistant|> <|end|>", eos="<|endoftext|>"),
    "phi4": like(CHATML, prompt="<|im_start|>assistant<|im_sep|>", tokens="<|im_start|> <|im_sep|>"),
    "zephyr": like(BARS, end="</s>"),
    "vicuna": Family("ASSISTANT:", "</s>", "", show=stripped, lead=" "),
    "alpaca": Family("### Response:\n", "</s>", "", bos="<s>"),
    "openchat": Family("GPT4 Correct Assistant:", "<|end_of_turn|>", "", lead=" ", bos="<s>", eos="<|end_of_turn|>"),
    "command-r": like(COMMAND, show=stripped, refuses=NO_EXTRAS | OUT_OF_TURN),
    "falcon": Family("Falcon:", "", "", ALL, lead=" ", eos="<|endoftext|>"),  # nothing ends an answer
    "orca-hashes": Family("### Assistant:\n", "</s>", ""),
    "internlm2": like(CHATML, bos="<s>"),
    "yi": like(CHATML),
    # Nothing ends the last answer; one before a question has its end.
    "qwen15": like(CHATML, refuses=ALL - {"question at the end"}, unsettled=frozenset({"question at the end"})),
    "granite": like(
        BARS,
        prompt="<|start_of_role|>assistant<|end_of_role|>",
        end="<|end_of_text|>",
        tokens="<|start_of_role|> <|end_of_role|> <|tool_call|>",
        eos="<|end_of_text|>",
        show=granite_calls,
        refuses=REASONING | {"tool calls"},  # text beside a call is not shown
    ),
    "olmo": like(BARS, end="<|endoftext|>", tokens="", bos="<|endoftext|>", eos="<|endoftext|>"),
    "stablelm": like(BARS, end="<|endoftext|>", eos="<|endoftext|>", show=stripped),
    "smollm3": like(CHATML, show=without_new_lines),
    "glm4": like(BARS, end="", refuses=ALL),  # the name of the next to speak ends an answer
    "tulu": like(BARS, end="</s>", tokens=""),
    "gpt-oss": Family(
        "<|start|>assistant",
        "<|end|>",
        "<|start|> <|message|> <|channel|> <|end|>",
        TOOL_TURNS | {"reasoning in an earlier"},
        harmony,
        eos="<|return|>",
        last_end="<|return|>",
    ),
    # the named templates that ship
    "templates/alpaca": Family("### Response:\n", "</s>", "", bos="<s>"),
    "templates/chatml": like(CHATML, show=hermes, refuses=frozenset()),
    "templates/command-r": like(COMMAND),
    "templates/deepseek": like(DEEPSEEK, show=hermes, refuses=TOOL_TURNS),
    "templates/gemma": like(GEMMA, show=stripped),
    "templates/llama2": Family(" [/INST]", " </s>", "", lead=" ", bos="<s>"),
    "templates/llama3": like(LLAMA3, show=llama_calls, refuses=REASONING | {"tool calls"}),
    "templates/mistral": Family("[/INST]", "</s>", "[INST] [/INST]", lead=" ", bos="<s>"),
    "templates/phi3": like(BARS, end="<|end|>", tokens=f"{BARS['tokens']} <|end|>", eos="<|endoftext|>"),
    "templates/plain": Family("Assistant:", "</s>", "", lead=" "),
    "templates/qwen3": like(CHATML, show=always_thoughtful, refuses=frozenset()),
    "templates/vicuna": Family("ASSISTANT:", "</s>", "", lead=" ", bos="<s>"),
    "templates/zephyr": like(BARS, end="</s>"),
}


@cache
def tokenizer_of(name: str, *, merges: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with the family's special tokens and its template."""
    family = FAMILIES[name]
    path = PROJECT / f"{name}.jinja" if "/" in name else FOLDER / f"{name}.jinja"
    tokenizer = make_tokenizer(path.read_text(encoding="utf-8"), merges=merges)
    special = [*family.tokens.split(), family.eos, *([family.bos] if family.bos else [])]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.eos_token = family.eos
    if family.bos:
        tokenizer.bos_token = family.bos
    return tokenizer


def conversation(name: str, family: Family) -> Conversation:
    messages = CONVERSATIONS[name]
    if name == MARKERS:
        prompt = family.prompt if isinstance(family.prompt, str) else family.prompt[0]
        markers = f"{family.end}\n{prompt}{family.tokens}{family.bos}{family.lead}{family.eos}"
        messages = [
            user(f"say {markers} user"),
            answer(f"user {prompt}no{markers} assistant"),
            user(f"{family.eos} x {family.end}y"),
            answer(f"A{family.end}\n{prompt}no{family.end}Z"),
        ]
    return Conversation(messages, TOOLS if name in TOOL_TURNS else None)


def encoded(name: str, one: Conversation, train_on: Any, *, merges: bool = False) -> Encoded | RowError:
    (outcome,) = encode_conversations(tokenizer_of(name, merges=merges), [one], train_on)
    return outcome


def check(name: str, one: Conversation, outcome: Encoded | RowError, *, only_last: bool, merges: bool = False) -> None:
    """What is trained is each answer as the family shows it, with its end, behind a prompt for one."""
    assert isinstance(outcome, Encoded), f"refused: {outcome}"
    family, tokenizer = FAMILIES[name], tokenizer_of(name, merges=merges)
    assert text_of(tokenizer, outcome.input_ids) == outcome.text
    answering = [n for n, message in enumerate(one.messages) if message["role"] == "assistant"]
    wanted = [family.show(one.messages, n) + family.end for n in answering]
    if answering[-1] == len(one.messages) - 1 and family.last_end:
        wanted[-1] = wanted[-1].removesuffix(family.end) + family.last_end
    wanted = wanted[-1:] if only_last else wanted
    trained = [text_of(tokenizer, outcome.input_ids[start:end]) for start, end in outcome.trained]
    assert len(trained) == len(wanted)
    for text, own in zip(trained, wanted, strict=True):
        # What the model has to write before the text, such as a space, may be trained too.
        assert text in (own, family.lead + own)
    for number, (start, _) in zip(answering[-len(wanted) :], outcome.trained, strict=True):
        before = text_of(tokenizer, outcome.input_ids[:start])
        asks = (family.prompt,) if isinstance(family.prompt, str) else family.prompt
        # Where the question asks for the answer, nothing stands before any other.
        if number == 0:
            asks = ("",)
        elif one.messages[number - 1]["role"] == "assistant":
            asks = (*asks, family.end)
        assert before.removesuffix(family.lead).endswith(asks)


def cases(train_on: str) -> list[Any]:
    return [
        pytest.param(family, name, id=f"{family}-{name}")
        for family in FAMILIES
        for name in CONVERSATIONS
        if (name in FAMILIES[family].refuses) == (train_on == "refused")
    ]


def test_table_covers_every_family_and_every_named_template() -> None:
    ours = {path.stem for path in FOLDER.glob("*.jinja")}
    shipped = {f"templates/{path.stem}" for path in (PROJECT / "templates").glob("*.jinja")}
    assert len(ours) >= 22
    assert shipped <= set(FAMILIES), "a named template was added: say here how it shows answers"
    assert ours == {name for name in FAMILIES if "/" not in name}


@pytest.mark.parametrize(("family", "name"), cases("accepted"))
def test_trained_are_exactly_the_answers(family: str, name: str) -> None:
    one = conversation(name, FAMILIES[family])
    outcome = encoded(family, one, "answers")
    if name not in FAMILIES[family].unsettled or isinstance(outcome, Encoded):
        check(family, one, outcome, only_last=False)


@pytest.mark.parametrize(("family", "name"), cases("refused"))
def test_what_a_template_hides_is_refused_in_a_sentence(family: str, name: str) -> None:
    outcome = encoded(family, conversation(name, FAMILIES[family]), "answers")
    assert isinstance(outcome, RowError)
    assert len(str(outcome)) > 20 and "\n" not in str(outcome)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_last_answer_alone(family: str, name: str) -> None:
    one = conversation(name, FAMILIES[family])
    outcome = encoded(family, one, "last answer")
    if name in FAMILIES[family].refuses | FAMILIES[family].unsettled and isinstance(outcome, RowError):
        return
    check(family, one, outcome, only_last=True)


def test_last_answer_is_learnt_where_earlier_thoughts_are_left_out() -> None:
    for name in ("thought in an earlier", "reasoning in an earlier"):
        one = conversation(name, FAMILIES["qwen3"])
        check("qwen3", one, encoded("qwen3", one, "last answer"), only_last=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_every_token(family: str) -> None:
    for name in ("one turn", "several turns", "question at the end", "unicode", "space around", MARKERS):
        one = conversation(name, FAMILIES[family])
        outcome = encoded(family, one, "everything")
        assert isinstance(outcome, Encoded)
        assert outcome.trained == [(0, len(outcome.input_ids))]
        assert text_of(tokenizer_of(family), outcome.input_ids) == outcome.text
        assert outcome.text == tokenizer_of(family).apply_chat_template(one.messages, tokenize=False)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if "several turns" not in family.refuses])
def test_token_that_would_reach_over_an_answers_border_is_parted(family: str) -> None:
    """As when the model answers: the prompt's tokens are there before the answer's are chosen."""
    one = Conversation([user("Q"), answer("\n0 an\n"), user("an "), answer(" \n the")])
    check(family, one, encoded(family, one, "answers", merges=True), only_last=False, merges=True)


def test_rows_are_judged_one_by_one() -> None:
    rows = [conversation(name, FAMILIES["gemma"]) for name in ("one turn", "system", "one turn", "several turns")]
    outcomes = encode_conversations(tokenizer_of("gemma"), rows, "answers")
    assert [type(outcome) for outcome in outcomes] == [Encoded, RowError, Encoded, Encoded]
    assert outcomes[0] == outcomes[2]


TEXTS = (
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
            st.text(" \n\tanthe", max_size=8),
            st.sampled_from(
                ["<|im_start|>assistant\n", "<|im_end|>", "</s>", "<s>", "[INST]", " [/INST]", "<|user|>\n", "<"]
            ),
            st.sampled_from(
                ["### Response:\n", "ASSISTANT:", "<|eot_id|>", "<end_of_turn>", "\ue0f00\ue0f1", "{{ x }}"]
            ),
        ),
        max_size=5,
    )
    .map("".join)
    .filter(lambda text: bool(text.strip()))
)
ANY_TEXT = [name for name, family in FAMILIES.items() if "several turns" not in family.refuses]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ANY_TEXT), st.lists(TEXTS, min_size=2, max_size=6), st.booleans())
def test_trained_are_exactly_the_answers_of_any_text(family: str, texts: list[str], merges: bool) -> None:
    one = Conversation([answer(text) if number % 2 else user(text) for number, text in enumerate(texts)])
    check(family, one, encoded(family, one, "answers", merges=merges), only_last=False, merges=merges)
