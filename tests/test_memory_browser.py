"""Check memory in a real browser: seen going on after a reload, cancelled, and its answer taken into the form."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
import pytest
from playwright.sync_api import Page, expect

from tests.tiny import add_base, make_folders, make_settings
from training import memory_checks
from training.memory_checks import REPORT_FILE, Report, Tried
from ui.memory_box import MemoryBox
from ui.page import launch_options

if TYPE_CHECKING:
    from tests.conftest import Visit

SECOND = 1000  # milliseconds
# Writes one report and then goes on until it is ended.
GOES_ON = """
import os, sys, threading
folder, name, report = sys.argv[1:]
with open(os.path.join(folder, "." + name), "w") as file:
    file.write(report)
os.replace(file.name, os.path.join(folder, name))
threading.Event().wait()
"""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A page with nothing but the box, and a check that does not come to its end."""
    folders = make_folders(tmp_path)
    add_base(folders)
    tried = [Tried(micro_batch_size=1, fits=True, peak=2**30)]
    report = Report(asked=2, tried=tried, trying=2, doing="micro-batch 2").model_dump_json()
    monkeypatch.setattr(
        memory_checks, "check_command", lambda folder: [sys.executable, "-c", GOES_ON, str(folder), REPORT_FILE, report]
    )
    box = MemoryBox(folders)
    with gr.Blocks() as page:
        size = gr.Number(2)
        box.build_result()
        box.build_button()
        box.wire(page, [size], lambda value: make_settings(micro_batch_size=value).model_dump(mode="json"), size)
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    yield url
    box.stop()
    page.close()


@pytest.mark.browser
def test_running_check_is_found_again_and_cancelled(visit: Callable[..., Visit], address: str) -> None:
    page = visit(address).page
    result, cancel = page.locator("#memory-result"), page.locator("#memory-cancel")
    expect(page.locator("#check-memory")).to_be_enabled(timeout=30 * SECOND)
    expect(result).to_be_hidden()
    page.locator("#check-memory").click()
    expect(result).to_contain_text("Checking memory: 1 needs 1.0 GB; micro-batch 2 ...", timeout=30 * SECOND)

    page.reload()
    expect(result).to_contain_text("micro-batch 2 ...", timeout=30 * SECOND)
    expect(page.locator("#check-memory")).to_be_disabled()
    cancel.click()
    expect(result).to_contain_text("The memory check was cancelled.", timeout=30 * SECOND)
    expect(cancel).to_be_hidden()
    expect(page.locator("#check-memory")).to_be_enabled()


@pytest.mark.browser
def test_answer_is_taken_with_one_click(page: Page) -> None:
    size = page.locator("#setting-micro_batch_size input")
    expect(size).to_have_value("4")
    page.locator("#check-memory").click()
    use = page.locator("#memory-use")
    expect(use).to_have_text("Use micro-batch 8", timeout=120 * SECOND)
    expect(page.locator("#memory-result")).to_contain_text("Micro-batch 4 needs")
    expect(page.locator("#memory-result")).to_contain_text("The whole batch of 8 fits at once, too")
    use.click()
    expect(size).to_have_value("8")
    expect(use).to_be_hidden()
