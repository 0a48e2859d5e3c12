"""The whole page: header, tabs, look; builds it and tells `launch` what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from training.paths import Folders
from ui.chart import static_paths
from ui.monitor import Histories
from ui.training_tab import TrainingTab

_STATIC = Path(__file__).parent / "static"
_HEADER = """
<div id="graft-header">
  <div><h1>Graft</h1><span>Train a LoRA on your own data, then chat with it.</span></div>
  <button id="graft-theme" type="button" aria-label="Switch between dark and light">Dark / light</button>
</div>
"""
_TOGGLE_THEME = """
element.querySelector('#graft-theme').addEventListener('click', () => {
  const dark = document.body.classList.toggle('dark');
  localStorage.setItem('graft-theme', dark ? 'dark' : 'light');
});
"""


def build_page(folders: Folders) -> gr.Blocks:
    """The page over these folders, ready to be launched with `launch_options`."""
    gr.set_static_paths(static_paths())
    histories = Histories()
    with gr.Blocks(title="Graft", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_HEADER, js_on_load=_TOGGLE_THEME, apply_default_css=False)
        with gr.Tabs(elem_id="main-tabs"):
            with gr.Tab("Training", id="training"):
                training = TrainingTab(folders, histories)
        training.wire(page)
    return page


def launch_options() -> dict[str, Any]:
    """The arguments of `launch` that belong to the page's look and behaviour. No font comes from another host."""
    system_fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    return {
        "theme": gr.themes.Soft(
            primary_hue=gr.themes.colors.emerald,
            secondary_hue=gr.themes.colors.emerald,
            neutral_hue=gr.themes.colors.stone,
            font=system_fonts,
            font_mono=["ui-monospace", "monospace"],
            radius_size=gr.themes.sizes.radius_md,
        ).set(
            block_title_background_fill="none",
            block_title_background_fill_dark="none",
            block_title_text_color="*body_text_color",
            block_title_text_color_dark="*body_text_color",
            block_title_padding="0",
        ),
        "css_paths": [_STATIC / "page.css"],
        "head": (_STATIC / "head.html").read_text(encoding="utf-8"),
        "footer_links": [],
        "ssr_mode": False,
    }
