"""The form has a control for every setting, and values go in and out of it unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from training.parsing import parse
from training.paths import Folders
from training.settings import Settings, describe
from ui.form import default_values, untick_the_rest
from ui.monitor import Histories
from ui.training_tab import TrainingTab


@pytest.fixture
def tab(tmp_path: Path) -> TrainingTab:
    folders = Folders(models=tmp_path / "models", datasets=tmp_path / "datasets", loras=tmp_path / "loras")
    folders.make()
    with gr.Blocks() as page:
        tab = TrainingTab(folders, Histories())
        tab.wire(page)
    return tab


def test_every_setting_has_a_control_with_its_label_and_help(tab: TrainingTab) -> None:
    controls: dict[str, Any] = tab.form.controls
    assert set(controls) == set(Settings.model_fields)
    for info in describe():
        assert controls[info.name].label == info.label
        assert controls[info.name].info == info.help


def test_values_survive_the_way_through_the_form(tab: TrainingTab) -> None:
    asked = parse(
        {"name": "n", "learning_rate": 1.5e-5, "epochs": 2.5, "target_modules": ["q_proj"], "dataset": ["a", "b"]}
    )
    form = tab.form
    shown = form.fill(asked.model_dump(mode="json"))
    assert parse(form.gather(tuple(shown[control]["value"] for control in form.components))) == asked


def test_partial_values_leave_the_others_alone(tab: TrainingTab) -> None:
    form = tab.form
    updates = form.fill({"lora_rank": 4})
    assert list(updates) == [form.controls["lora_rank"]]
    assert updates[form.controls["lora_rank"]]["value"] == 4


def test_defaults_are_the_declarations() -> None:
    assert parse(default_values()) == Settings()


@pytest.mark.parametrize(
    ("ticked", "before", "left"),
    [
        (["all-linear", "q_proj"], ["all-linear"], ["q_proj"]),
        (["q_proj", "v_proj", "all-linear"], ["q_proj", "v_proj"], ["all-linear"]),
        (["q_proj", "v_proj"], ["q_proj"], ["q_proj", "v_proj"]),
        ([], ["q_proj"], []),
    ],
)
def test_all_linear_and_single_modules_exclude_each_other(
    ticked: list[str], before: list[str], left: list[str]
) -> None:
    assert untick_the_rest(ticked, before) == left
