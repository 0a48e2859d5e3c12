"""The main job in a real browser, from the first visit to the chat, with real trainings on the starter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel
from playwright.sync_api import Page, expect
from transformers import AutoModelForCausalLM

from tests.server import Server
from training.paths import Folders
from training.run_state import Status
from training.runs import Run
from training.settings_info import describe

if TYPE_CHECKING:
    from tests.conftest import Visit

pytestmark = pytest.mark.browser

SECOND = 1000  # milliseconds
PREPARED = 90 * SECOND  # importing torch and loading the starter, on a busy machine
TRAINED = 300 * SECOND
_FILES = ("dataset", "raw_text")  # boxes in which several can be chosen
WARRANTY = "Hello, I would like to speak to you about your car's extended warranty"


def _setting(page: Page, name: str) -> Any:
    return page.locator(f"#setting-{name} input").first


def _fill(page: Page, **values: Any) -> None:
    """Type values into the form's boxes, opening the accordions that hide them."""
    if not all(_setting(page, name).is_visible() for name in values):
        for folded in ("#evaluation-box", "#advanced-box"):
            page.locator(f"{folded} > button").click()
        for name in values:
            expect(_setting(page, name)).to_be_visible()
    for name, value in values.items():
        box = _setting(page, name)
        box.fill(str(value))
        if name in _FILES:
            box.press("Enter")
        box.blur()
        if name not in _FILES:
            expect(box).to_have_value(str(value))


def _expect_file(page: Page, name: str, file: str) -> None:
    """The box for files holds this one and no other."""
    chosen = page.locator(f"#setting-{name} .token")
    expect(chosen).to_have_count(1, timeout=60 * SECOND)
    expect(chosen).to_contain_text(file)


def _start(page: Page) -> None:
    page.locator("#start").click()
    expect(page.locator("#form-message")).to_contain_text("has started", timeout=30 * SECOND)


def _status(page: Page) -> Any:
    return page.locator("#monitor-status")


def _points(page: Page) -> int:
    """Points of the training curve that the chart really drew."""
    return int(page.evaluate("(document.querySelector('#monitor .plot')?.data ?? [{x: []}])[0].x.length"))


def _wait_for_points(page: Page, count: int) -> None:
    page.wait_for_function(
        f"(document.querySelector('#monitor .plot')?.data ?? [{{x: []}}])[0].x.length >= {count}", timeout=PREPARED
    )


def test_first_visit_trains_and_the_chat_shows_the_difference(server: Server, page: Page) -> None:
    """Everything at its default: click Start, wait, chat with base and adapter side by side."""
    _start(page)
    expect(_status(page)).to_contain_text("Training", timeout=PREPARED)
    _wait_for_points(page, 3)
    expect(page.locator("#monitor-checkpoints")).to_contain_text("checkpoint-", timeout=TRAINED)
    expect(_status(page)).to_contain_text("Done", timeout=TRAINED)
    run = Run(server.folders.loras / "my-first-lora")
    assert run.state().status is Status.DONE
    receipt = json.loads(run.receipt_file.read_text())
    assert receipt["total_steps"] == _points(page)

    page.locator("#monitor-chat").click()
    page.locator("#chat-compare input").check()
    page.locator("#chat-settings > button").click()
    page.locator("#chat-temperature input[type=number]").fill("0")  # the likeliest words, so that no draw decides
    page.locator("#chat-temperature input[type=number]").blur()
    page.locator("#chat-message textarea").fill(WARRANTY)
    page.locator("#chat-send").click()
    adapter, base = page.locator("#chat-log"), page.locator("#chat-log-base")
    expect(adapter).to_contain_text("extended warranty", timeout=PREPARED)
    expect(page.locator("#chat-stop")).to_be_enabled(timeout=PREPARED)
    expect(page.locator("#chat-send")).to_be_enabled(timeout=PREPARED)
    assert "extended warranty" in _last_answer(adapter)
    assert _last_answer(base)
    assert "extended warranty" not in _last_answer(base)


def _last_answer(log: Any) -> str:
    return str(log.locator(".bot").last.inner_text())


