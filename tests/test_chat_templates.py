"""The named chat templates: what each writes, the user's own, and what is said when one is put on a tokenizer."""

# ruff: noqa: RUF001 - DeepSeek writes its markers with letters that look like others

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import CHATML, make_tokenizer
from training.chat_templates import FALLBACK, OWN, load_template, template_names, use_template
from training.errors import UserError
from training.paths import PROJECT, Folders

SHIPPED = Folders()
TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
H = "<|start_header_id|>{}<|end_header_id|>\n\n"
T = "<|START_OF_TURN_TOKEN|>"
# What TURNS and the prompt for an answer look like, with <s> and </s> as start and end token.
WRITTEN = {
    "alpaca": "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    "Hello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "command-r": f"<s>{T}<|SYSTEM_TOKEN|>Be kind.<|END_OF_TURN_TOKEN|>{T}<|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|>"
    f"{T}<|CHATBOT_TOKEN|>Hello<|END_OF_TURN_TOKEN|>{T}<|USER_TOKEN|>Bye<|END_OF_TURN_TOKEN|>{T}<|CHATBOT_TOKEN|>",
    "deepseek": "<s>Be kind.<｜User｜>Hi<｜Assistant｜>Hello</s><｜User｜>Bye<｜Assistant｜>",
    "gemma": "<s><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "llama2": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]",
    "llama3": f"<s>{H.format('system')}Be kind.<|eot_id|>{H.format('user')}Hi<|eot_id|>{H.format('assistant')}"
    f"Hello<|eot_id|>{H.format('user')}Bye<|eot_id|>{H.format('assistant')}",
    "mistral": "<s>[INST] Be kind.\n\nHi[/INST] Hello</s>[INST] Bye[/INST]",
    "phi3": "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\nBye<|end|>\n"
    "<|assistant|>\n",
    "plain": "Be kind.\n\nUser: Hi\nAssistant: Hello</s>\nUser: Bye\nAssistant:",
    "qwen3": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    "<think>\n\n</think>\n\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "vicuna": "<s>Be kind. USER: Hi ASSISTANT: Hello</s>USER: Bye ASSISTANT:",
    "zephyr": "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n<|user|>\nBye</s>\n"
    "<|assistant|>\n",
}
CALL = {"type": "function", "function": {"name": "sun", "arguments": {"city": "Rome"}}}
TOOL_TURNS = [
    {"role": "user", "content": "Sun?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "21"},
    {"role": "assistant", "content": "Yes."},
]
TOOLS = [{"type": "function", "function": {"name": "sun", "description": "Does it shine?"}}]
WITH_TOOLS = {
    "chatml": [
        '<tool_call>\n{"name": "sun", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
        "<|im_start|>tool",
    ],
    "qwen3": [
        '<tool_call>\n{"name": "sun", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
        "<|im_start|>user",
    ],
    "llama3": ['{"name": "sun", "parameters": {"city": "Rome"}}<|eot_id|>', H.format("ipython")],
}


def tokenizer_with(*, template: str | None = None, bos: bool = False, starts: bool = False) -> PreTrainedTokenizerFast:
    """With </s> as end token; `bos` also gives it a start token <s>, and `starts` puts it before every text."""
    tokenizer = make_tokenizer(template)
    tokenizer.add_special_tokens({"eos_token": "</s>", **({"bos_token": "<s>"} if bos or starts else {})})
    if starts:
        start = ("<s>", tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[start]
        )
    return tokenizer


def rendered(tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, Any]] = TURNS, **options: Any) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options))


def folder_with(tmp_path: Path, **files: str) -> Folders:
    for name, source in files.items():
        (tmp_path / f"{name}.jinja").write_text(source, encoding="utf-8")
    return Folders(templates=tmp_path)


def test_shipped_templates_are_listed_and_say_what_they_are_for() -> None:
    assert template_names(SHIPPED) == sorted(WRITTEN)
    for name in WRITTEN:
        template = load_template(SHIPPED, name)
        assert template.name == name
        assert template.about.endswith(".") and "\n" not in template.about and len(template.about) < 120
    assert FALLBACK in WRITTEN


@pytest.mark.parametrize("name", WRITTEN)
def test_shipped_template_writes_its_layout(name: str) -> None:
    tokenizer = tokenizer_with(bos=True)
    use_template(tokenizer, SHIPPED, name)
    assert rendered(tokenizer) == WRITTEN[name]


