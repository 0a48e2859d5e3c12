"""The Learn tab in a real browser: the picture follows its sliders, links lead to sections, names stay text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from peft import LoraConfig, get_peft_model
from playwright.sync_api import Locator, Page, expect
from transformers import AutoConfig, AutoModelForCausalLM

from tests.server import Server
from training.paths import Folders

if TYPE_CHECKING:
    from tests.conftest import Visit

pytestmark = pytest.mark.browser

SECOND = 1000  # milliseconds
READ = 90 * SECOND  # the first LoRA that is looked at imports torch
NASTY = "<img src=x onerror=\"document.title='caught'\"><b>bold"


def _open(page: Page) -> None:
    page.get_by_role("tab", name="Learn").click()
    expect(page.locator("#learn-picture rect.learn-product")).to_be_visible()


def _number(page: Page, name: str) -> Locator:
    return page.locator(f"#learn-picture [data-number={name}]")


def _product(text: str) -> str:
    """The text with the sign that the page has for "times"."""
    return text.replace("x", "\N{MULTIPLICATION SIGN}")


def _slide(page: Page, name: str, key: str) -> None:
    page.locator(f"#learn-picture input[name={name}]").press(key)


def _choose(page: Page, box: str, option: str) -> None:
    page.locator(f"#{box} input").click()
    page.locator(f"#{box}").get_by_role("option", name=option, exact=True).click()


def _width(page: Page, matrix: str) -> float:
    box = page.locator(f"#learn-picture rect.learn-{matrix}").first.bounding_box()
    assert box is not None
    return box["width"]


def _add_lora(loras: Path, name: str) -> None:
    """A LoRA of rank 8 on the starter that uses two directions."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(Folders.models / "starter"))
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model = model.to_empty(device="cpu")
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            rank = min(parameter.shape)
            parameter.data = torch.eye(*parameter.shape) * (torch.arange(rank) < 2).repeat(
                parameter.shape[1] // rank if parameter.shape[1] > rank else 1
            )
    model.save_pretrained(str(loras / name))


def test_picture_and_numbers_follow_the_sliders(page: Page) -> None:
    """500 x 100 numbers against 6,000 at rank 10 first; then each slider changes what it stands for."""
    _open(page)
    expect(_number(page, "frozen")).to_have_text(_product("500 x 100 = 50,000"))
    expect(_number(page, "trained")).to_have_text(_product("500 x 10 + 10 x 100 = 6,000"))
    expect(_number(page, "share")).to_have_text("12 %")
    expect(_number(page, "scale")).to_have_text("20 / 10 = 2")
    thin = _width(page, "trained")

    _slide(page, "rank", "End")
    expect(_number(page, "trained")).to_have_text(_product("500 x 128 + 128 x 100 = 76,800"))
    expect(_number(page, "scale")).to_have_text("20 / 128 = 0.156")
    expect(page.locator("#learn-picture .learn-hint")).to_contain_text("at most 100 directions")
    assert _width(page, "trained") > 4 * thin
    assert _width(page, "trained") > _width(page, "frozen")  # 128 beside 100: in proportion

    _slide(page, "alpha", "End")
    expect(_number(page, "scale")).to_have_text("256 / 128 = 2")
    _slide(page, "rank", "Home")
    expect(_number(page, "trained")).to_have_text(_product("500 x 1 + 1 x 100 = 600"))
    _slide(page, "rows", "Home")
    _slide(page, "columns", "End")
    expect(_number(page, "frozen")).to_have_text(_product("100 x 14,336 = 1,433,600"))
    assert _width(page, "frozen") > 100
    for matrix in page.locator("#learn-picture svg rect, #learn-picture svg text").all():
        inner, outer = matrix.bounding_box(), page.locator("#learn-picture svg").bounding_box()
        assert inner is not None and outer is not None
        assert inner["x"] >= outer["x"] - 1 and inner["x"] + inner["width"] <= outer["x"] + outer["width"] + 1


def test_table_switches_between_layers_and_models(page: Page) -> None:
    _open(page)
    table = page.locator("#learn-rank-table")
    expect(table).to_contain_text("39,976,960")
    page.locator("#learn-targets").get_by_label("Queries and values only").check()  # while the starter is counted
    expect(table).to_contain_text("8,388,608", timeout=READ)
    expect(table.locator("th.learn-chosen")).to_contain_text("starter")
    expect(table).not_to_contain_text("39,976,960")
    _choose(page, "learn-model", "None")
    expect(table.locator("th.learn-chosen")).to_have_count(0)


def test_links_lead_to_their_sections(server: Server, visit: Callable[..., Visit]) -> None:
    """From another tab, as the settings do, from the tab itself, and where the tabs have no room in a line."""
    for width in (1440, 400):
        seen = visit(server.url, viewport={"width": width, "height": 700})
        page = seen.page
        expect(page.locator("#start")).to_be_enabled(timeout=60 * SECOND)
        link = '<a href="#learn-alpha">more</a>'
        page.locator("#graft-header").evaluate("(header, link) => header.insertAdjacentHTML('beforeend', link)", link)
        page.locator("#graft-header a").click()
        expect(page.locator("#learn-alpha")).to_be_in_viewport(timeout=10 * SECOND)
        page.locator(".learn-contents a", has_text="Beside LoRA").click()
        expect(page.locator("#learn-methods")).to_be_in_viewport()
        assert page.url.rstrip("/") == server.url.rstrip("/")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        seen.assert_clean()


def test_lora_with_a_hostile_name_is_drawn(server: Server, page: Page) -> None:
    _add_lora(server.folders.loras, NASTY)
    _open(page)
    _choose(page, "learn-adapter", NASTY)
    drawn = page.locator("#learn-spectrum-result")
    expect(drawn.locator(".learn-verdict")).to_have_text(
        "Of rank 8, this LoRA uses about 2.0: a lower rank, such as 2, would probably do as well.", timeout=READ
    )
    expect(drawn).to_contain_text(NASTY)
    expect(drawn.locator(".learn-heat-rank i")).to_have_text(["2.0"] * 6)
    expect(drawn.locator("polyline")).to_have_count(6)
    assert drawn.locator("img").count() == 0
    assert page.title() == "Graft"
    (server.folders.loras / NASTY / "adapter_model.safetensors").write_bytes(b"cut")
    page.reload()
    _open(page)
    _choose(page, "learn-adapter", NASTY)
    expect(drawn.get_by_role("alert")).to_contain_text("is damaged", timeout=READ)