def test_upload_stop_refresh_continue_and_copy(
    server: Server, page: Page, visit: Callable[..., Visit], tmp_path: Path
) -> None:
    """A run on an uploaded file lives through a reload, a second page, a stop and a continuation."""
    rows = json.loads((Folders.datasets / "car_warranty.json").read_text())
    upload = tmp_path / "my rows.json"
    upload.write_text(json.dumps(rows[:24]))
    with page.expect_file_chooser() as chooser:
        page.locator("#upload-dataset").click()
    chooser.value.set_files(upload)
    expect(page.locator("#form-message")).to_contain_text("my rows.json is stored")
    _expect_file(page, "dataset", "my rows.json")

    _fill(page, name="uploaded", epochs="40", learning_rate="1e-3", batch_size="8", save_every="5", evaluate_every="5")
    _start(page)
    _wait_for_points(page, 6)
    expect(page.locator("#monitor-checkpoints")).to_contain_text("checkpoint-5", timeout=PREPARED)

    page.reload()
    _wait_for_points(page, 7)
    expect(_status(page)).to_contain_text("uploaded")
    expect(_setting(page, "name")).to_have_value("uploaded")  # what was typed is there after a reload
    expect(_setting(page, "learning_rate")).to_have_value("1e-3")
    second = visit(server.url).page
    expect(_status(second)).to_contain_text("uploaded", timeout=PREPARED)

    page.locator("#monitor-stop").click()
    expect(_status(page)).to_contain_text("Stopped and saved", timeout=PREPARED)
    expect(_status(second)).to_contain_text("Stopped and saved", timeout=PREPARED)
    run = Run(server.folders.loras / "uploaded")
    stopped_at = run.checkpoints()[-1].step
    assert 5 <= stopped_at < 100
    _load_plainly(run.folder)

    page.locator("#monitor-continue").click()
    _wait_for_points(page, stopped_at + 2)
    page.locator("#monitor-stop").click()
    expect(_status(page)).to_contain_text("Stopped and saved", timeout=PREPARED)
    assert run.checkpoints()[-1].step > stopped_at

    fresh = visit(server.url).page
    expect(_setting(fresh, "name")).to_have_value("my-first-lora", timeout=60 * SECOND)
    fresh.locator("#copy-from input").click()
    fresh.get_by_role("option", name="uploaded", exact=True).click()
    expect(_setting(fresh, "name")).to_have_value("uploaded")
    _expect_file(fresh, "dataset", "my rows.json")
    expect(_setting(fresh, "learning_rate")).to_have_value("0.001")
    fresh.locator("#advanced-box > button").click()
    expect(_setting(fresh, "save_every")).to_have_value("5")


def _load_plainly(folder: Path) -> None:
    """The adapter loads outside the project's code and does something."""
    base = AutoModelForCausalLM.from_pretrained(Folders.models / "starter", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    before = base(ids).logits
    assert not torch.equal(before, PeftModel.from_pretrained(base, str(folder))(ids).logits)


def test_raw_text_is_uploaded_and_trained_without_the_page(
    server: Server, visit: Callable[..., Visit], tmp_path: Path
) -> None:
    """The browser is closed as soon as the training began; it goes on, and a new page shows it."""
    seen = visit(server.url, viewport={"width": 800, "height": 1000})
    page = seen.page
    expect(page.locator("#start")).to_be_enabled(timeout=60 * SECOND)
    page.locator("#data-kind").get_by_label("Raw text file").check()
    text = tmp_path / "story.txt"
    text.write_text((Folders.datasets / "lighthouse_keeper.txt").read_text()[:6000])
    with page.expect_file_chooser() as chooser:
        page.locator("#upload-text").click()
    chooser.value.set_files(text)
    _expect_file(page, "raw_text", "story.txt")
    _fill(
        page, name="story", epochs="2", batch_size="4", cutoff_length="128", overlap_length="32", held_out_share="0.2"
    )
    _start(page)
    page.context.close()

    later = visit(server.url).page
    expect(_status(later)).to_contain_text("Done", timeout=TRAINED)
    run = Run(server.folders.loras / "story")
    receipt = json.loads(run.receipt_file.read_text())
    assert receipt["data"][0]["format"] == "raw text"
    losses = [json.loads(line) for line in run.events_file.read_text().splitlines()]
    evaluations = [event["loss"] for event in losses if event["type"] == "evaluation"]
    assert evaluations[-1] < evaluations[0]
    seen.assert_clean()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": ""}, "Name: type a name"),
        ({"name": "../../etc"}, "Name: "),
        ({"learning_rate": "fast"}, "Learning rate: 'fast' is not a number"),
        ({"batch_size": "2", "micro_batch_size": "4"}, "Micro-batch size: 4 is more than the batch size of 2"),
        ({"epochs": ""}, "Epochs: it is empty"),
        ({"batch_size": "-3"}, "Batch size: -3 is too low"),
        ({"base_model": "no-such-folder"}, "Base model: there is no folder 'no-such-folder'"),
        ({"base_model": "some.gguf"}, "GGUF"),
        ({"dataset": "gone.json"}, "gone.json"),
    ],
)
def test_wrong_input_is_a_sentence_and_nothing_is_lost(
    server: Server, page: Page, values: dict[str, str], says: str
) -> None:
    before = sorted(path.name for path in server.folders.loras.iterdir())
    _fill(page, lora_rank="12", **values)
    page.locator("#start").click()
    expect(page.locator("#form-message")).to_contain_text(says, timeout=30 * SECOND)
    expect(_setting(page, "lora_rank")).to_have_value("12")
    assert sorted(path.name for path in server.folders.loras.iterdir()) == before


def test_wrong_upload_is_a_sentence(server: Server, page: Page, tmp_path: Path) -> None:
    bad = tmp_path / "broken.json"
    bad.write_text('[{"instruction": "a", "output": "b"}')
    with page.expect_file_chooser() as chooser:
        page.locator("#upload-dataset").click()
    chooser.value.set_files(bad)
    expect(page.locator("#form-message")).to_contain_text("broken.json ends after row 1")
    assert not (server.folders.datasets / "broken.json").exists()


