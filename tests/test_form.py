"""The form has a control for every setting, and values go in and out of it unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import gradio as gr
import pytest

from training.parsing import parse
from training.paths import Folders
from training.settings import FULL, Method, Settings
from training.settings_info import describe
from training.supervisor import Supervisor
from ui.form import default_values
from ui.method_box import start_label
from ui.training_tab import DATASET, TrainingTab


@pytest.fixture
def tab(tmp_path: Path) -> TrainingTab:
    folders = Folders(models=tmp_path / "models", datasets=tmp_path / "datasets", loras=tmp_path / "loras")
    folders.make()
    with gr.Blocks() as page:
        tab = TrainingTab(folders, Supervisor(folders))
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


@pytest.mark.parametrize("method", get_args(Method))
def test_only_the_settings_of_the_method_are_in_view(tab: TrainingTab, method: str) -> None:
    updates = tab._method._shown(method, "16-bit")
    shown = {name for name, control in tab.form.controls.items() if updates.get(control, {}).get("visible")}
    assert shown == {i.name for i in describe() if method in i.methods} - {"target_modules"}
    has_targets = method not in ("prefix tuning", "prompt tuning", "P-tuning", FULL)
    assert updates[tab._method._targets.targets]["visible"] is has_targets
    assert updates[tab._method._targets.box]["visible"] is (has_targets or method == FULL)
    assert updates[tab._method._variants]["visible"] is (method == "LoRA")


@pytest.mark.parametrize(("precision", "shown"), [("4-bit", True), ("8-bit", False), ("32-bit", False)])
def test_how_4_bit_loading_is_done_is_in_view_with_4_bit_only(tab: TrainingTab, precision: str, shown: bool) -> None:
    updates = tab._method._shown("LoRA", precision)
    for name in ("quantization_type", "double_quantization"):
        assert updates[tab.form.controls[name]]["visible"] is shown


def test_the_page_begins_with_what_its_first_preset_has(tab: TrainingTab) -> None:
    controls: dict[str, Any] = tab.form.controls
    assert controls["lora_rank"].visible is True
    assert (controls["virtual_tokens"].visible, controls["quantization_type"].visible) == (False, False)


def test_what_is_out_of_view_is_left_out_of_the_training(tab: TrainingTab) -> None:
    """A wrong number in a box that cannot be seen must not keep a training from starting."""
    values = default_values() | {"method": "IA3", "lora_rank": None, "dora": True, "raw_text": ["book.txt"]}
    shown = tab.form.fill(values)
    given = tab.data_values(DATASET, tuple(shown[control]["value"] for control in tab.form.components))
    assert parse(given) == parse({"method": "IA3"})


def test_only_full_fine_tuning_makes_no_lora() -> None:
    assert [m for m in get_args(Method) if start_label(m) != "Start LoRA Training"] == [FULL]


def test_consent_to_run_code_is_not_kept_in_the_browser(tab: TrainingTab) -> None:
    names = list(tab.form.controls)
    kept: list[Any] = [DATASET, None, *[True] * len(names)]
    restored = dict(zip(names, tab._restore(kept)[2:], strict=True))
    assert [name for name, value in restored.items() if value is not True] == ["trust_remote_code"]
