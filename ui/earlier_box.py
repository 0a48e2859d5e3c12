"""What a training starts from: a new LoRA, or an earlier one or its checkpoint, with a word on how they fit."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component

from training.adapters import adapter_config, earlier_adapter, earlier_adapters
from training.errors import SettingsError, UserError
from training.parsing import parse
from training.paths import Folders
from training.settings import Settings
from ui.events import QUIET
from ui.form import NEW_LORA, SettingsForm
from ui.messages import note_html

# What the fit depends on.
_SETTINGS = (
    "start_from",
    "start_as",
    "base_model",
    "method",
    "lora_rank",
    "lora_alpha",
)


class EarlierBox:
    """The folded box with the choice of an earlier LoRA."""

    def __init__(self, folders: Folders, form: SettingsForm) -> None:
        self._folders = folders
        self._form = form

    def build(self) -> None:
        """Place the box."""
        with gr.Accordion("Start from an earlier LoRA", open=False, elem_id="earlier-box") as self.box:
            with gr.Row():
                self._form.render("start_from", "start_as")
            self._hint = gr.HTML(elem_id="earlier-hint")

    def wire(self, page: gr.Blocks) -> None:
        """Keep the choices and the hint in step with the form; call once, inside the page."""
        controls = self._form.controls
        base, start_from = controls["base_model"], controls["start_from"]
        gr.on(
            [page.load, base.change, self.box.expand],
            lambda name: gr.update(choices=earlier_choices(self._folders, name or "")),
            base,
            start_from,
            **QUIET,
        )
        inputs: list[Component] = [controls[name] for name in _SETTINGS]
        gr.on([control.change for control in inputs], self._say, inputs, self._hint, **QUIET)

    def _say(self, *values: Any) -> Any:
        given = dict(zip(_SETTINGS, values, strict=True))
        if not given["start_from"]:
            return ""
        try:
            return hint_html(self._folders, parse(self._form.applying(given)))
        except SettingsError:
            return gr.skip()  # a number is half typed


def earlier_choices(folders: Folders, base_model: str) -> list[tuple[str, str]]:
    """A new LoRA, then those on this base model, then those on others, with that said; newest first in each."""
    found = earlier_adapters(folders)
    fitting = [(one.name, one.name) for one in found if one.base == base_model]
    others = [(f"{one.name} (on {one.base or 'an unknown base'})", one.name) for one in found if one.base != base_model]
    return [NEW_LORA, *fitting, *others]


def hint_html(folders: Folders, settings: Settings) -> str:
    """How the earlier LoRA fits what is asked, or why it does not; empty where there is nothing to say."""
    try:
        config = adapter_config(earlier_adapter(folders, settings))
    except UserError as error:
        return note_html(str(error), "error")
    if settings.start_as != "continue it" or settings.method != "LoRA":
        return ""
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if (rank, alpha) == (settings.lora_rank, settings.lora_alpha) or not isinstance(rank, int):
        return ""
    said = (
        f"It has rank {rank} and alpha {alpha}, and is continued at rank {settings.lora_rank} and alpha "
        f"{settings.lora_alpha}: "
    )
    if settings.lora_rank < rank:
        return note_html(f"{said}its main directions are kept, the others are lost.", "warning")
    return note_html(f"{said}what it has learnt stays as it is.")
