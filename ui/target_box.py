"""The modules of the base model that get an adapter: ticks by part of the model, read off the one really chosen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
from gradio.components import Component

from training.base_models import locate_base_model
from training.errors import UserError
from training.libraries import load_libraries
from training.paths import Folders
from training.settings import ALL_LINEAR
from training.settings_info import describe
from ui.events import QUIET
from ui.form import SettingsForm
from ui.messages import note_html

if TYPE_CHECKING:
    from training.module_choices import ModuleChoices

SETTINGS = (
    "target_modules",
    "target_pattern",
    "layer_range",
    "rank_pattern",
    "alpha_pattern",
    "train_fully",
    "new_tokens",
)
_ALL, _ATTENTION, _FEED_FORWARD, _OTHER = ALL_LINEAR, "attention", "feed-forward", "other"
_LABELS = {_ATTENTION: "Attention", _FEED_FORWARD: "Feed-forward", _OTHER: "Other"}
_TARGETS = next(info for info in describe() if info.name == "target_modules")


class Tick(NamedTuple):
    """A name that can be ticked; `layers` is how many have it, 0 where it is not known."""

    name: str
    part: str
    layers: int

    @property
    def shown(self) -> tuple[str, str]:
        """What stands beside the box, and its value."""
        return (f"{self.name} ({self.layers})" if self.layers else self.name), self.name


# What models of the Llama kind have, and most have become of that kind; for one that is not on this computer yet.
USUAL = tuple(
    Tick(name, _ATTENTION if name[0] in "qkvo" else _FEED_FORWARD, 0) for name in _TARGETS.choices if name != _ALL
)


class TargetBox:
    """The folded box. Its ticks are kept in the control of the setting, which itself stays out of sight."""

    def __init__(self, folders: Folders, form: SettingsForm) -> None:
        self._folders = folders
        self._form = form
        self._groups: dict[str, gr.CheckboxGroup] = {}

    def build_setting(self) -> None:
        """Place the setting's control, which is never seen, outside of all that is ever hidden.

        Gradio tells no change of a control in a hidden box, and with the box it would show the control too.
        """
        self._form.render("target_modules", visible=True, elem_classes="graft-unseen")

    def build(self, method: str) -> None:
        """Place the box, as it looks with `method`."""
        render, visible = self._form.render, self.shown(method)
        with gr.Accordion(self.title(method), open=False, visible=visible, elem_id="targets-box") as self.box:
            with gr.Column(visible=self.has_targets(method)) as self.targets:
                with gr.Group():
                    self._place(_ALL, [(ALL_LINEAR, ALL_LINEAR)], label=_TARGETS.label, info=_TARGETS.help)
                    for part, label in _LABELS.items():
                        ticks = [tick.shown for tick in USUAL if tick.part == part]
                        self._place(part, ticks, label=label, visible=bool(ticks))
                self._note = gr.HTML(elem_id="targets-note")
                label = "By pattern, by layer, ranks of their own"
                with gr.Accordion(label, open=False, elem_id="patterns-box"):
                    with gr.Row():
                        render("target_pattern", "layer_range")
                    with gr.Row():
                        render("rank_pattern", "alpha_pattern")
            with gr.Row():
                render("train_fully", "new_tokens")
        self._known = gr.State(USUAL)
        self._read_for = gr.State("")  # the base model whose modules are known

    def _place(self, part: str, ticks: Sequence[tuple[str, str]], **look: Any) -> None:
        ticked = [name for name in self._form.values["target_modules"] if name in [value for _, value in ticks]]
        self._groups[part] = gr.CheckboxGroup(list(ticks), value=ticked, elem_id=f"targets-{part}", **look)

    def shown(self, method: str) -> bool:
        """Whether anything in the box means something to the method."""
        return self._form.any_applies(SETTINGS, {"method": method})

    def has_targets(self, method: str) -> bool:
        """Whether the method puts an adapter on modules that can be chosen."""
        return self._form.any_applies(["target_modules"], {"method": method})

    def title(self, method: str) -> str:
        """What stands over the box."""
        return _TARGETS.label if self.has_targets(method) else "New tokens"

    def wire(self) -> None:
        """Connect the ticks with the setting and the base model; call once, inside the page."""
        controls = self._form.controls
        base, code, modules = controls["base_model"], controls["trust_remote_code"], controls["target_modules"]
        groups = list(self._groups.values())
        for group in groups:
            group.input(self._ticked, [modules, *groups], modules, **QUIET)
        modules.change(self._show_ticks, [modules, self._known, *groups], groups, **QUIET)
        filled: set[Component] = {
            modules,
            controls["train_fully"],
            controls["layer_range"],
            self._known,
            self._read_for,
            self._note,
            *groups,
        }
        # The first look brings torch along, which takes seconds.
        reading: dict[str, Any] = QUIET | {"show_progress": "minimal", "show_progress_on": self._groups[_ALL]}
        inputs: list[Component] = [base, code, modules]
        gr.on([base.change, code.change], self._fill, inputs, filled, **reading)
        self.box.expand(self._fill_once, [self._read_for, *inputs], filled, **reading)

    def _ticked(self, before: list[str] | None, *groups: list[str]) -> Any:
        ticked = untick_the_rest([name for group in groups for name in group], before or [])
        return gr.skip() if ticked == before else ticked

    def _show_ticks(self, ticked: list[str] | None, known: Sequence[Tick], *groups: list[str]) -> list[Any]:
        """Ticks as the setting has them, however it came to that."""
        ticks = with_unknown(known, ticked or [])
        if ticks == list(known) and sorted(name for group in groups for name in group) == sorted(ticked or []):
            return [gr.skip()] * len(groups)
        return list(self._groups_updates(ticks, ticked or []).values())

    def _groups_updates(self, ticks: Sequence[Tick], ticked: Sequence[str]) -> dict[Component, Any]:
        layers = sum(tick.layers for tick in ticks)
        shown = (f"{ALL_LINEAR} ({layers})" if layers else ALL_LINEAR, ALL_LINEAR)
        updates: dict[Component, Any] = {
            self._groups[_ALL]: gr.update(choices=[shown], value=[name for name in ticked if name == ALL_LINEAR])
        }
        for part in _LABELS:
            own = [tick for tick in ticks if tick.part == part]
            updates[self._groups[part]] = gr.update(
                choices=[tick.shown for tick in own],
                value=[tick.name for tick in own if tick.name in ticked],
                visible=bool(own),
            )
        return updates

    def _fill_once(self, read_for: str, base: str | None, run_code: bool, ticked: list[str] | None) -> Any:
        return gr.skip() if read_for == base else self._fill(base, run_code, ticked)

    def _fill(self, base: str | None, run_code: bool, ticked: list[str] | None) -> dict[Component, Any]:
        """Updates for the model: its modules, without the ticks on those that it lacks."""
        ticked = ticked or []
        try:
            choices = self._choices(base or "", run_code)
        except UserError as error:
            return self._unread(ticked) | {self._note: note_html(str(error), "error")}
        if isinstance(choices, str):
            return self._unread(ticked) | {self._note: note_html(f"{choices}: these are the usual names.")}
        known = [Tick(kind.name, kind.part, kind.count) for kind in choices.kinds]
        kept, lacking = split_ticks(ticked, [tick.name for tick in known])
        said = ""
        if lacking:
            instead = "" if kept else f", so {ALL_LINEAR} is ticked"
            said = note_html(f"{base} has no layers called {', '.join(lacking)}: unticked{instead}.", "warning")
        kept = kept or [ALL_LINEAR]
        controls = self._form.controls
        layers = f"empty: all layers, 0-{choices.layers - 1}"
        return self._groups_updates(with_unknown(known, kept), kept) | {
            controls["target_modules"]: kept,
            controls["train_fully"]: gr.update(choices=list(choices.whole)),
            controls["layer_range"]: gr.update(placeholder=layers),
            self._known: known,
            self._read_for: base,
            self._note: said,
        }

    def _unread(self, ticked: list[str]) -> dict[Component, Any]:
        """Updates for a model of which nothing is known."""
        return self._groups_updates(with_unknown(USUAL, ticked), ticked) | {
            self._form.controls["train_fully"]: gr.update(choices=[]),
            self._form.controls["layer_range"]: gr.update(placeholder="empty: all layers"),
            self._known: USUAL,
            self._read_for: "",
        }

    def _choices(self, base: str, run_code: bool) -> ModuleChoices | str:
        """What the model has, or why that is not known; raises UserError for a model that cannot be trained."""
        source = locate_base_model(self._folders, base, run_code=run_code)
        if not os.path.isdir(source):
            return "The model is not on this computer yet"
        if run_code and self._needs_code(base):
            return "The model's own code runs in the training only, not for this list"
        # Here, because it brings torch along, without which the page opens faster.
        load_libraries()
        from training.module_choices import module_choices

        return module_choices(source)

    def _needs_code(self, base: str) -> bool:
        try:
            locate_base_model(self._folders, base)
        except UserError:
            return True
        return False


def untick_the_rest(ticked: list[str], before: list[str]) -> list[str]:
    """all-linear and single modules exclude each other: the one ticked last counts."""
    if ALL_LINEAR in ticked and len(ticked) > 1:
        return [name for name in ticked if (name == ALL_LINEAR) != (ALL_LINEAR in before)]
    return ticked


def with_unknown(known: Sequence[Tick], ticked: Sequence[str]) -> list[Tick]:
    """The ticks, and one for each name that is ticked and none of theirs."""
    names = {ALL_LINEAR, *(tick.name for tick in known)}
    return [*known, *(Tick(name, _OTHER, 0) for name in ticked if name not in names)]


def split_ticks(ticked: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """What of `ticked` stands for layers called `names`, whole or by the last part of it, and what does not."""
    lacking = [
        one
        for one in ticked
        if one != ALL_LINEAR and not any(f".{one}".endswith(f".{n}") or f".{n}".endswith(f".{one}") for n in names)
    ]
    return [one for one in ticked if one not in lacking], lacking
