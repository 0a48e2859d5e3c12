"""The Training tab: the form on the left, the monitor on the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from training.copied_settings import copy_settings
from training.errors import UserError
from training.gpus import gpu_names
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders, list_data_files
from training.presets import FIRST_VISIT, Preset, load_presets, values_of
from training.runs import find_run, list_runs
from training.supervisor import Supervisor
from ui.disk_choice import DiskChoice
from ui.earlier_box import EarlierBox
from ui.estimate_box import EstimateBox
from ui.events import QUIET
from ui.failure_box import halved_rate
from ui.form import SettingsForm, default_values
from ui.memory_box import MemoryBox
from ui.messages import news_html, problems_html
from ui.method_box import MethodBox
from ui.model_box import ModelBox
from ui.monitor_panel import MonitorPanel
from ui.name_box import NEW_VERSION
from ui.run_actions import refusal
from ui.start_bar import StartBar
from ui.target_box import TargetBox
from ui.upload_box import FORMATS, UploadBox, first_kind

DATASET, RAW_TEXT = "dataset", "raw_text"
_OWN_IF_ANY = ("name", RAW_TEXT)  # a preset fills these only where nothing stands yet
_ABOUT_PRESETS = "Settings that suit a purpose."
# Where it stands above the form and not beside it; before the first training it stands below.
_SCROLL_TO_MONITOR = (
    "() => { if (matchMedia('(max-width: 900px)').matches) graftShow('#monitor:not(:has(#no-run))', 'start') }"
)


class TrainingTab:
    """The tab's components and the events between them."""

    def __init__(self, folders: Folders, supervisor: Supervisor) -> None:
        self._folders = folders
        self._supervisor = supervisor
        self._presets, self._preset_problems = load_presets(folders)
        first = next((p for p in self._presets if p.label == FIRST_VISIT), None)
        self.form = SettingsForm(folders, default_values() | (first.settings if first else {}))
        self._model_box = ModelBox(folders)
        self.memory_box = MemoryBox(folders)
        self._start_bar = StartBar(supervisor, self.memory_box)
        self._estimate = EstimateBox(folders)
        self._earlier = EarlierBox(folders, self.form)
        self._method = MethodBox(self.form, TargetBox(folders, self.form))
        with gr.Row(elem_id="training-row"):
            with gr.Column(scale=6, min_width=380):
                self._build_form(first)
            with gr.Column(scale=5, min_width=380, elem_id="monitor"):
                self.monitor = MonitorPanel(folders, supervisor)
                self._estimate.build()

    def _build_form(self, first: Preset | None) -> None:
        render = self.form.render
        with gr.Group():
            with gr.Row():
                render("base_model", "precision")
            with gr.Row():
                render("quantization_type", "double_quantization")
            self._model_box.build()
        with gr.Group():
            with gr.Row():
                self._preset = gr.Dropdown(
                    choices=[p.label for p in self._presets],
                    value=first.label if first else None,
                    label="Preset",
                    info=first.about if first else _ABOUT_PRESETS,
                    elem_id="preset",
                )
                self._copy_from = DiskChoice(
                    choices=self._run_names(),
                    value=None,
                    label="Copy settings from",
                    info="Fills the whole form with what an earlier LoRA was trained with.",
                    elem_id="copy-from",
                )
            with gr.Row():
                render("name", "if_exists")
        self._build_data()
        with gr.Group():
            with gr.Row():
                render("batch_size", "micro_batch_size", "epochs")
            with gr.Row():
                render("learning_rate", "scheduler", "cutoff_length")
        with gr.Group():
            self._method.build()
        self._method.build_folded()
        self._earlier.build()
        with gr.Accordion("Advanced: warm-up, optimizer, saving, stopping", open=False, elem_id="advanced-box"):
            with gr.Row():
                render("warmup", "optimizer", "weight_decay")
            with gr.Row():
                render("max_grad_norm", "neftune_noise", "label_smoothing")
            with gr.Row():
                render("gradient_checkpointing", "offload_activations")
            with gr.Row():
                render("retry_smaller", "seed")
            with gr.Row():
                render("gpus", visible=len(gpu_names()) > 1)
                render("trust_remote_code")
            with gr.Row():
                render("save_every", "save_minutes", "keep_last")
            with gr.Row():
                render("result", "patience", "stop_at_loss")
        self._start_bar.build(self.form.values["method"], self._start_message())
        self._message, self.check = self._start_bar.message, self._start_bar.check

    def _build_data(self) -> None:
        render = self.form.render
        self.kind = gr.Radio(
            [("Formatted dataset", DATASET), ("Raw text file", RAW_TEXT)],
            value=DATASET,
            label="Data",
            info="Rows of questions and answers, or any text to continue.",
            elem_id="data-kind",
        )
        with gr.Column() as self._dataset_box:
            with gr.Row():
                render("dataset", "data_format")
            self._upload_dataset = UploadBox(self._folders, "upload-dataset")
            self._upload_dataset.button("Upload a dataset")
            self._upload_dataset.question()
            with gr.Row():
                render("chat_template", "train_on")
            with gr.Row():
                render("too_long", "drop_duplicates")
        with gr.Column(visible=False) as self._text_box:
            render("raw_text")
            self._upload_text = UploadBox(self._folders, "upload-text")
            self._upload_text.button("Upload a text")
            self._upload_text.question()
            with gr.Row():
                render("overlap_length", "prefer_line_cut")
            with gr.Row():
                render("hard_cut_string", "minimum_length")
        with gr.Accordion("Evaluation", open=False, elem_id="evaluation-box"):
            with gr.Row():
                render("evaluation_file", "held_out_share", "evaluate_every")

    def wire(self, page: gr.Blocks) -> None:
        """Connect the form, its memory in the browser and the monitor; call once, inside the page."""
        form = self.form
        self.monitor.wire(page, self._start_bar.start, self._copy_from, form.controls["method"])
        self._wire_memory(page)
        self.kind.change(
            lambda kind: (gr.update(visible=kind == DATASET), gr.update(visible=kind == RAW_TEXT)),
            self.kind,
            [self._dataset_box, self._text_box],
            **QUIET,
        )
        filled = {*form.components, self.kind, self._message, self._preset}
        own = [form.controls[name] for name in _OWN_IF_ANY]
        # Not `input`, which comes also when the reader only passes through the box.
        self._preset.select(self._apply_preset, [self._preset, *own], filled, **QUIET)
        self._preset.change(self._about_preset, self._preset, self._preset, **QUIET)
        self._copy_from.select(self._copy, self._copy_from, filled, **QUIET)
        for box in (self._upload_dataset, self._upload_text):
            box.wire(self._message, self.uploaded, {self.kind, *form.choice_controls})
        self._wire_boxes(page)
        self._start_bar.wire(
            [self.kind, *form.components],
            lambda kind, *values: self.data_values(kind, values),
            form.controls["name"],
            self.monitor,
        )
        self._wire_remedies({*filled, self.monitor.starts})
        self.monitor.starts.change(None, js=_SCROLL_TO_MONITOR)

    def _wire_boxes(self, page: gr.Blocks) -> None:
        """Connect the boxes of the form that look after themselves."""
        form = self.form
        base, code = form.controls["base_model"], form.controls["trust_remote_code"]
        self._model_box.wire(page, base, code, form.refresh_choices, set(form.choice_controls))
        self.memory_box.wire(
            page,
            [self.kind, *form.components],
            lambda kind, *values: self.data_values(kind, values),
            form.controls["micro_batch_size"],
        )
        gr.on(
            [page.load, self.kind.change, *(control.change for control in form.components)],
            lambda kind, *values: self._estimate.update(self.data_values(kind, values)),
            [self.kind, *form.components],
            self._estimate.shown,
            trigger_mode="always_last",
            **QUIET,
        )
        self._method.wire()
        self._earlier.wire(page)
        # Consent is for one publisher's code.
        base.change(lambda: False, None, code, **QUIET)

    def _wire_memory(self, page: gr.Blocks) -> None:
        """What was typed is kept in the browser, so that a reload loses nothing."""
        form = self.form
        memory = gr.BrowserState(None, storage_key="graft-form", secret="graft")
        remembered = [self.kind, self._preset, *form.components]
        changes = [control.change for control in (*form.components, self.kind, self._preset)]
        gr.on(changes, None, remembered, memory, js="(...values) => [values]", **QUIET)
        page.load(self._restore, memory, remembered, **QUIET)
        page.load(form.refresh_choices, None, set(form.choice_controls), **QUIET)

    def _restore(self, kept: list[Any] | None) -> Any:
        names = list(self.form.controls)
        if not kept or len(kept) != len(names) + 2:  # nothing, or what another version of Graft wrote
            return gr.skip()
        kept[2 + names.index("trust_remote_code")] = False  # asked for each training anew
        return kept

    def _apply_preset(self, label: str, *own: str) -> dict[Any, Any]:
        preset = next(p for p in self._presets if p.label == label)
        values = values_of(preset)
        for name, value in zip(_OWN_IF_ANY, own, strict=True):
            if value:
                values.pop(name, None)
        kind = RAW_TEXT if preset.settings.get(RAW_TEXT) else DATASET if preset.settings.get(DATASET) else None
        return self._filled_with(values, kind) | {self._message: ""}

    def _about_preset(self, label: str | None) -> Any:
        preset = next((p for p in self._presets if p.label == label), None)
        return gr.update(info=preset.about if preset else _ABOUT_PRESETS)

    def _copy(self, name: str | None) -> Any:
        if not name:
            return gr.skip()
        try:
            copied = copy_settings(self._folders, find_run(self._folders, name))
        except UserError as error:
            return {self._message: problems_html([str(error)])}
        said = [f"The form shows the settings of '{name}'.", *copied.notes]
        kind = RAW_TEXT if copied.settings.raw_text else DATASET
        filled = self._filled_with(copied.settings.model_dump(mode="json"), kind)
        return filled | {self._message: news_html(said), self._preset: None}

    def _wire_remedies(self, outputs: set[Component]) -> None:
        """What the monitor offers for a failure: the run goes on with it, or the form is filled for a new one."""
        monitor, failure = self.monitor, self.monitor.failure
        for number, button in enumerate(failure.remedies):

            def take(name: str, starts: int, found: list[Any], number: int = number) -> dict[Any, Any]:
                remedy = found[number]
                if remedy.continues:
                    return self._go_on(name, starts, remedy.changes, f"with {remedy.label}")
                return self._offer_again(name, remedy.changes, remedy.label)

            button.click(take, [monitor.name, monitor.starts, failure.found], outputs, **QUIET)
        failure.slower.click(
            lambda name, starts: self._go_on(
                name, starts, halved_rate(name, self._folders), "at half the learning rate"
            ),
            [monitor.name, monitor.starts],
            outputs,
            **QUIET,
        )

    def _go_on(self, name: str, starts: int, changes: dict[str, Any], how: str) -> dict[Any, Any]:
        try:
            self._supervisor.go_on(find_run(self._folders, name), **changes)
        except UserError as error:
            raise refusal("Not continued", str(error)) from error
        finally:
            self.monitor.lookout.forget()
        return {self._message: news_html([f"'{name}' goes on {how}."]), self.monitor.starts: starts + 1}

    def _offer_again(self, name: str, changes: dict[str, Any], what: str) -> dict[Any, Any]:
        """Updates that show the settings of a run with some of them changed, for a new training."""
        updates = self._copy(name)
        if self._preset not in updates:
            return dict(updates)
        changed = self.form.fill(changes | {"if_exists": NEW_VERSION})
        said = [f"The form shows the settings of '{name}' with {what}: click Start."]
        return updates | changed | {self._message: news_html(said)}

    def _filled_with(self, values: dict[str, Any], kind: str | None) -> dict[Any, Any]:
        """Updates for the form's controls and, where it is known, for the kind of data."""
        return self.form.fill(values) | ({self.kind: kind} if kind else {})

    def choose_data(self, names: list[str]) -> dict[Component, Any]:
        """Updates that choose these files, all datasets or all texts, as what is trained on."""
        text = bool(names) and Path(names[0]).suffix.lower() in TEXT_SUFFIXES
        if names and names[0].endswith("/"):  # a folder is what lies in it
            text = names[0] not in list_data_files(self._folders, DATASET_SUFFIXES)
        return {self.kind: RAW_TEXT if text else DATASET, self.form.controls[RAW_TEXT if text else DATASET]: names}

    def uploaded(self, names: list[str]) -> dict[Component, Any]:
        """Updates that show what was uploaded and choose it; a format file becomes the data format."""
        updates: dict[Component, Any] = dict(self.form.refresh_choices())
        if formats := [name.removeprefix(FORMATS) for name in names if name.startswith(FORMATS)]:
            updates[self.form.controls["data_format"]]["value"] = formats[0]
        chosen = first_kind(names)
        for control, value in self.choose_data(chosen).items() if chosen else ():
            updates[control] = gr.update(value=value) if control is self.kind else updates[control] | {"value": value}
        return updates

    def data_values(self, kind: str, values: tuple[Any, ...]) -> dict[str, Any]:
        """The form's values by setting name, without the data of the other kind and what the method has not."""
        return self.form.applying(self.form.gather(values)) | {DATASET if kind == RAW_TEXT else RAW_TEXT: []}

    def _run_names(self) -> list[str]:
        return [run.name for run in list_runs(self._folders)]

    def _start_message(self) -> str:
        return problems_html(self._preset_problems) if self._preset_problems else ""
