"""The whole page: header, tabs, look; builds it and tells `launch` what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from training.chat import Chat
from training.paths import Folders
from training.supervisor import Supervisor
from ui.chart import static_paths
from ui.chat_log import FINAL
from ui.chat_tab import STYLE as CHAT_STYLE
from ui.chat_tab import ChatTab, build_chat_tab
from ui.datasets_tab import STYLE as DATA_STYLE
from ui.datasets_tab import DatasetsTab
from ui.estimate_box import STYLE as ESTIMATE_STYLE
from ui.events import QUIET
from ui.learn_tab import LINKS as LEARN_LINKS
from ui.learn_tab import STYLE as LEARN_STYLE
from ui.learn_tab import LearnTab
from ui.memory_box import STYLE as MEMORY_STYLE
from ui.model_box import STYLE as MODEL_STYLE
from ui.training_tab import TrainingTab

_MAX_UPLOAD = "4gb"  # a file; rows and text are read piece by piece, so that memory sets no lower bound
_DAY = 24 * 60 * 60  # seconds
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


def build_page(folders: Folders, supervisor: Supervisor) -> gr.Blocks:
    """The page over these folders and their runs, ready to be launched with `launch_options`."""
    gr.set_static_paths(static_paths())
    chat = Chat(folders)
    with gr.Blocks(title="Graft", analytics_enabled=False, fill_width=True, delete_cache=(_DAY, _DAY)) as page:
        gr.HTML(_HEADER, js_on_load=_TOGGLE_THEME + LEARN_LINKS, apply_default_css=False)
        with gr.Tabs(elem_id="main-tabs") as tabs:
            with gr.Tab("Training", id="training"):
                training = TrainingTab(folders, supervisor)
            with gr.Tab("Datasets", id="datasets") as datasets_page:
                datasets = DatasetsTab(folders, training)
            with gr.Tab("Chat", id="chat") as chat_page:
                chat_tab = build_chat_tab(folders, chat)
            with gr.Tab("Learn", id="learn") as learn_page:
                learn = LearnTab(folders)
        training.wire(page)
        datasets.wire(page)
        datasets.show_chosen_on(datasets_page.select)
        datasets.train.click(lambda: gr.update(selected="training"), None, tabs, **QUIET)
        datasets.check_on(training.check.click(lambda: gr.update(selected="datasets"), None, tabs, **QUIET).then)
        # The training needs the memory more than a model that waits for the next message, and would spoil a check.
        supervisor.before_training(chat.give_way)
        supervisor.before_training(training.memory_box.stop)
        training.memory_box.start.click(chat.unload, None, None, **QUIET)  # else the chat's model would count as taken
        chat_tab.refresh_on(chat_page.select, page.load)
        learn.refresh_on(learn_page.select)
        _open_chat_from_monitor(training, chat_tab, tabs)
    return page


def _open_chat_from_monitor(training: TrainingTab, chat_tab: ChatTab, tabs: gr.Tabs) -> None:
    """'Chat with it', or a click on a checkpoint in the chart, shows that LoRA beside its base model."""
    monitor = training.monitor
    adapter, step = gr.State(""), gr.State(FINAL)

    def checkpoint_clicked(name: str, event: gr.EventData) -> tuple[str, str]:
        return name, str(event.step)

    for clicked in (
        monitor.actions.chat.click(lambda name: (name, FINAL), monitor.name, [adapter, step], **QUIET),
        monitor.chart.click(checkpoint_clicked, monitor.name, [adapter, step], **QUIET),
    ):
        chosen = chat_tab.open_on(clicked.then, adapter, step)
        chosen.then(lambda: (gr.update(selected="chat"), True), None, [tabs, chat_tab.compare], **QUIET)


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
            body_background_fill="*neutral_50",
            # The theme's own are too faint: text wants 4.5 times its ground's brightness.
            body_text_color_subdued="*neutral_500",
            button_primary_background_fill="*primary_700",
            button_primary_background_fill_dark="*primary_700",
            button_primary_background_fill_hover="*primary_800",
            button_primary_background_fill_hover_dark="*primary_800",
            # The theme's own, a bright green, makes of any button under the pointer the main one.
            button_secondary_background_fill_hover_dark="*neutral_500",
            checkbox_label_background_fill_selected="*primary_700",
            checkbox_label_background_fill_selected_dark="*primary_700",
            checkbox_border_color="*neutral_400",
            block_label_background_fill="none",
            block_label_background_fill_dark="none",
            block_label_text_color="*body_text_color",
            block_label_text_color_dark="*body_text_color",
            block_title_background_fill="none",
            block_title_background_fill_dark="none",
            block_title_text_color="*body_text_color",
            block_title_text_color_dark="*body_text_color",
            block_title_padding="0",
        ),
        "css_paths": [
            _STATIC / "page.css",
            CHAT_STYLE,
            DATA_STYLE,
            ESTIMATE_STYLE,
            LEARN_STYLE,
            MEMORY_STYLE,
            MODEL_STYLE,
        ],
        "head": (_STATIC / "head.html").read_text(encoding="utf-8"),
        "footer_links": [],
        "max_file_size": _MAX_UPLOAD,
        "ssr_mode": False,
        # Gradio would note down in the browser what is sent to the page, tokens too, and offer to store it elsewhere.
        "run_history": False,
        "enable_monitoring": False,
    }
