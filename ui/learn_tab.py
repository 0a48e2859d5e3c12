"""The Learn tab: what LoRA does and what its settings cost, in pictures, and what a finished LoRA made of its rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from training.adapter_spectrum import spectrum
from training.adapters import adapter_folder
from training.base_models import local_base_model
from training.errors import UserError
from training.libraries import load_libraries
from training.lora_arithmetic import Shape
from training.paths import Folders, list_models
from training.settings import Settings
from ui.chat_log import adapter_choices, checkpoint_choices, kept, step_of
from ui.disk_choice import DiskChoice
from ui.events import QUIET
from ui.learn_pictures import memory_html, rank_table_html, spectrum_html
from ui.learn_text import AFTER_PICTURE, METHODS, OPENING, PRECISION, SPECTRUM, TARGETS, methods_html
from ui.messages import note_html, problems_html

_STATIC = Path(__file__).parent / "static"
STYLE = _STATIC / "learn.css"  # the page gives it to `launch`
# Run once by the page: from then on a link to "#learn-rank" and the like opens the tab at that section.
LINKS = (_STATIC / "learn_links.js").read_text(encoding="utf-8")
_ALL, _QUERY_AND_VALUE = "All linear layers", "Queries and values only"
_NO_MODEL = ""
_TABLE = "learn-rank-table"  # also what keeps its events in turn, so that the last choice is the last to be shown
_NOTHING_CHOSEN = '<p class="graft-quiet">Choose a LoRA to see what it has made of its rank.</p>'


class LearnTab:
    """The tab's components and the events between them."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        with gr.Column(elem_id="learn"):
            _prose(OPENING)
            gr.HTML(
                # No ${value} here: the script writes the numbers.
                html_template=(_STATIC / "learn.html").read_text(encoding="utf-8"),
                js_on_load=(_STATIC / "learn.js").read_text(encoding="utf-8"),
                apply_default_css=False,
                elem_id="learn-picture",
            )
            _prose(AFTER_PICTURE)
            _prose(TARGETS)
            self._build_ranks()
            _prose(PRECISION + memory_html())
            _prose(METHODS + methods_html(), "learn-methods")
            _prose(SPECTRUM)
            self._build_spectrum()
        self._wire()

    def _build_ranks(self) -> None:
        models = self._model_choices()
        model = kept(models, Settings.model_fields["base_model"].default)
        with gr.Row():
            self._targets = gr.Radio(
                [_ALL, _QUERY_AND_VALUE],
                value=_ALL,
                label="A LoRA on",
                info="Where queries, keys and values share a layer, as in Falcon, it counts as a whole.",
                elem_id="learn-targets",
            )
            self._model = DiskChoice(
                models,
                value=model,
                label="Beside them",
                info="A model on this computer. Counting the first one takes a few seconds.",
                elem_id="learn-model",
            )
        # Counting the chosen model imports torch, which waits until the tab is selected.
        self._ranks = gr.HTML(self._rank_table(_ALL, _NO_MODEL), elem_id=_TABLE)

    def _build_spectrum(self) -> None:
        with gr.Row():
            self._adapter = DiskChoice(adapter_choices(self._folders), value="", label="LoRA", elem_id="learn-adapter")
            self._checkpoint = DiskChoice(
                checkpoint_choices(self._folders, None),
                label="Checkpoint",
                interactive=False,
                elem_id="learn-checkpoint",
            )
        self._spectrum = gr.HTML(_NOTHING_CHOSEN, elem_id="learn-spectrum-result", min_height=80)

    def _wire(self) -> None:
        gr.on([self._targets.input, self._model.input], **self._counting())
        # A big adapter takes seconds, so that here something turns meanwhile.
        reading: dict[str, Any] = {"show_progress_on": self._spectrum, "api_visibility": "private"}
        self._adapter.input(self._choose, self._adapter, [self._checkpoint, self._spectrum], **reading)
        self._checkpoint.input(self._drawn, [self._adapter, self._checkpoint], self._spectrum, **reading)

    def _counting(self) -> dict[str, Any]:
        return {
            "fn": self._rank_table,
            "inputs": [self._targets, self._model],
            "outputs": self._ranks,
            "trigger_mode": "always_last",
            "concurrency_id": _TABLE,
            **QUIET,
        }

    def refresh_on(self, *triggers: Any) -> None:
        """Look for new models and LoRAs at each of these events, such as `tab.select`, and count the chosen model."""
        gr.on(
            triggers,
            self._refreshed,
            [self._model, self._adapter, self._checkpoint],
            [self._model, self._adapter, self._checkpoint],
            **QUIET,
        ).then(**self._counting())

    def _refreshed(self, model: str | None, adapter: str | None, checkpoint: str | None) -> list[Any]:
        models, adapters = self._model_choices(), adapter_choices(self._folders)
        model, adapter = kept(models, model), kept(adapters, adapter)
        checkpoints = checkpoint_choices(self._folders, adapter)
        return [
            gr.update(choices=models, value=model),
            gr.update(choices=adapters, value=adapter),
            gr.update(choices=checkpoints, value=kept(checkpoints, checkpoint), interactive=bool(adapter)),
        ]

    def _model_choices(self) -> list[tuple[str, str]]:
        return [("None", _NO_MODEL), *((name, name) for name in list_models(self._folders))]

    def _rank_table(self, targets: str, model: str | None) -> str:
        few = targets == _QUERY_AND_VALUE
        shape: Shape | None = None
        said = ""
        if model:
            try:
                shape = self._shape(model)
            except UserError as error:
                said = note_html(str(error), "warning")
        if few and shape and not shape.query_and_value:
            said = note_html(f"{model} has no layers for queries and values.")
        return said + rank_table_html(shape, only_query_and_value=few)

    def _shape(self, model: str) -> Shape:
        load_libraries()
        from training.model_shape import shape_of  # here, because it imports torch

        try:
            source = local_base_model(self._folders, model)
        except UserError:
            local_base_model(self._folders, model, run_code=True)  # raises again where it is not for its code
            raise UserError(
                f"'{model}' runs program code of its own, which is not run for this table: choose another model."
            ) from None
        return shape_of(source, model)

    def _choose(self, adapter: str | None) -> list[Any]:
        """The checkpoints of a LoRA that was just chosen, and what it made of its rank."""
        checkpoints = checkpoint_choices(self._folders, adapter)
        first = kept(checkpoints, None)
        return [
            gr.update(choices=checkpoints, value=first, interactive=bool(adapter)),
            self._drawn(adapter, first),
        ]

    def _drawn(self, adapter: str | None, checkpoint: str | None) -> str:
        if not adapter:
            return _NOTHING_CHOSEN
        try:
            step = step_of(checkpoint)
            found = spectrum(adapter_folder(self._folders, adapter, step))
        except UserError as error:
            return problems_html([str(error)])
        return spectrum_html(adapter if step is None else f"{adapter}, step {step:,}", found)


def _prose(html: str, kind: str = "") -> None:
    gr.HTML(html, elem_classes=["learn-prose", *([kind] if kind else [])])
