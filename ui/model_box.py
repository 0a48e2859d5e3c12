"""Brings base models from the Hub to this computer, and says in a line what the chosen one is."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from math import ceil
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from training.base_models import about_base_model
from training.downloads import Download, DownloadProgress, start_download
from training.errors import UserError
from training.model_facts import size_text
from training.paths import Folders
from ui.events import QUIET
from ui.messages import news_html, note_html, problems_html

STYLE = Path(__file__).parent / "static" / "models.css"
_TICK = 0.5  # seconds
# Name, what of it is downloaded in GB, and whether its makers ask for an account that has accepted their terms.
_SUGGESTED = (
    ("HuggingFaceTB/SmolLM2-135M-Instruct", 0.3, False),
    ("HuggingFaceTB/SmolLM2-360M-Instruct", 0.7, False),
    ("Qwen/Qwen2.5-0.5B-Instruct", 1.0, False),
    ("google/gemma-3-1b-it", 2.0, True),
    ("meta-llama/Llama-3.2-1B-Instruct", 2.5, True),
    ("Qwen/Qwen3-1.7B", 4.1, False),
    ("Qwen/Qwen3-4B", 8.1, False),
    ("Qwen/Qwen3-8B", 16.4, False),
)
# A browser offers to keep a password, unless it is said to be of use once; Gradio's box cannot say so.
_NOT_TO_BE_KEPT = """() => document.addEventListener('focusin', (event) => {
  if (event.target.closest('#model-token')) event.target.setAttribute('autocomplete', 'one-time-code');
})"""
Refresh = Callable[[], dict[Component, Any]]


def about_html(folders: Folders, name: str | None, *, run_code: bool = False) -> str:
    """What the chosen base model is, in a line, or why it cannot be trained and what to use instead."""
    try:
        return f'<p class="model-about">{escape(about_base_model(folders, name or "", run_code=run_code))}</p>'
    except UserError as error:
        return note_html(str(error), "error")


def progress_html(repo_id: str, progress: DownloadProgress) -> str:
    """A running download as a bar with numbers, or the sentence it ended with."""
    if progress.state == "failed":
        return problems_html([progress.message])
    if progress.state == "done":
        return news_html([progress.message])
    if progress.state == "cancelled":
        return note_html(progress.message)
    share = min(progress.done_bytes / progress.total_bytes, 1.0) if progress.total_bytes else 0.0
    numbers = [f"{size_text(progress.done_bytes)} of {size_text(progress.total_bytes)}"] if progress.total_bytes else []
    if progress.speed >= 1000:
        numbers += [f"{size_text(int(progress.speed))}/s", _time_left(progress)]
    said = ", ".join([*numbers, progress.file] if progress.file else [*numbers, "asking the Hub"])
    return (
        f'<div class="model-download" role="status"><span>Downloading {escape(repo_id)}</span>'
        f'<div class="graft-bar"><div style="width: {share:.1%}"></div></div><span>{escape(said)}</span></div>'
    )


def _time_left(progress: DownloadProgress) -> str:
    seconds = ceil((progress.total_bytes - progress.done_bytes) / progress.speed)
    if seconds < 60:
        return f"{seconds} s left"
    minutes = seconds // 60
    return f"{minutes} min left" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min left"


class ModelBox:
    """The folded box under the base model. The download is the server's: every page that is opened shows it."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._download: Download | None = None

    def build(self) -> None:
        """Place the line about the chosen model and the box."""
        self.about = gr.HTML(padding=False, elem_id="model-about")
        with gr.Accordion("Download a model", open=False, elem_id="model-box") as self._box:
            self._name = gr.Dropdown(
                [(_label(*suggested), suggested[0]) for suggested in _SUGGESTED],
                value=_SUGGESTED[0][0],
                allow_custom_value=True,
                label="Model",
                info="One of these, or any causal language model by its Hugging Face name, such as org/model. "
                "Larger models answer better and need more memory.",
                elem_id="model-name",
                interactive=True,
            )
            self._token = gr.Textbox(
                label="Token",
                info="Only for gated and private models, from huggingface.co/settings/tokens. Used for this download "
                "and kept nowhere.",
                type="password",
                max_lines=1,
                elem_id="model-token",
            )
            with gr.Row():
                self._start = gr.Button("Download", size="sm", min_width=100, elem_id="model-download")
                self._cancel = gr.Button("Cancel", size="sm", min_width=100, visible=False, elem_id="model-cancel")
            self._progress = gr.HTML(padding=False, elem_id="model-progress")
        self._timer = gr.Timer(_TICK, active=False)

    def wire(
        self, page: gr.Blocks, base_model: Component, run_code: Component, refresh: Refresh, outputs: set[Component]
    ) -> None:
        """Connect the box; call once, inside the page.

        A model that has arrived is chosen in `base_model`, after `refresh` has given the updates of `outputs` that
        show it among the choices. `run_code` is the tick that lets a model's own code run.
        """
        shown: set[Component] = {self._progress, self._cancel, self._start, self._timer, self._token, self._box}

        def start(name: str | None, token: str | None, with_code: bool) -> dict[Component, Any]:
            try:
                self._begin(name, token, with_code)
            except UserError as error:
                return {self._progress: problems_html([str(error)])}
            # The page is not to keep the token either.
            return self._look() | {self._token: ""}

        def tick() -> dict[Component, Any]:
            download = self._download
            if download is None or download.running:
                return self._look()
            if download.progress().state != "done":
                return self._look()
            updates: dict[Component, Any] = dict(refresh())
            updates[base_model] = updates.get(base_model, {}) | gr.update(value=download.repo_id)
            # By itself it is told anew only when the box's value changes, and it may have been this one all along.
            return self._look() | updates | {self.about: about_html(self._folders, download.repo_id)}

        self._start.click(start, [self._name, self._token, run_code], shown, **QUIET)
        self._cancel.click(self._stop, None, None, **QUIET)
        self._timer.tick(tick, None, {*shown, base_model, self.about, *outputs}, **QUIET)
        page.load(lambda: self._look(opened=True), None, shown, **QUIET)
        page.load(None, js=_NOT_TO_BE_KEPT)

        def describe(name: str | None, with_code: bool) -> str:
            return about_html(self._folders, name, run_code=with_code)

        for event in (base_model.change, run_code.change, page.load):
            event(describe, [base_model, run_code], self.about, **QUIET)

    def _begin(self, name: str | None, token: str | None, with_code: bool) -> None:
        if self._download is not None and self._download.running:
            raise UserError(f"'{self._download.repo_id}' is being downloaded: wait for it, or cancel it first.")
        if not name or not name.strip():
            raise UserError("Model: choose one, or type its Hugging Face name, such as org/model.")
        self._download = start_download(name, token=token, with_code=with_code)

    def _stop(self) -> None:
        if self._download is not None:
            self._download.cancel()

    def _look(self, *, opened: bool = False) -> dict[Component, Any]:
        """The box as it is at this moment; a page that is `opened` is not told of what ended well before."""
        download = self._download
        running = download is not None and download.running
        look: dict[Component, Any] = {
            self._timer: gr.Timer(active=running),
            self._cancel: gr.update(visible=running),
            self._start: gr.update(interactive=not running),
        }
        if download is not None and not (opened and download.progress().state in ("done", "cancelled")):
            look[self._progress] = progress_html(download.repo_id, download.progress())
        return look | ({self._box: gr.update(open=True)} if opened and running else {})


def _label(name: str, gigabytes: float, gated: bool) -> str:
    return f"{name} ({gigabytes:g} GB{', gated: needs a token' if gated else ''})"