def test_preset_fills_the_form_and_switches_the_kind_of_data(page: Page) -> None:
    page.locator("#preset input").click()
    page.get_by_role("option", name="Raw text", exact=True).click()
    expect(_setting(page, "lora_rank")).to_have_value("32")
    expect(_setting(page, "raw_text")).to_be_visible()
    _expect_file(page, "raw_text", "lighthouse_keeper.txt")
    page.reload()
    _expect_file(page, "raw_text", "lighthouse_keeper.txt")
    expect(page.locator("#preset")).to_contain_text("one text file")  # the description is that of this preset
    # Passing through the box is no choice: what was changed by hand stays.
    _fill(page, epochs="7")
    page.locator("#preset input").focus()
    page.keyboard.press("Tab")
    page.locator("#copy-from input").focus()
    page.keyboard.press("Tab")
    page.wait_for_timeout(1 * SECOND)  # an update that must not come cannot be waited for
    expect(_setting(page, "epochs")).to_have_value("7")


def _choose(page: Page, name: str, choice: str) -> None:
    _setting(page, name).click()
    page.get_by_role("option", name=choice, exact=True).click()


def _reload(page: Page) -> None:
    page.wait_for_timeout(1 * SECOND)  # what is on its way is to arrive before the page is left
    page.reload()


def _in_view(page: Page) -> set[str]:
    """The settings of methods that can be seen."""
    conditional = [info.name for info in describe() if info.methods]
    return {name for name in conditional if page.locator(f"#setting-{name}").is_visible()}


def _expect_settings_of(page: Page, method: str) -> None:
    expected = {info.name for info in describe() if method in info.methods} - {"target_modules"}
    names = [info.name for info in describe() if info.methods]
    for name in names:
        expect(page.locator(f"#setting-{name}")).to_be_visible(visible=name in expected)
    assert _in_view(page) == expected


def test_target_modules_are_those_of_the_model(page: Page) -> None:
    page.locator("#targets-box > button").click()
    everything, attention = page.locator("#targets-all-linear"), page.locator("#targets-attention")
    expect(everything).to_contain_text("all-linear (42)", timeout=PREPARED)
    attention.get_by_label("q_proj (6)").check()
    expect(everything.get_by_role("checkbox")).not_to_be_checked()
    page.locator("#targets-feed-forward").get_by_label("up_proj (6)").check()
    expect(page.locator("#setting-target_modules .token")).to_have_count(2)
    _reload(page)
    page.locator("#targets-box > button").click()
    expect(attention.get_by_label("q_proj")).to_be_checked()
    expect(everything.get_by_role("checkbox")).not_to_be_checked()
    everything.get_by_role("checkbox").check()
    expect(attention.get_by_label("q_proj")).not_to_be_checked()


def test_method_shows_only_its_settings(page: Page) -> None:
    for folded in ("#targets-box", "#patterns-box", "#variants-box"):
        page.locator(f"{folded} > button").click()
    _expect_settings_of(page, "LoRA")
    for method in ("prefix tuning", "VeRA", "IA3", "full fine-tuning"):
        _choose(page, "method", method)
        _expect_settings_of(page, method)
    expect(page.locator("#start")).to_have_text("Start Training")
    _reload(page)
    expect(page.locator("#start")).to_have_text("Start Training")
    page.locator("#targets-box > button").click()
    _expect_settings_of(page, "full fine-tuning")
    # A preset brings its method along.
    page.locator("#preset input").click()
    page.get_by_role("option", name="QLoRA for a small GPU", exact=True).click()
    expect(page.locator("#start")).to_have_text("Start LoRA Training")
    expect(page.locator("#setting-lora_alpha")).to_be_visible()
    expect(page.locator("#setting-quantization_type")).to_be_visible()
    _choose(page, "precision", "16-bit")
    expect(page.locator("#setting-quantization_type")).to_be_hidden()


def test_an_earlier_lora_can_be_chosen_and_its_fit_is_told(server: Server, page: Page) -> None:
    folder = server.folders.loras / "from-afar"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 64, "lora_alpha": 32, "base_model_name_or_path": "starter"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").touch()
    page.locator("#earlier-box > button").click()
    hint = page.locator("#earlier-hint")
    expect(page.locator("#setting-start_from")).to_be_visible()
    option = page.get_by_role("option", name="from-afar", exact=True)
    for _ in range(60):  # the choices come some time after the box has opened, and a list that is open keeps its own
        _setting(page, "start_from").click()
        page.wait_for_timeout(SECOND / 2)
        if option.is_visible():
            break
        page.keyboard.press("Escape")
        _setting(page, "start_from").blur()
    option.click()
    expect(hint).to_contain_text("It has rank 64 and alpha 32, and is continued at rank 16")
    _fill(page, lora_rank="64")
    expect(hint).to_be_hidden()
    _choose(page, "method", "VeRA")
    expect(hint).to_contain_text("of the method LoRA, not VeRA")
    page.locator("#start").click()
    expect(page.locator("#form-message")).to_contain_text("of the method LoRA, not VeRA", timeout=30 * SECOND)
