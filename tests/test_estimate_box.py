"""The box with the numbers before Start: what it says, how full the bar is, and what it does with half-typed values."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch

from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training import hardware
from training.errors import SettingsError
from training.estimate import Estimate, Memory, Steps
from training.gradient_checkpointing import Decision
from training.hardware import Hardware
from training.paths import Folders
from ui.estimate_box import EstimateBox, box_html, estimate_html

GIB = 2**30
OFF, ON = Decision(False, "it fits"), Decision(True, "12 GB are <b>more</b> than 8 GB")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = make_folders(tmp_path)
    add_base(made)
    add_dataset(made)
    return made


def values(**changes: Any) -> dict[str, Any]:
    return make_settings().model_dump(mode="json") | changes


def made_up(total: int | None = 24 * GIB) -> Estimate:
    """An 8B model of which an adapter is trained: 12 GB in all."""
    return Estimate(
        trainable=17_825_792,
        parameters=8_048_000_000,
        saved=71_300_000,
        checkpoint=214_000_000,
        base_by_bits={32: 32_121_000_000, 16: 16_060_000_000, 8: 9_090_000_000, 4: 5_700_000_000},
        bits=4,
        memory=Memory(base=6 * GIB, trained=2 * GIB, activations=3 * GIB, libraries=GIB, files=0),
        hardware=Hardware("a GPU <b>", True, total, torch.bfloat16),
        tokens=512,
        steps=Steps(900, 90),
    )


def test_says_what_is_trained_and_how_large_it_gets() -> None:
    html = box_html(made_up(), make_settings(), OFF)
    assert "<strong>17.8 million</strong> of 8.05 billion parameters are trained (0.22 %)" in html
    assert "the adapter takes 71 MB, a checkpoint 214 MB" in html
    assert "About 12.0 GB of 24.0 GB on a GPU &lt;b&gt;: it fits." in html
    assert '<li class="chosen">4-bit <b>5.7 GB</b></li>' in html and html.count('class="chosen"') == 1
    assert "900 steps, 90 of them warm-up. The longest example has 512 tokens." in html


@pytest.mark.parametrize(
    ("total", "state", "sentence"),
    [
        (24 * GIB, "fits", "it fits"),
        (13 * GIB, "tight", "it is tight; lower the micro-batch size"),
        (10 * GIB, "over", "it does not fit; lower the micro-batch size"),
        (None, "unknown", "how much it has is not known here"),
    ],
)
def test_colour_follows_how_full_the_device_gets(total: int | None, state: str, sentence: str) -> None:
    html = box_html(made_up(total), make_settings(), OFF)
    assert f'class="estimate-memory estimate-{state}"' in html and sentence in html
    widths = [float(width) for width in re.findall(r'<i style="width:([\d.]+)%"', html)]
    filled = 12 * GIB / max(12 * GIB, total or 0)
    assert len(widths) == 4 and sum(widths) == pytest.approx(100 * filled, abs=0.1)
    assert ("<s style" in html) == (state == "over")  # where the device ends


def test_gradient_checkpointing_is_told_with_its_reason() -> None:
    html = box_html(made_up(), make_settings(), ON)
    assert "on a GPU &lt;b&gt; with gradient checkpointing: it fits." in html
    assert "Gradient checkpointing is on: 12 GB are &lt;b&gt;more&lt;/b&gt; than 8 GB." in html
    html = box_html(made_up(), make_settings(gradient_checkpointing="always"), ON)
    assert "with gradient checkpointing: it fits." in html and "is on" not in html  # whoever asked for it knows why
    assert "gradient checkpointing" not in box_html(made_up(), make_settings(), OFF).lower()


@pytest.mark.parametrize(
    ("decision", "method", "offered"),
    [(OFF, "LoRA", True), (ON, "LoRA", False), (OFF, "prefix tuning", False), (OFF, "full fine-tuning", True)],
)
def test_gradient_checkpointing_is_proposed_where_it_is_off_and_can_be_on(
    decision: Decision, method: str, offered: bool
) -> None:
    html = box_html(made_up(10 * GIB), make_settings(method=method), decision)
    assert ("set gradient checkpointing to always, or" in html) is offered


def test_the_box_shows_what_the_training_will_decide(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda: GIB // 2)
    assert "with gradient checkpointing" in estimate_html(folders, values(cutoff_length=512))
    assert "with gradient checkpointing" not in estimate_html(
        folders, values(cutoff_length=512, gradient_checkpointing="never")
    )
    monkeypatch.setattr(hardware, "free_memory", lambda: 64 * GIB)
    assert "with gradient checkpointing" not in estimate_html(folders, values(cutoff_length=512))


def test_whole_model_has_its_own_words() -> None:
    html = box_html(replace(made_up(10 * GIB), steps=None), make_settings(method="full fine-tuning"), OFF)
    assert "the whole model takes" in html and "or train a LoRA" in html
    assert "steps" not in html


def test_real_model_with_data_has_all_numbers(folders: Folders) -> None:
    """Ten rows, of which two are held out, in batches of four, twice."""
    html = estimate_html(folders, values())
    assert "Does it fit?" in html and "4 steps, 1 of them warm-up." in html
    assert "steps" not in estimate_html(folders, values(dataset=["gone.json"]))


def test_model_that_is_not_here_or_does_not_fit_has_a_sentence(folders: Folders) -> None:
    assert "not on this computer yet" in estimate_html(folders, values(base_model="org/model"))
    html = estimate_html(folders, values(base_model="<img src=x>"))
    assert "No numbers yet." in html and "&lt;img" in html and "<img" not in html
    assert "no layers called c_attn" in estimate_html(folders, values(target_modules=["c_attn"]))


def test_half_typed_values_leave_the_last_numbers(folders: Folders) -> None:
    with pytest.raises(SettingsError):
        estimate_html(folders, values(learning_rate="3e-"))
    box = EstimateBox(folders)
    assert box.update(values(learning_rate="3e-")) == gr.skip()
    assert box.update(values(micro_batch_size=None)) == gr.skip()
    assert "Does it fit?" in box.update(values())


def test_earlier_adapter_that_is_gone_has_a_sentence(folders: Folders) -> None:
    assert "No numbers yet." in estimate_html(folders, values(start_from="gone"))
