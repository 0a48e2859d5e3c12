"""The settings form: one control a setting, made from its declaration, with the values going in and out as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from training.chat_templates import OWN, template_names
from training.dataset_format import format_names
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders, list_data_files, list_models
from training.settings import ALL_LINEAR, SettingInfo, Settings, describe

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


class SettingsForm:
    """The controls, by setting name. Place each group's with `render`; all of them must be placed."""

    def __init__(self, folders: Folders, values: dict[str, Any]) -> None:
        self._folders = folders
        self._values = values
        self._infos = {info.name: info for info in describe()}
        self.controls: dict[str, Component] = {}

    def render(self, *names: str) -> None:
        """Place the controls of these settings here."""
        for name in names:
            self.controls[name] = self._control(self._infos[name])

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

    def refresh_choices(self) -> dict[Component, Any]:
        """Updates by control: what lies in the folders at this moment."""
        return {
            self.controls[name]: gr.update(choices=choices(self._folders)) for name, choices in _CHOICES_ON_DISK.items()
        }

    @property
    def choice_controls(self) -> list[Component]:
        """The controls whose choices are files and folders."""
        return [self.controls[name] for name in _CHOICES_ON_DISK]

    def _control(self, info: SettingInfo) -> Component:
        value = _as_shown(info, self._values.get(info.name, info.default))
        common: dict[str, Any] = {
            "value": value,
            "label": info.label,
            "info": info.help,
            "elem_id": f"setting-{info.name}",
            "interactive": True,
        }
        if info.name in _CHOICES_ON_DISK:
            # Own text is allowed for Hub names, and because the list may be older than the folder.
            choices = _CHOICES_ON_DISK[info.name](self._folders)
            return gr.Dropdown(choices=choices, allow_custom_value=True, multiselect=info.kind is list, **common)
        if info.kind is bool:
            return gr.Checkbox(**common)
        if info.kind is list:
            return gr.CheckboxGroup(choices=list(info.choices), **common)
        if info.choices:
            return gr.Dropdown(choices=list(info.choices), **common)
        if info.kind is int:
            return gr.Number(step=1, **common)  # no minimum: Gradio's own refusal names no field
        return gr.Textbox(max_lines=1, **common)


def _as_shown(info: SettingInfo, value: Any) -> Any:
    """A setting's value as its control shows it; rates are text, so that 3e-4 can be typed and is not rounded."""
    if info.kind is float:
        return f"{value:g}" if isinstance(value, float | int) else str(value)
    return value


def _as_setting(info: SettingInfo, value: Any) -> Any:
    if value is None:
        return [] if info.kind is list else "" if info.kind is str else None
    return value


def untick_the_rest(ticked: list[str], before: list[str]) -> list[str]:
    """all-linear and single modules exclude each other: the one ticked last counts."""
    if ALL_LINEAR in ticked and len(ticked) > 1:
        return [name for name in ticked if (name == ALL_LINEAR) != (ALL_LINEAR in before)]
    return ticked


def default_values() -> dict[str, Any]:
    """The declaration's defaults, by setting name."""
    return Settings().model_dump(mode="json")
