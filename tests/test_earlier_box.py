"""The choice of an earlier LoRA: what is offered in which order, and what is said of how it fits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from tests.tiny import make_folders, make_settings
from training.paths import Folders
from training.runs import Run
from ui.earlier_box import EarlierBox, earlier_choices, hint_html
from ui.form import SettingsForm, default_values


def add_adapter(folders: Folders, name: str, base: str = "tiny", *, age: int = 0, **config: Any) -> Path:
    """An adapter of which only the config is real, `age` seconds old."""
    folder = folders.loras / name
    folder.mkdir(parents=True)
    values = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": base} | config
    (folder / "adapter_config.json").write_text(json.dumps(values))
    (folder / "adapter_model.safetensors").touch()
    written = (folder / "adapter_config.json").stat().st_mtime - age
    os.utime(folder / "adapter_config.json", (written, written))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


def test_those_on_this_base_come_first_and_newest_first(folders: Folders) -> None:
    add_adapter(folders, "old", age=50)
    add_adapter(folders, "other", "big", age=20)
    add_adapter(folders, "new")
    for step in (20, 100):
        add_adapter(folders, f"new/checkpoint-{step}")
    (folders.loras / "new" / "checkpoint-200").mkdir()  # not complete
    add_adapter(folders, "untold", "", age=70)
    assert earlier_choices(folders, "tiny") == [
        ("None: a new LoRA", ""),
        ("new", "new"),
        ("new/checkpoint-100", "new/checkpoint-100"),
        ("new/checkpoint-20", "new/checkpoint-20"),
        ("old", "old"),
        ("other (on big)", "other"),
        ("untold (on an unknown base)", "untold"),
    ]


def test_a_run_that_is_not_finished_offers_its_checkpoints(folders: Folders) -> None:
    run = Run(folders.loras / "half")
    add_adapter(folders, "half/checkpoint-7")
    run.write_settings(make_settings(name="half"))
    assert [value for _, value in earlier_choices(folders, "tiny")] == ["", "half/checkpoint-7"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_rank": 8, "lora_alpha": 16}, ""),
        ({"lora_rank": 32, "lora_alpha": 16}, "what it has learnt stays as it is"),
        ({"lora_rank": 4, "lora_alpha": 16}, "the others are lost"),
        ({"lora_rank": 8, "lora_alpha": 8}, "rank 8 and alpha 16, and is continued at rank 8 and alpha 8"),
        ({"lora_rank": 4, "start_as": "merge it into the base"}, ""),
        ({"base_model": "big"}, "was trained on tiny and fits no other"),
        ({"method": "IA3"}, "of the method LoRA, not IA3"),
        ({"start_from": "gone"}, "There is no LoRA called"),
        ({"start_from": "mine/x"}, "no checkpoint"),
        ({"start_from": "mine/checkpoint-3"}, "no checkpoint of step 3"),
    ],
)
def test_what_is_said_of_the_fit(folders: Folders, changes: dict[str, Any], words: str) -> None:
    add_adapter(folders, "mine")
    said = hint_html(folders, make_settings(**{"start_from": "mine"} | changes))
    assert words in said and bool(words) is bool(said)


def test_damaged_and_hostile_files_are_a_sentence(folders: Folders) -> None:
    nasty = "<img src=x>"
    folder = add_adapter(folders, nasty)
    assert "fits no other" in hint_html(folders, make_settings(start_from=nasty, base_model="big"))
    assert "<img" not in hint_html(folders, make_settings(start_from=nasty, base_model="big"))
    Run(folder).write_settings(make_settings())
    for text in ("{", "[]", "\ud800".encode("utf-16", "surrogatepass").decode("latin-1")):
        (folder / "adapter_config.json").write_text(text)
        assert "is damaged" in hint_html(folders, make_settings(start_from=nasty))


def test_half_typed_numbers_leave_the_hint_as_it_is(folders: Folders) -> None:
    add_adapter(folders, "mine")
    with gr.Blocks():
        form = SettingsForm(folders, default_values())
        form.render("base_model", "method", "lora_rank", "lora_alpha")
        box = EarlierBox(folders, form)
        box.build()
    assert box._say("mine", "continue it", "tiny", "LoRA", None, 16) == gr.skip()
    assert "at rank 4" in box._say("mine", "continue it", "tiny", "LoRA", 4, 16)
    assert box._say("", "continue it", "tiny", "LoRA", None, 16) == ""
