"""The box that downloads models, in a real browser, from a stand-in of the Hub to the chosen model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest
from huggingface_hub import constants
from playwright.sync_api import Page, expect

from tests.hub_stand_in import TOKEN, StandIn, folder_repo, running_hub
from tests.tiny import make_folders
from training import hub
from training.downloads import Download, DownloadProgress, begin
from training.hub import Wanted
from training.paths import Folders, list_models
from ui import model_box
from ui.model_box import STYLE, ModelBox, about_html, progress_html
from ui.page import launch_options

if TYPE_CHECKING:
    from tests.conftest import Visit

MODEL, GATED = "org/starter", "org/gated"
SECOND = 1000  # milliseconds
SCRIPT = "<img src=x onerror=\"document.title='caught'\">"


@dataclass
class Bench:
    """A page with nothing but a base model and the box."""

    url: str
    hub: StandIn
    folders: Folders


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    folders = replace(make_folders(tmp_path), hub_cache=tmp_path / "hub")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "nobody"))
    monkeypatch.setattr(hub, "_WAIT", 0.0)
    starter = Folders().models / "starter"
    with running_hub({MODEL: folder_repo(starter), GATED: folder_repo(starter, gated=True)}) as stand_in:

        def start(repo_id: str, *, token: str | None, with_code: bool) -> Download:
            return begin(Wanted(repo_id, token or None, with_code, stand_in.url, folders.hub_cache))

        monkeypatch.setattr(model_box, "start_download", start)
        with gr.Blocks() as page:
            models = gr.Dropdown(list_models(folders), allow_custom_value=True, label="Base model", elem_id="base")
            code = gr.Checkbox(label="Run the model's own code")
            box = ModelBox(folders)
            box.build()
            box.wire(page, models, code, lambda: {models: gr.update(choices=list_models(folders))}, {models})
        look = launch_options()
        look["css_paths"] = [*look["css_paths"], STYLE]
        _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **look)
        yield Bench(url, stand_in, folders)
        page.close()


def _open(visit: Callable[..., Visit], bench: Bench, **look: Any) -> Page:
    page = visit(bench.url, viewport={"width": 1000, "height": 900}, **look).page
    expect(page.locator("#model-about")).to_contain_text("choose one", timeout=30 * SECOND)
    page.locator("#model-box > button").click()
    return page


def _download(page: Page, name: str, token: str = "") -> None:
    page.locator("#model-name input").fill(name)
    page.locator("#model-name input").press("Enter")
    if token:
        page.locator("#model-token input").fill(token)
    page.locator("#model-download").click()


@pytest.mark.browser
def test_download_seen_after_a_reload_cancelled_finished_and_chosen(visit: Callable[..., Visit], bench: Bench) -> None:
    page = _open(visit, bench)
    bench.hub.hold_after = 1 << 20
    _download(page, MODEL)
    progress = page.locator("#model-progress")
    expect(progress).to_contain_text("Downloading org/starter")
    expect(progress).to_contain_text("of 11 MB")
    expect(page.locator("#model-download")).to_be_disabled()

    page.reload()
    expect(progress).to_contain_text("Downloading org/starter")  # the box opens by itself
    page.locator("#model-cancel").click()
    bench.hub.go_on.set()
    expect(progress).to_contain_text("was cancelled: what is there is kept")
    expect(page.locator("#model-cancel")).to_be_hidden()
    expect(page.locator("#base input")).to_have_value("")

    _download(page, MODEL)
    expect(progress).to_contain_text("is on this computer now")
    expect(page.locator("#base input")).to_have_value(MODEL)
    expect(page.locator("#model-about")).to_contain_text("Llama, 5.2 million parameters")
    assert bench.hub.weights_asked()[-1].range.startswith("bytes="), "it went on where it was cancelled"


@pytest.mark.browser
def test_gated_model_asks_for_a_token_and_forgets_it(visit: Callable[..., Visit], bench: Bench) -> None:
    page = _open(visit, bench)
    _download(page, GATED)
    expect(page.locator("#model-progress [role=alert]")).to_contain_text("is gated: accept its terms")
    _download(page, GATED, TOKEN)
    expect(page.locator("#base input")).to_have_value(GATED)
    token = page.locator("#model-token input")
    expect(token).to_have_value("")
    assert (token.get_attribute("type"), token.get_attribute("autocomplete")) == ("password", "one-time-code")
    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert TOKEN not in stored


@pytest.mark.browser
def test_what_is_typed_stays_text(visit: Callable[..., Visit], bench: Bench) -> None:
    page = _open(visit, bench)
    _download(page, SCRIPT)
    expect(page.locator("#model-progress [role=alert]")).to_contain_text(f"'{SCRIPT}' is no name of a model")
    assert page.title() != "caught"


def test_progress_as_text() -> None:
    progress = DownloadProgress(3 * 10**9, 12 * 10**9, 25e6, "model-<1>.safetensors")
    shown = progress_html("org/<b>", progress)
    assert "3.0 GB of 12 GB, 25 MB/s, 6 min left, model-&lt;1&gt;.safetensors" in shown
    assert "width: 25.0%" in shown and "org/&lt;b&gt;" in shown
    assert "asking the Hub" in progress_html("org/a", DownloadProgress())
    assert "2 h 13 min left" in progress_html("org/a", replace(progress, total_bytes=203 * 10**9))
    assert "10 s left" in progress_html("org/a", replace(progress, done_bytes=11_760_000_000))
    failed = progress_html("org/a", DownloadProgress(state="failed", message="<i>"))
    assert 'role="alert"' in failed and "&lt;i&gt;" in failed


def test_line_about_the_chosen_model(tmp_path: Path) -> None:
    folders = replace(make_folders(tmp_path), hub_cache=tmp_path / "hub")
    assert "Llama, 5.2 million" in about_html(Folders(), "starter")
    assert "Not on this computer yet" in about_html(folders, "org/model")
    assert "graft-note-error" in about_html(folders, "<b>") and "&lt;b&gt;" in about_html(folders, "<b>")
    assert "choose one" in about_html(folders, None)
