"""The Chat tab: its logic with a chat that needs no model, and the tab itself in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest

from training.chat import PUT_AWAY, Chat, ChatModel, Reply
from training.errors import UserError
from training.formats import Message
from training.paths import Folders
from training.runs import Run
from training.sampling import Sampling, describe_sampling
from training.settings import Settings
from ui.chat_log import (
    FINAL,
    NO_ADAPTER,
    Choice,
    Log,
    View,
    adapter_choices,
    answer,
    base_choices,
    checkpoint_choices,
    conversation,
    entry,
    take_back,
    text_of,
    titles,
)
from ui.chat_tab import EXAMPLES, STYLE, ChatTab, build_chat_tab

if TYPE_CHECKING:
    from tests.conftest import Visit

NASTY = "<b>bold</b> <script>alert(1)</script>\n  <img src=x onerror=alert(2)> &lt; $$x$$ **star**"
DEFAULTS = tuple(told["default"] for told in describe_sampling().values())
ALONE = Choice("starter", NO_ADAPTER, FINAL, "16-bit", False, "", DEFAULTS)
BOTH = replace(ALONE, adapter="pirate", compare=True)


@dataclass
class Asked:
    what: ChatModel
    messages: list[Message]
    sampling: Sampling
    with_adapter: bool


class Parrot(Chat):
    """Repeats what it is told; 'fail' and 'break' make it fail, 'long' makes it go on until it is stopped."""

    def __init__(self, folders: Folders) -> None:
        super().__init__(folders)
        self.asked: list[Asked] = []

    def reply(
        self,
        what: ChatModel,
        messages: list[Message],
        sampling: Sampling,
        *,
        with_adapter: bool = True,
        stop_event: threading.Event | None = None,
    ) -> Iterator[Reply]:
        self.asked.append(Asked(what, messages, sampling, with_adapter))
        said = messages[-1]["content"]
        yield Reply("", f"Loading {what.base_model} ...")
        if "fail" in said:
            raise UserError("It failed <b>in plain words</b>.")
        if "break" in said:
            raise ZeroDivisionError
        text = f"{what.adapter if with_adapter and what.adapter else what.base_model} heard: {said}"
        yield Reply(text[:5], "Writing ...")
        while "long" in said and stop_event and not stop_event.is_set():
            time.sleep(0.02)
            text += " on"
            yield Reply(text, "Writing ...")
        yield Reply(text, "3 tokens.")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """One model, a LoRA with checkpoints, one in training, one from elsewhere, and one that has nothing yet."""
    made = Folders(tmp_path / "models", tmp_path / "datasets", tmp_path / "loras", tmp_path / "presets")
    made.make()
    for model in ("starter", "other"):
        (made.models / model).mkdir()
        (made.models / model / "config.json").write_text("{}")
    for age, (name, adapters) in enumerate(
        {"pirate": ["", "checkpoint-20", "checkpoint-40"], "running": ["checkpoint-5"], "empty": []}.items()
    ):
        run = Run(made.loras / name)
        for adapter in adapters:
            make_adapter(run.folder / adapter, "x")
        run.folder.mkdir(exist_ok=True)
        run.write_settings(Settings(name=name, base_model="other"))
        stamp = 1_700_000_000 - age
        os.utime(run.folder / "settings.json", (stamp, stamp))
    make_adapter(made.loras / "foreign", "")
    return made


def make_adapter(folder: Path, base: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").touch()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))


@pytest.fixture
def parrot(folders: Folders) -> Parrot:
    return Parrot(folders)


@pytest.fixture
def tab(folders: Folders, parrot: Parrot) -> ChatTab:
    with gr.Blocks(analytics_enabled=False):
        return build_chat_tab(folders, parrot)


def ask(chat: Chat, choice: Choice, question: str, log: Log | None = None, base_log: Log | None = None) -> list[View]:
    return list(answer(chat, choice, question, log or [], base_log or [], threading.Event()))


def texts(log: Log) -> list[str]:
    return [text_of(message) for message in log]


def test_importing_the_tab_does_not_load_torch() -> None:
    code = "import sys, ui.chat_tab; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'peft')))"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=120).returncode == 0


@pytest.mark.parametrize("text", [NASTY, "", "&amp;lt;", "  indented\n\tcode ", "'quotes\" stay"])
def test_texts_survive_the_log_and_hold_no_markup_in_it(text: str) -> None:
    message = entry("user", text)
    assert text_of(message) == text
    assert "<" not in message["content"][0]["text"]
    kept = gr.Chatbot().postprocess([message])
    assert text_of(kept.model_dump()[0]) == text, "Gradio changed it"


def test_the_conversation_begins_with_the_system_prompt() -> None:
    log = [entry("user", "a < b"), entry("assistant", "yes")]
    assert conversation(log, " \n") == [{"role": "user", "content": "a < b"}, {"role": "assistant", "content": "yes"}]
    assert conversation(log, " Be brief. ")[0] == {"role": "system", "content": "Be brief."}


def test_the_last_question_is_taken_back() -> None:
    log = [entry("user", "one"), entry("assistant", "1"), entry("user", "two"), entry("assistant", "2")]
    assert take_back(log) == (log[:2], "two")
    assert take_back(log[:3]) == (log[:2], "two")
    assert take_back([]) == ([], "")


def test_an_answer_appears_bit_by_bit(parrot: Parrot) -> None:
    views = ask(parrot, ALONE, NASTY)
    assert [texts(view.log) for view in views[:3]] == [[NASTY], [NASTY], [NASTY, "start"]]
    assert texts(views[-1].log) == [NASTY, f"starter heard: {NASTY}"]
    assert [view.running for view in views] == [True] * (len(views) - 1) + [False]
    assert views[1].status == "Loading starter ..." and views[-1].status == "3 tokens."
    assert not any(view.base_log or view.failed for view in views)


def test_both_sides_answer_the_base_first_with_the_same_seed_and_their_own_history(parrot: Parrot) -> None:
    first = ask(parrot, BOTH, "one")[-1]
    assert texts(first.base_log) == ["one", "starter heard: one"]
    assert texts(first.log) == ["one", "pirate heard: one"]
    second = ask(parrot, BOTH, "two", first.log, first.base_log)
    base, lora = parrot.asked[2:]
    assert (base.with_adapter, lora.with_adapter) == (False, True)
    assert base.what == lora.what == ChatModel("starter", "pirate"), "one loaded model serves both"
    assert base.sampling == lora.sampling and base.sampling.seed >= 0
    assert [m["content"] for m in base.messages] == ["one", "starter heard: one", "two"]
    assert [m["content"] for m in lora.messages] == ["one", "pirate heard: one", "two"]
    assert second[-1].status == "Base model: 3 tokens. LoRA: 3 tokens."


def test_compare_without_a_lora_asks_one_model(parrot: Parrot) -> None:
    ask(parrot, replace(ALONE, compare=True), "hello")
    assert [asked.what for asked in parrot.asked] == [ChatModel("starter")]


def test_the_chosen_checkpoint_precision_and_settings_are_used(parrot: Parrot) -> None:
    values = (0, 1, 9, 5)
    choice = replace(
        BOTH, compare=False, checkpoint="40", precision="4-bit", sampling_values=values, system_prompt="Hi"
    )
    ask(parrot, choice, "hello")
    assert parrot.asked[0].what == ChatModel("starter", "pirate", 40, "4-bit")
    assert parrot.asked[0].sampling == Sampling(temperature=0, top_p=1, max_tokens=9, seed=5)
    assert parrot.asked[0].messages[0] == {"role": "system", "content": "Hi"}


@pytest.mark.parametrize("question", ["fail", "break"])
@pytest.mark.parametrize("choice", [ALONE, BOTH])
def test_a_failure_keeps_the_question_and_frees_the_tab(parrot: Parrot, choice: Choice, question: str) -> None:
    said = [entry("user", "one"), entry("assistant", "1")]
    view = ask(parrot, choice, question, said)[-1]
    assert texts(view.log) == ["one", "1", question]
    assert view.failed and not view.running
    assert ("in plain words" in view.status) or ("ZeroDivisionError" in view.status)


@pytest.mark.parametrize(
    ("choice", "question", "says"),
    [
        (ALONE, "  ", "The message is empty"),
        (replace(ALONE, base_model=None), "hello", "Base model: choose one."),
        (replace(ALONE, sampling_values=(9, 1, 9, 5)), "hello", "Temperature: '9' cannot be used"),
    ],
)
def test_what_is_wrong_is_said(parrot: Parrot, choice: Choice, question: str, says: str) -> None:
    view = ask(parrot, choice, question)[-1]
    assert says in view.status and view.failed and not view.running
    assert parrot.asked == []


def test_stopping_the_base_model_spares_the_other(parrot: Parrot) -> None:
    stop = threading.Event()
    for view in answer(parrot, BOTH, "long", [], [], stop):
        if "on" in " ".join(texts(view.base_log)):
            stop.set()
    assert len(parrot.asked) == 1
    assert not view.running and texts(view.log) == ["long"]


def test_choices(folders: Folders) -> None:
    assert base_choices(folders, "org/model") == ["other", "starter", "org/model"]
    assert base_choices(folders, "starter") == base_choices(folders, None) == ["other", "starter"]
    assert [value for _, value in adapter_choices(folders)] == [NO_ADAPTER, "foreign", "pirate", "running"]
    assert [value for _, value in checkpoint_choices(folders, "pirate")] == [FINAL, "40", "20"]
    assert [value for _, value in checkpoint_choices(folders, "running")] == ["5"], "it is not finished"
    assert [value for _, value in checkpoint_choices(folders, "gone")] == [FINAL]
    assert titles("starter", "", None) == ("Base model: starter",) * 2
    assert titles("starter", "pirate", "20") == ("Base model: starter", "LoRA: pirate, step 20")


def values(updates: list[Any]) -> list[Any]:
    """The chosen base model, LoRA and checkpoint."""
    return [update["value"] for update in updates[:3]]


def test_a_lora_brings_its_base_model_and_checkpoints(tab: ChatTab) -> None:
    updates = tab._choose("starter", "pirate", FINAL, True)
    assert values(updates) == ["other", "pirate", FINAL]
    assert updates[3]["interactive"] and updates[5]["visible"]
    assert updates[4]["label"] == "LoRA: pirate" and updates[5]["label"] == "Base model: other"
    assert values(tab._choose("starter", "pirate", 20, False)) == ["other", "pirate", "20"]
    assert values(tab._choose("starter", "running", None, False)) == ["other", "running", "5"]


def test_a_lora_that_does_not_tell_its_base_keeps_the_chosen_one(tab: ChatTab) -> None:
    updates = tab._choose("starter", "foreign", FINAL, False)
    assert values(updates) == ["starter", "foreign", FINAL]
    assert "does not say on which base model" in updates[-2]


def test_a_refresh_keeps_the_choice_as_far_as_it_is_there(tab: ChatTab, folders: Folders) -> None:
    assert values(tab.updates("org/model", "pirate", "20", True)) == ["org/model", "pirate", "20"]
    (folders.loras / "pirate" / "checkpoint-20").rename(folders.loras / "gone")
    assert values(tab.updates("starter", "pirate", "20", True)) == ["starter", "pirate", FINAL]
    updates = tab.updates("starter", "deleted", "20", True)
    assert values(updates) == ["starter", NO_ADAPTER, FINAL]
    assert not updates[3]["interactive"] and not updates[5]["visible"]


def test_a_page_that_asked_nothing_learns_that_the_model_was_put_away(tab: ChatTab, parrot: Parrot) -> None:
    form = ("starter", NO_ADAPTER, FINAL, False)
    assert tab.updates(*form)[-2] == gr.skip()
    parrot.put_away = True
    assert PUT_AWAY in tab.updates(*form)[-2] and PUT_AWAY in tab._choose(*form)[-2]


def test_a_second_message_waits_until_the_first_is_answered(tab: ChatTab, parrot: Parrot) -> None:
    request: Any = SimpleNamespace(session_hash="me")
    form = ("starter", NO_ADAPTER, FINAL, "16-bit", False, "", *DEFAULTS)
    running = tab._answer(request, "long", [], [], *form)
    first = next(running)
    assert first[-1] == "", "the message box is emptied at once"
    assert list(tab._answer(request, "hello", [], [], *form)) == [[gr.skip()] * 8], "what was typed stays in its box"
    tab._stop(request)
    assert list(running)[-1][3]["interactive"], "Send is free again"
    assert list(tab._answer(request, "hello", [], [], *form))
    assert tab._stop(request)[0]["interactive"], "nothing runs, so Stop frees the buttons"


def test_answering_again_replaces_the_last_answer_of_both_sides(tab: ChatTab, parrot: Parrot) -> None:
    request: Any = SimpleNamespace(session_hash="me")
    form = ("starter", "pirate", FINAL, "16-bit", True, "", *DEFAULTS)
    log, base_log = [entry("user", "one"), entry("assistant", "old")], [entry("user", "other")]
    update = list(tab._answer_again(request, log, base_log, *form))[-1]
    assert texts(update[0]) == ["one", "pirate heard: one"]
    assert texts(update[1]) == ["other", "one", "starter heard: one"]


def test_nothing_is_answered_again_in_an_empty_conversation(tab: ChatTab, parrot: Parrot) -> None:
    request: Any = SimpleNamespace(session_hash="me")
    form = ("starter", NO_ADAPTER, FINAL, "16-bit", False, "", *DEFAULTS)
    (update,) = tab._answer_again(request, [], [], *form)
    assert "no answer yet" in update[2] and update[3]["interactive"]


@dataclass
class Opened:
    """The tab in a browser, and how to reach what is in it."""

    visit: Visit
    alerts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.visit.page.on("dialog", lambda dialog: (self.alerts.append(dialog.message), dialog.dismiss()))

    def choose(self, elem_id: str, option: str) -> None:
        self.visit.page.click(f"#{elem_id} input")
        self.visit.page.locator(f"#{elem_id} [role=option]", has_text=option).first.click()

    def send(self, text: str) -> None:
        self.visit.page.fill("#chat-message textarea", text)
        self.visit.page.press("#chat-message textarea", "Enter")

    def wait_for(self, elem_id: str, text: str) -> None:
        self.visit.page.wait_for_function(
            "([id, text]) => document.getElementById(id)?.innerText.includes(text)", arg=[elem_id, text]
        )

    def wait_until_idle(self) -> None:
        self.visit.page.wait_for_function(
            "() => !document.getElementById('chat-send').disabled && document.getElementById('chat-stop').disabled"
        )


@pytest.fixture
def opened(folders: Folders, parrot: Parrot, visit: Callable[..., Visit]) -> Iterator[Opened]:
    with gr.Blocks(analytics_enabled=False) as page, gr.Tab("Chat", id="chat") as chat:
        build_chat_tab(folders, parrot).refresh_on(chat.select, page.load)
    fonts = ["sans-serif"]
    look = gr.themes.Base(font=fonts, font_mono=fonts)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, theme=look, css_paths=[STYLE])
    result = Opened(visit(url))
    result.visit.page.wait_for_selector("#chat-log")
    yield result
    page.close()


@pytest.mark.browser
def test_the_tab_in_a_browser(opened: Opened) -> None:
    page = opened.visit.page
    page.locator("#chat-log .example").first.click()
    opened.wait_for("chat-log", f"starter heard: {EXAMPLES[0]}")
    opened.send(NASTY)
    opened.wait_for("chat-log", f"starter heard: {NASTY}")
    opened.wait_until_idle()
    assert page.locator("#chat-log .message b, #chat-log .message img, #chat-log .message script").count() == 0

    opened.choose("chat-adapter", "pirate")
    opened.wait_for("chat-log", "LoRA: pirate")
    page.check("#chat-compare input")
    page.wait_for_selector("#chat-log-base")
    opened.send("a long one")
    opened.wait_for("chat-log-base", "on on on")
    page.click("#chat-stop")
    opened.wait_until_idle()

    opened.send("now fail")
    opened.wait_for("chat-status", "It failed <b>in plain words</b>.")
    opened.wait_until_idle()
    assert "now fail" in page.inner_text("#chat-log") and "now fail" in page.inner_text("#chat-log-base")
    opened.send("again")
    opened.wait_for("chat-log", "pirate heard: again")
    opened.wait_for("chat-log-base", "other heard: again")
    page.click("#chat-regenerate")
    opened.wait_until_idle()
    page.click("#chat-clear")
    page.wait_for_selector("#chat-log .example")
    assert opened.alerts == []
    opened.visit.assert_clean()
