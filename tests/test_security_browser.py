"""In a real browser: no text of a stranger becomes markup anywhere on the page, and a password keeps it shut."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, expect

from app import PASSWORD
from tests.server import Server, running_server
from tests.tiny import CHATML, add_base, make_settings, make_tokenizer
from training.events import CheckpointSaved, Note, Started, Step
from training.paths import Folders

if TYPE_CHECKING:
    from tests.conftest import Visit

pytestmark = pytest.mark.browser

SECOND = 1000  # milliseconds
CHECKED = 90 * SECOND  # the first check imports torch
MARK = '<img data-caught src=x onerror="window.pwned=1">'
EVIL = f"{MARK}<script>window.pwned=1</script><svg onload=window.pwned=1>[a](javascript:window.pwned=1)</textarea>"
NAME = "<img data-caught src=x onerror=window.pwned=1>"  # a file's name has no slash
_CAUGHT = """() => ({
    pwned: window.pwned === undefined ? 'no' : 'yes',
    made: document.querySelectorAll('[data-caught]').length,
    links: document.querySelectorAll('a[href^="javascript"]').length,
})"""
_PASSWORD = "correct horse battery"


def _hostile_folders(root: Path) -> Folders:
    """Data, a model and a run in which every name and every text is markup."""
    folders = Folders(models=root / "models", datasets=root / "datasets", loras=root / "loras")
    folders.make()
    rows = [{"question": EVIL, "answer": EVIL}] * 3 + [{"question": EVIL}, {NAME: EVIL}]
    (folders.datasets / f"{NAME}.json").write_text(json.dumps(rows))
    (folders.datasets / f"{NAME}.txt").write_text(EVIL)
    base = add_base(folders, NAME)
    make_tokenizer(CHATML.replace("assistant\\n", f"assistant {MARK}\\n")).save_pretrained(str(base))
    run = folders.loras / NAME
    checkpoint = run / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    settings = make_settings(base_model=NAME, dataset=f"{NAME}.json").model_dump()
    (run / "settings.json").write_text(json.dumps(settings | {"name": "evil"}))
    (run / "state.json").write_text(json.dumps({"status": "failed", "cause": f"It says {EVIL}"}))
    (run / "worker.log").write_text(f"12:00:00  {EVIL}\nTraceback {EVIL}\n")
    (run / "receipt.json").write_text(json.dumps({EVIL: EVIL}))
    step = Step(step=1, epoch=1, loss=2, learning_rate=1e-4, grad_norm=1, tokens=9, seconds=1, memory=9)
    saved = CheckpointSaved(step=1, loss=1, evaluation_loss=None)
    events = [Started(from_step=0, total_steps=2, epochs=1), step, Note(level="warning", text=EVIL), saved]
    (run / "events.jsonl").write_text("".join(event.model_dump_json() + "\n" for event in events))
    return folders


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if sys.platform == "win32":
        pytest.skip("Windows allows no such names")
    root = tmp_path_factory.mktemp("evil")
    with running_server(_hostile_folders(root), root / "server.log") as server:
        yield server


def _assert_text_stayed_text(page: Page, shown: str = "") -> None:
    if shown:
        expect(page.locator("body")).to_contain_text(shown, timeout=CHECKED)
    for _ in range(5):  # a picture that cannot be loaded says so a moment later
        assert page.evaluate(_CAUGHT) == {"pwned": "no", "made": 0, "links": 0}
        time.sleep(0.1)


def test_nothing_becomes_markup(server: Server, visit: Callable[..., Visit]) -> None:
    page = visit(server.url, viewport={"width": 1440, "height": 1000}).page
    expect(page.locator("#start")).to_be_enabled(timeout=60 * SECOND)
    _assert_text_stayed_text(page, f"It says {MARK}")
    page.locator("#monitor-log-box > button").click()
    expect(page.locator("#monitor-log-box")).to_contain_text("Log")
    for name in ("base_model", "dataset"):
        box = page.locator(f"#setting-{name} input").first
        box.click()
        _assert_text_stayed_text(page)
        box.press("Escape")
    page.locator("#setting-base_model input").first.fill(NAME)
    page.locator("#setting-base_model input").first.press("Enter")
    page.locator("#setting-name input, #setting-name textarea").first.fill(EVIL)
    page.locator("#start").click()
    expect(page.locator(".graft-problems").first).to_be_visible(timeout=CHECKED)
    _assert_text_stayed_text(page)

    page.get_by_role("tab", name="Datasets").click()
    _assert_text_stayed_text(page, NAME)
    page.get_by_role("tab", name="Chat").click()
    page.locator("#chat-base input").click()
    _assert_text_stayed_text(page)
    page.keyboard.press("Escape")
    page.locator("#chat-message textarea").fill(EVIL)
    page.locator("#chat-send").click()
    expect(page.locator("#chat-send")).to_be_enabled(timeout=CHECKED)
    _assert_text_stayed_text(page, "window.pwned=1")
    page.get_by_role("tab", name="Learn").click()
    _assert_text_stayed_text(page)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("locked")
    folders = Folders(datasets=root / "datasets", loras=root / "loras")
    folders.make()
    os.environ[PASSWORD] = _PASSWORD
    try:
        with running_server(folders, root / "server.log") as server:
            yield server
    finally:
        del os.environ[PASSWORD]


def test_the_password_opens_the_page(locked: Server, visit: Callable[..., Visit]) -> None:
    seen = visit(locked.url, viewport={"width": 1440, "height": 1000})
    page = seen.page
    expect(page).to_have_title("Graft: log in")
    seen.assert_clean()
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("This is not the password")
    seen.errors.clear()  # the browser notes down that it was turned away
    page.get_by_label("Password").fill(_PASSWORD)
    page.get_by_label("Password").press("Enter")
    expect(page.locator("#start")).to_be_enabled(timeout=60 * SECOND)
    page.reload()
    expect(page.locator("#start")).to_be_enabled(timeout=60 * SECOND)
    seen.assert_clean()
    assert _PASSWORD not in locked.log.read_text()
