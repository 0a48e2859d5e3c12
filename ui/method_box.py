"""The method and its settings; only those that the method has are in view."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component

from training.settings import FULL
from ui.events import QUIET
from ui.form import SettingsForm
from ui.target_box import TargetBox

_VARIANTS = ("initialization", "lora_plus_ratio", "rank_stabilized", "dora")
_LEARN = (
    '<p>More on <a href="#learn-rank">rank</a> and '
    '<a href="#learn-alpha">alpha</a>, the <a href="#learn-methods">methods</a>, '
    '<a href="#learn-target-modules">target modules</a> and <a href="#learn-precision">16, 8 and 4 bits</a>.</p>'
)


class MethodBox:
    """The method's part of the form, and what it shows and hides elsewhere."""

    def __init__(self, form: SettingsForm, targets: TargetBox) -> None:
        self._form = form
        self._targets = targets

    def build(self) -> None:
        """Place the method and the numbers that go with it."""
        self._targets.build_setting()
        with gr.Row():
            self._form.render("method")
        with gr.Row() as self._numbers:
            self._form.render("lora_rank", "lora_alpha", "lora_dropout", "virtual_tokens")
        gr.HTML(_LEARN, elem_id="learn-more")

    def build_folded(self) -> None:
        """Place what most leave as it is, in folded boxes."""
        values = self._form.values
        self._targets.build(values["method"])
        label = "Kinds of LoRA: rsLoRA, DoRA, LoRA+, initialization"
        visible = self._form.any_applies(_VARIANTS, values)
        with gr.Accordion(label, open=False, visible=visible, elem_id="variants-box") as self._variants:
            with gr.Row():
                self._form.render("initialization", "lora_plus_ratio")
            with gr.Row():
                self._form.render("rank_stabilized", "dora")

    def wire(self) -> None:
        """Show what the method and the precision have; call once, inside the page."""
        controls = self._form.controls
        asked = [controls["method"], controls["precision"]]
        shown = self._shown(self._form.values["method"], self._form.values["precision"])
        outputs: set[Component] = {*shown}
        gr.on([control.change for control in asked], self._shown, asked, outputs, **QUIET)
        self._targets.wire()

    def _shown(self, method: str, precision: str) -> dict[Any, Any]:
        form, values = self._form, {"method": method, "precision": precision}
        numbers = ("lora_rank", "virtual_tokens")
        return form.visibility(values) | {
            self._numbers: gr.update(visible=form.any_applies(numbers, values)),
            self._variants: gr.update(visible=form.any_applies(_VARIANTS, values)),
            self._targets.box: gr.update(visible=self._targets.shown(method), label=self._targets.title(method)),
            self._targets.targets: gr.update(visible=self._targets.has_targets(method)),
        }


def start_label(method: str) -> str:
    """What stands on the button; full fine-tuning makes no LoRA."""
    return "Start Training" if method == FULL else "Start LoRA Training"
