"""The settings form: one control a setting, made from its declaration, with the values going in and out as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from training.chat_templates import OWN, template_names
from training.dataset_format import format_names
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders, list_data_files, list_models
from training.settings import Settings
from training.settings_info import SettingInfo, describe

# What the choices of these settings are is known only when the page is opened, or after an upload.
Choice = str | tuple[str, str]  # what is shown, and the value where it is another
_CHOICES_ON_DISK: dict[str, Callable[[Folders], Sequence[Choice]]] = {
    "base_model": list_models,
    "dataset": lambda folders: list_data_files(folders, DATASET_SUFFIXES),
    "data_format": format_names,
    "chat_template": lambda folders: [("the model's own", OWN), *template_names(folders)],
    "raw_text": lambda folders: list_data_files(folders, TEXT_SUFFIXES),
    "evaluation_file": lambda folders: ["", *list_data_files(folders, DATASET_SUFFIXES + TEXT_SUFFIXES)],
}
NEW_LORA = ("None: a new LoRA", "")  # the first choice of what to start from; the others are those of its box
_IF_EMPTY = {  # what an empty box means, said in the box itself
    "hard_cut_string": "empty: one document",
    "target_pattern": "empty: the ticks count",
    "layer_range": "empty: all layers",
    "rank_pattern": "empty: the same rank for all",
    "alpha_pattern": "empty: the same alpha for all",
}
_ONLY_IN_4_BIT = ("quantization_type", "double_quantization")


class SettingsForm:
    """The controls, by setting name. Place each group's with `render`; all of them must be placed."""

    def __init__(self, folders: Folders, values: dict[str, Any]) -> None:
        self._folders = folders
        self.values = values  # what the controls begin with
        self._infos = {info.name: info for info in describe()}
        self.controls: dict[str, Component] = {}

    def render(self, *names: str, **look: Any) -> None:
        """Place the controls of these settings here; `look` is handed on to them."""
        for name in names:
            self.controls[name] = self._control(self._infos[name], look)

    @property
    def components(self) -> list[Component]:
        """The controls in the order in which `gather` takes their values."""
        return list(self.controls.values())

    def gather(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """The values of `components` by setting name."""
        return {name: _as_setting(self._infos[name], value) for name, value in zip(self.controls, values, strict=True)}

    def fill(self, values: dict[str, Any]) -> dict[Component, Any]:
        """Updates by control that show `values`; settings it does not name stay as they are."""
        return {
            self.controls[name]: gr.update(value=_as_shown(self._infos[name], value)) for name, value in values.items()
        }

    def applying(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values without those of settings that mean nothing beside the method and precision among them."""
        return {name: value for name, value in values.items() if applies(self._infos[name], values)}

    def visibility(self, values: Mapping[str, Any]) -> dict[Component, Any]:
        """Updates that show the controls of settings that mean something beside these values, and hide the others."""
        return {
            self.controls[name]: gr.update(visible=applies(info, values))
            for name, info in self._infos.items()
            if is_conditional(info) and name != "target_modules"  # whose ticks are shown in its place
        }

    def any_applies(self, names: Sequence[str], values: Mapping[str, Any]) -> bool:
        """Whether one of these settings means something beside the values."""
        return any(applies(self._infos[name], values) for name in names)

    def refresh_choices(self) -> dict[Component, Any]:
        """Updates by control: what lies in the folders at this moment."""
        return {
            self.controls[name]: gr.update(choices=choices(self._folders)) for name, choices in _CHOICES_ON_DISK.items()
        }

    @property
    def choice_controls(self) -> list[Component]:
        """The controls whose choices are files and folders."""
        return [self.controls[name] for name in _CHOICES_ON_DISK]

    def _control(self, info: SettingInfo, look: dict[str, Any]) -> Component:
        value = _as_shown(info, self.values.get(info.name, info.default))
        common: dict[str, Any] = {
            "value": value,
            "label": info.label,
            "info": info.help,
            "elem_id": f"setting-{info.name}",
            "interactive": True,
            "visible": applies(info, self.values),
        } | look
        # Own text is allowed for Hub names, and because a list may be older than the folder.
        open_list: dict[str, Any] = {"allow_custom_value": True, "multiselect": info.kind is list}
        if info.name in _CHOICES_ON_DISK:
            return gr.Dropdown(choices=_CHOICES_ON_DISK[info.name](self._folders), **open_list, **common)
        if info.name == "start_from":
            return gr.Dropdown(choices=[NEW_LORA], **open_list, **common)
        if info.kind is list:
            return gr.Dropdown(choices=list(info.choices), **open_list, **common)
        if info.kind is bool:
            return gr.Checkbox(**common)
        if info.choices:
            return gr.Dropdown(choices=list(info.choices), **common)
        if info.kind is int:
            return gr.Number(step=1, **common)  # no minimum: Gradio's own refusal names no field
        return gr.Textbox(max_lines=1, placeholder=_IF_EMPTY.get(info.name), **common)


def is_conditional(info: SettingInfo) -> bool:
    """Whether there are methods or precisions beside which the setting means nothing."""
    return bool(info.methods) or info.name in _ONLY_IN_4_BIT


def applies(info: SettingInfo, values: Mapping[str, Any]) -> bool:
    """Whether a setting means anything beside these values of `method` and `precision`."""
    if info.name in _ONLY_IN_4_BIT and values["precision"] != "4-bit":
        return False
    return not info.methods or values["method"] in info.methods


def _as_shown(info: SettingInfo, value: Any) -> Any:
    """A setting's value as its control shows it; rates are text, so that 3e-4 can be typed and is not rounded."""
    if info.kind is float:
        return f"{value:g}" if isinstance(value, float | int) else str(value)
    return value


def _as_setting(info: SettingInfo, value: Any) -> Any:
    if value is None:
        return [] if info.kind is list else "" if info.kind is str else None
    return value


def default_values() -> dict[str, Any]:
    """The declaration's defaults, by setting name."""
    return Settings().model_dump(mode="json")
