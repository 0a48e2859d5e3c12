"""The ticks for target modules: those of the model really chosen, and always what the setting says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from tests.architectures import ARCHITECTURES
from tests.tiny import add_base, make_folders
from training.settings import ALL_LINEAR
from ui.form import SettingsForm, default_values
from ui.method_box import MethodBox
from ui.target_box import USUAL, TargetBox, Tick, split_ticks, untick_the_rest

SKIPPED = [gr.skip()] * 4


class Bench:
    """The box over a folder with the tiny base model, which is of the Llama kind."""

    def __init__(self, root: Path) -> None:
        self.folders = make_folders(root)
        add_base(self.folders)
        with gr.Blocks():
            self.form = SettingsForm(self.folders, default_values() | {"base_model": "tiny"})
            self.box = TargetBox(self.folders, self.form)
            method = MethodBox(self.form, self.box)
            method.build()
            method.build_folded()

    def add(self, family: str) -> str:
        """A further model, of which only the config is real."""
        folder = shutil.copytree(self.folders.models / "tiny", self.folders.models / family)
        ARCHITECTURES[family].save_pretrained(folder)
        return family

    def fill(self, base: str, *ticked: str, run_code: bool = False) -> dict[str, Any]:
        """What the box shows of a model, by part: the choices as they are shown, `ticked`, and the `note`."""
        updates = self.box._fill(base, run_code, list(ticked))
        groups = {part: updates[group] for part, group in self.box._groups.items()}
        shown = {part: [label for label, _ in group["choices"]] for part, group in groups.items()}
        return shown | {
            "ticked": [name for group in groups.values() for name in group["value"]],
            "setting": updates.get(self.form.controls["target_modules"]),
            "note": updates[self.box._note],
            "whole": updates[self.form.controls["train_fully"]]["choices"],
            "layers": updates[self.form.controls["layer_range"]]["placeholder"],
        }


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_ticks_are_those_of_the_model_by_part(bench: Bench) -> None:
    shown = bench.fill("tiny", ALL_LINEAR)
    assert shown[ALL_LINEAR] == ["all-linear (14)"]
    assert shown["attention"] == ["q_proj (2)", "k_proj (2)", "v_proj (2)", "o_proj (2)"]
    assert shown["feed-forward"] == ["gate_proj (2)", "up_proj (2)", "down_proj (2)"]
    assert shown["other"] == []
    assert shown["setting"] == shown["ticked"] == [ALL_LINEAR]
    assert {"embed_tokens", "lm_head", "input_layernorm"} <= set(shown["whole"])
    assert shown["layers"] == "empty: all layers, 0-1"
    assert shown["note"] == ""


def test_ticks_that_another_model_lacks_are_dropped_with_a_word(bench: Bench) -> None:
    opt = bench.fill(bench.add("opt"), "q_proj", "o_proj", "up_proj")
    assert opt["setting"] == opt["ticked"] == ["q_proj"]
    assert "opt has no layers called o_proj, up_proj: unticked." in opt["note"]
    gpt2 = bench.fill(bench.add("gpt2"), "q_proj")
    assert gpt2["setting"] == gpt2["ticked"] == [ALL_LINEAR]
    assert "unticked, so all-linear is ticked" in gpt2["note"]
    assert gpt2["attention"] == ["c_attn (2)", "attn.c_proj (2)"]


def test_names_that_say_the_same_another_way_are_kept(bench: Bench) -> None:
    """PEFT looks at the end of a name: c_proj is both of GPT-2's, and a longer name one of them."""
    shown = bench.fill(bench.add("gpt2"), "c_proj", "h.0.mlp.c_proj")
    assert shown["setting"] == ["c_proj", "h.0.mlp.c_proj"]
    assert shown["other"] == shown["ticked"] == ["c_proj", "h.0.mlp.c_proj"]
    assert shown["note"] == ""


def test_a_model_that_is_not_here_has_the_usual_names(bench: Bench) -> None:
    shown = bench.fill("org/model", "q_proj", "c_attn")
    assert shown["attention"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert shown["other"] == ["c_attn"]
    assert shown["ticked"] == ["q_proj", "c_attn"] and shown["setting"] is None
    assert "not on this computer yet" in shown["note"]


def test_a_broken_model_is_told_and_its_name_is_text(bench: Bench) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    (bench.folders.models / nasty).mkdir()
    shown = bench.fill(nasty, ALL_LINEAR)
    assert "graft-note-error" in shown["note"] and "<img" not in shown["note"]
    assert shown["ticked"] == [ALL_LINEAR]


def test_a_models_own_code_is_not_run_for_the_list(bench: Bench) -> None:
    folder = shutil.copytree(bench.folders.models / "tiny", bench.folders.models / "own")
    (folder / "config.json").write_text(
        '{"model_type": "own", "architectures": ["OwnForCausalLM"], '
        '"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}}'
    )
    (folder / "own.py").write_text("open('was-run', 'w')")
    assert "own code runs in the training only" in bench.fill("own", ALL_LINEAR, run_code=True)["note"]
    assert "graft-note-error" in bench.fill("own", ALL_LINEAR)["note"]
    assert not Path("was-run").exists()


def test_ticks_follow_the_setting(bench: Bench) -> None:
    box = bench.box
    ticks = [[ALL_LINEAR], [], [], []]
    assert box._show_ticks([ALL_LINEAR], USUAL, *ticks) == SKIPPED
    all_linear, attention, feed_forward, other = box._show_ticks(["up_proj", "router"], USUAL, *ticks)
    assert (all_linear["value"], attention["value"], feed_forward["value"]) == ([], [], ["up_proj"])
    assert other["value"] == ["router"] and other["visible"]


def test_the_setting_follows_the_ticks(bench: Bench) -> None:
    box = bench.box
    assert box._ticked([ALL_LINEAR], [ALL_LINEAR], ["q_proj"], [], []) == ["q_proj"]
    assert box._ticked(["q_proj"], [ALL_LINEAR], ["q_proj"], [], []) == [ALL_LINEAR]
    assert box._ticked(["q_proj"], [], ["q_proj"], ["up_proj"], []) == ["q_proj", "up_proj"]
    assert box._ticked(["q_proj"], [], [], [], []) == []


def test_the_model_is_read_when_the_box_is_opened_first(bench: Bench) -> None:
    box = bench.box
    assert box._fill_once("tiny", "tiny", False, [ALL_LINEAR]) == gr.skip()
    assert box._fill_once("", "tiny", False, [ALL_LINEAR])[box._read_for] == "tiny"


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


def test_names_are_compared_by_whole_parts() -> None:
    assert split_ticks(["proj", "mlp.fc1"], ["q_proj", "fc1"]) == (["mlp.fc1"], ["proj"])


def test_usual_names_are_the_declarations() -> None:
    assert USUAL[0] == Tick("q_proj", "attention", 0) and USUAL[-1] == Tick("down_proj", "feed-forward", 0)