@pytest.mark.parametrize("name", WRITTEN)
def test_shipped_template_works_without_a_start_token_and_begins_once_with_one(name: str) -> None:
    tokenizer = tokenizer_with()
    use_template(tokenizer, SHIPPED, name)
    without = rendered(tokenizer)
    assert without == WRITTEN[name].replace("<s>", "")
    tokenizer = tokenizer_with(starts=True)
    use_template(tokenizer, SHIPPED, name)
    assert rendered(tokenizer).startswith("<s>") and not rendered(tokenizer).startswith("<s><s>")
    assert rendered(tokenizer).replace("<s>", "") == without


@pytest.mark.parametrize("name", WRITTEN)
def test_system_prompt_is_never_lost(name: str) -> None:
    tokenizer = tokenizer_with()
    use_template(tokenizer, SHIPPED, name)
    alone, late = [TURNS[0]], [*TURNS, {"role": "system", "content": "Be brief."}]
    before_an_answer = [TURNS[0], TURNS[2]]
    assert "Be kind." in rendered(tokenizer, alone)
    assert "Be brief." in rendered(tokenizer, late)
    assert "Be kind." in rendered(tokenizer, before_an_answer).split("Hello")[0]


@pytest.mark.parametrize("name", WRITTEN)
def test_tools_are_shown_or_refused_with_a_template_that_knows_them(name: str) -> None:
    tokenizer = tokenizer_with()
    use_template(tokenizer, SHIPPED, name)
    if name in WITH_TOOLS:
        text = rendered(tokenizer, TOOL_TURNS, tools=TOOLS)
        assert all(part in text for part in (*WITH_TOOLS[name], "Does it shine?", "21", "Yes."))
        text = rendered(tokenizer, [TURNS[0], *TOOL_TURNS], tools=TOOLS)
        assert text.count("Be kind.") == 1
        return
    for turns, tools in ((TOOL_TURNS, None), (TOOL_TURNS[:1], TOOLS), (TOOL_TURNS[2:], None)):
        with pytest.raises(TemplateError, match="chatml, llama3 or qwen3"):
            rendered(tokenizer, turns, tools=tools)


@pytest.mark.parametrize("name", WRITTEN)
def test_thoughts_are_shown_or_refused(name: str) -> None:
    tokenizer = tokenizer_with()
    use_template(tokenizer, SHIPPED, name)
    turns = [TURNS[1], {"role": "assistant", "content": "Hello", "reasoning_content": "Hm."}, TURNS[3]]
    if name in ("chatml", "deepseek", "qwen3"):
        assert "<think>\nHm.\n</think>\n\nHello" in rendered(tokenizer, turns)
    else:
        with pytest.raises(TemplateError, match="chatml, deepseek or qwen3"):
            rendered(tokenizer, turns)


def test_own_template_of_the_user(tmp_path: Path) -> None:
    source = "\ufeff{# Mine,\r\n for all. #}\r\n{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    folders = folder_with(tmp_path, mine=source, short="{{ messages[-1].content + eos_token }}", B="{{ eos_token }}")
    (tmp_path / ".hidden.jinja").write_text("{{")
    (tmp_path / "notes.txt").write_text("{{")
    (tmp_path / "folder.jinja").mkdir()
    assert template_names(folders) == ["B", "mine", "short"]
    assert [load_template(folders, name).about for name in ("B", "mine")] == ["", "Mine, for all."]
    tokenizer = tokenizer_with()
    assert use_template(tokenizer, folders, "mine") == "The chat template mine is used, and saved with the LoRA."
    assert rendered(tokenizer, TURNS[:2]).strip() == "Be kind.</s>Hi</s>"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ 1 }}\n{% for m in messages %}", "mistake in line 2"),
        ("{% generation %}x", "mistake in line 1"),
        ("\n\n{{ x | nosuchfilter }}", "line 3: No filter named 'nosuchfilter'"),
        ("{% endgeneration %}", "mistake in line 1"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "nested too deeply"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    ],
)
def test_damaged_template_is_named_and_hides_no_others(tmp_path: Path, source: str | bytes, words: str) -> None:
    (tmp_path / "bad.jinja").write_bytes(source if isinstance(source, bytes) else source.encode())
    folders = folder_with(tmp_path, good="{{ eos_token }}")
    assert template_names(folders) == ["bad", "good"] and load_template(folders, "good")
    with pytest.raises(UserError, match=r"bad\.jinja") as caught:
        load_template(folders, "bad")
    assert words in str(caught.value)


def test_what_transformers_adds_to_jinja_is_known(tmp_path: Path) -> None:
    source = (
        "{%- for m in messages %}{% if 0 %}{% break %}{% endif %}{{ m | tojson }}{{ strftime_now('%Y') }}{%- endfor %}"
    )
    assert load_template(folder_with(tmp_path, all=source), "all").source == source


@pytest.mark.skipif(os.name == "nt", reason="Windows refuses such a name itself")
def test_name_that_is_no_file_name_everywhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a<b>\.jinja"):
        load_template(folder_with(tmp_path, **{"a<b>": "x"}), "a<b>")


@pytest.mark.parametrize("name", ["nosuch", "../training/x", "alpaca.jinja", "/etc/passwd", "Alpaca", " "])
def test_unknown_name_is_refused_with_those_that_are_there(name: str) -> None:
    with pytest.raises(UserError, match=r"alpaca, chatml, .*zephyr"):
        load_template(SHIPPED, name)


def test_no_folder_is_no_templates(tmp_path: Path) -> None:
    folders = Folders(templates=tmp_path / "missing")
    assert template_names(folders) == []
    with pytest.raises(UserError, match="the folder is empty"):
        load_template(folders, "alpaca")


def test_own_template_of_the_model_stays_and_needs_no_word() -> None:
    tokenizer = make_tokenizer(CHATML)
    assert use_template(tokenizer, SHIPPED, OWN) == ""
    assert tokenizer.chat_template == CHATML


def test_model_without_a_template_gets_one_visibly_and_once() -> None:
    tokenizer = tokenizer_with()
    note = use_template(tokenizer, SHIPPED, OWN)
    assert note == "The base model has no chat template: the template alpaca is used, and saved with the LoRA."
    assert rendered(tokenizer) == WRITTEN["alpaca"]
    assert use_template(tokenizer, SHIPPED, OWN) == ""


@pytest.mark.parametrize("as_list", [True, False])
def test_of_several_templates_the_default_one_is_taken(as_list: bool) -> None:
    tokenizer = make_tokenizer()
    several = {"tool_use": "x", "default": CHATML}
    tokenizer.chat_template = [{"name": n, "template": t} for n, t in several.items()] if as_list else several
    assert "its default one is used" in use_template(tokenizer, SHIPPED, OWN)
    assert tokenizer.chat_template == CHATML
    tokenizer.chat_template = {"rag": CHATML, "tool_use": "x"}
    with pytest.raises(UserError, match="rag, tool_use"):
        use_template(tokenizer, SHIPPED, OWN)
    use_template(tokenizer, SHIPPED, "alpaca")
    assert rendered(tokenizer).startswith("Be kind.\n\n### Instruction")


def test_end_that_the_model_must_spell_out_is_said() -> None:
    tokenizer = tokenizer_with()
    note = use_template(tokenizer, SHIPPED, "gemma")
    assert "<end_of_turn>, which is no token of this model" in note and FALLBACK in note
    for name in ("alpaca", "plain", "vicuna", "llama2", "mistral", "deepseek", "zephyr", "chatml", "qwen3"):
        assert "no token" not in use_template(tokenizer, SHIPPED, name)  # the tiny tokenizer has <|im_end|>
    tokenizer.add_tokens(["<end_of_turn>"])  # not special, as some models have it
    assert "no token" not in use_template(tokenizer, SHIPPED, "gemma")
    silent = make_tokenizer("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert "puts nothing after an answer" in use_template(silent, SHIPPED, OWN)


def test_template_that_needs_an_end_token_the_model_lacks_is_refused() -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has none: choose another template, for example chatml"):
        use_template(tokenizer, SHIPPED, OWN)
    assert use_template(tokenizer, SHIPPED, "chatml")


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('never') }}",
        "{{ messages[0].content + 1 }}",
        "{{ nosuch.x }}",
        "{{ 1 / 0 }}",
        "{{ messages | map(attribute='x') | list | sum }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_template_that_fails_on_a_simple_question_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError, match="The chat template mine cannot write down a question"):
        use_template(make_tokenizer(None), folder_with(tmp_path, mine=source), "mine")
    with pytest.raises(UserError, match="The base model's own chat template cannot"):
        use_template(make_tokenizer(source), SHIPPED, OWN)


def test_chosen_template_is_saved_with_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(template=CHATML, starts=True)
    use_template(tokenizer, SHIPPED, "plain")
    tokenizer.save_pretrained(str(tmp_path))
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    assert rendered(again) == "<s>" + WRITTEN["plain"]


def test_listing_needs_none_of_the_heavy_libraries() -> None:
    program = (
        "import sys; from training.paths import Folders; from training.chat_templates import load_template; "
        "assert load_template(Folders(), 'chatml'); sys.exit(len({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=False, timeout=60).returncode == 0
