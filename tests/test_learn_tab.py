"""The Learn tab's logic: its tables, its words, and what it draws of a LoRA."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.architectures import ARCHITECTURES
from tests.pages import fire
from tests.tiny import add_base, make_folders, make_model
from tests.trials import save_base
from training.adapter_spectrum import Spectrum, Update
from training.lora_arithmetic import Linear, Shape
from training.model_shape import shape_of
from training.paths import PROJECT, Folders
from ui.learn_pictures import memory_html, rank_table_html, spectrum_html
from ui.learn_tab import LearnTab
from ui.learn_text import AFTER_PICTURE, GROUPS, METHODS, OPENING, PRECISION, SPECTRUM, TARGETS, methods_html

NASTY = "<img src=x onerror=alert(1)>"
WORDS = OPENING + AFTER_PICTURE + TARGETS + PRECISION + METHODS + methods_html() + SPECTRUM
LINKED_FROM_SETTINGS = {"learn-rank", "learn-alpha", "learn-precision", "learn-methods", "learn-target-modules"}


class Bench:
    """The tab over folders with a tiny base model, as the page holds it."""

    def __init__(self, root: Path) -> None:
        self.folders: Folders = make_folders(root)
        add_base(self.folders)
        self.build()

    def build(self) -> None:
        with gr.Blocks() as self.page:
            self.tab = LearnTab(self.folders)

    def add_lora(self, name: str, step: int | None = None) -> Path:
        """A LoRA of rank 4 that uses one direction, as the final one or as a checkpoint."""
        folder = self.folders.loras / name / (f"checkpoint-{step}" if step else "")
        model = get_peft_model(
            make_model(300), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
        )
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.data[:, 0] = torch.ones(parameter.shape[0])
        model.save_pretrained(str(folder))
        return folder

    def ranks(self, targets: str, model: str) -> str:
        found = [f for f in self.page.fns.values() if (self.tab._model._id, "input") in f.targets]
        assert found[0].fn is not None
        return str(found[0].fn(targets, model))

    def choose(self, name: str) -> tuple[Any, str]:
        checkpoints, drawn = fire(self.page, self.tab._adapter, "input", name)
        return checkpoints, drawn


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_every_section_the_settings_link_to_is_there_once() -> None:
    ids = Counter(re.findall(r'id="([^"]+)"', WORDS))
    assert set(ids) >= LINKED_FROM_SETTINGS
    assert set(ids.values()) == {1}
    assert set(re.findall(r'href="#([^"]+)"', WORDS)) <= set(ids)


def test_links_go_to_arxiv_and_leave_the_page_alone() -> None:
    links = re.findall(r"<a [^>]+>", WORDS.replace('<a href="#', '<i href="#'))
    assert len(links) >= 17
    for link in links:
        assert re.search(r'href="https://arxiv\.org/abs/\d{4}\.\d{5}"', link)
        assert 'target="_blank" rel="noopener noreferrer"' in link


def test_each_method_says_what_it_does_and_when_to_take_it() -> None:
    methods = [method for group in GROUPS.values() for method in group]
    assert {method.name for method in methods} >= {
        *("Full fine-tuning", "8-bit", "QLoRA, 4-bit", "rsLoRA", "DoRA", "LoRA+", "VeRA", "LoHa, LoKr", "PiSSA"),
        *("OLoRA", "LoftQ", "EVA", "Adapters", "IA3", "Prefix tuning", "Prompt tuning", "P-tuning"),
    }
    assert all(method.what.endswith(".") and method.when.endswith(".") for method in methods)
    assert [method.name for method in methods if not method.papers] == ["Full fine-tuning"]


def test_rank_table_of_well_known_and_own_models(bench: Bench) -> None:
    everything = bench.ranks("All linear layers", "tiny")
    few = bench.ranks("Queries and values only", "tiny")
    assert "39,976,960<span>0.593%" in everything  # Llama 2 7B at rank 16
    assert "8,388,608<span>0.124%" in few
    assert "32,768,000<span>0.0475%" in few  # Llama 2 70B, whose values are shared by eight heads
    shape = shape_of(str((bench.folders.models / "tiny").resolve()), "tiny")
    assert f"{shape.trainable(256):,}<span>" in everything
    assert f"{shape.trainable(256, shape.query_and_value):,}<span>" in few
    assert everything.count("<tr>") == 1 + 9
    assert "tiny" not in bench.ranks("All linear layers", "")


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_rank_table_of_another_family(bench: Bench, family: str) -> None:
    save_base(bench.folders, family, ARCHITECTURES[family])
    shape = shape_of(str((bench.folders.models / family).resolve()), family)
    assert f"{shape.trainable(8):,}<span>" in bench.ranks("All linear layers", family)
    few = bench.ranks("Queries and values only", family)
    assert few.count('<td class="learn-chosen">&ndash;</td>') == (9 if family == "mamba" else 0)
    assert ("mamba has no layers for queries and values." in few) == (family == "mamba")


def test_model_of_the_hugging_face_cache(bench: Bench) -> None:
    assert bench.folders.hub_cache is not None
    version = bench.folders.hub_cache / "models--maker--small" / "snapshots" / "1"
    version.parent.mkdir(parents=True)
    (bench.folders.models / "tiny").rename(version)
    assert bench.tab._refreshed("maker/small", "", "")[0]["value"] == "maker/small"
    drawn = bench.ranks("All linear layers", "maker/small")
    assert '<th class="learn-chosen">maker/small' in drawn
    assert f"{shape_of(str(version.resolve()), 'maker/small').trainable(8):,}<span>" in drawn


def test_model_that_cannot_be_counted_is_a_sentence_beside_the_table(bench: Bench) -> None:
    other = add_base(bench.folders, "other")
    (other / "config.json").write_text(json.dumps({"model_type": NASTY}))
    drawn = bench.ranks("All linear layers", "other")
    assert "is of a kind (&#x27;&lt;img" in drawn
    assert "39,976,960" in drawn
    assert NASTY not in drawn
    code = {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Model"}}
    (other / "config.json").write_text(json.dumps(code))
    assert "&#x27;other&#x27; runs program code of its own, which is not run" in bench.ranks("All", "other")
    assert "there is no folder &#x27;../tiny&#x27;" in bench.ranks("All linear layers", "../tiny")


def test_names_of_models_stay_text() -> None:
    shape = Shape(NASTY, 1, (Linear("q_proj", 2, 2),), 1)
    assert NASTY not in rank_table_html(shape, only_query_and_value=False)


def test_page_is_built_without_torch_and_without_the_chosen_models_column(bench: Bench) -> None:
    assert bench.tab._model.value == "" and "learn-chosen" not in bench.tab._ranks.value
    script = (
        "import sys, gradio; from training.paths import Folders; from ui.learn_tab import LearnTab\n"
        "with gradio.Blocks(): tab = LearnTab(Folders())\n"
        "print(tab._model.value, 'learn-chosen' in tab._ranks.value, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["starter", "False", "False"], done.stderr


def test_memory_of_the_three_sizes() -> None:
    drawn = memory_html()
    weights = re.findall(r"<td>([\d,.]+ GB)<span", drawn)
    assert weights[:4] == ["29.9 GB", "15.0 GB", "7.5 GB", "3.9 GB"]
    assert weights[4:8] == ["263 GB", "131 GB", "65.7 GB", "33.9 GB"]
    assert weights[8:12] == ["1,512 GB", "756 GB", "378 GB", "195 GB"]
    assert weights[12:15] == ["120 GB", "15.6 GB", "5.9 GB"]
    assert "0.62 GB" in drawn  # 41,943,040 numbers of a LoRA of rank 16, 16 bytes each
    assert "5.3 GB and not 3.9" in drawn


def test_lora_is_drawn_with_its_checkpoints(bench: Bench) -> None:
    bench.add_lora("pirate")
    bench.add_lora("pirate", 20)
    checkpoints, drawn = bench.choose("pirate")
    assert checkpoints["choices"] == [("Final", "final"), ("Step 20", "20")]
    assert checkpoints["interactive"]
    assert "Of rank 4, this LoRA uses about 1.0: a lower rank, such as 1," in drawn
    assert drawn.count("effective rank 1.0 of 4") == 2 * 2  # two layers, in two pictures
    assert drawn.count("<polyline") == 2
    at_step = fire(bench.page, bench.tab._checkpoint, "input", "pirate", "20")
    assert "pirate, step 20" in at_step
    assert "Choose a LoRA" in bench.choose("")[1]


def test_lora_that_cannot_be_read_is_a_sentence(bench: Bench) -> None:
    folder = bench.add_lora("broken")
    (folder / "adapter_model.safetensors").write_bytes(b"none")
    assert "The adapter in &#x27;broken&#x27; is damaged" in bench.choose("broken")[1]
    assert "There is no LoRA called &#x27;gone&#x27;" in bench.choose("gone")[1]


def test_new_models_and_loras_are_found_when_the_tab_is_opened(bench: Bench) -> None:
    bench.add_lora("pirate")
    add_base(bench.folders, "second")
    model, adapter, checkpoint = bench.tab._refreshed("gone", "gone", "20")
    assert model["choices"] == [("None", ""), ("second", "second"), ("tiny", "tiny")]
    assert (model["value"], adapter["value"], checkpoint["value"]) == ("", "", "final")
    assert adapter["choices"] == [("None", ""), ("pirate", "pirate")]


def test_names_in_a_lora_stay_text() -> None:
    updates = (
        Update(f"model.layers.0.{NASTY}", 0, 2, (2.0, 1.0)),
        Update("model.layers.1.mlp.experts.3.up_proj", 1, 2, (2.0, 1.0)),
        Update("model.layers.1.mlp.experts.4.up_proj", 1, 2, (1.0, 0.0)),
        Update("lm_head", None, 2, (0.0, 0.0)),
    )
    drawn = spectrum_html(NASTY, Spectrum(updates, True, f"pissa{NASTY}", (NASTY,)))
    assert "<img" not in drawn
    assert "&lt;img" in drawn
    assert "mlp.experts.up_proj" in drawn and "(2 experts, their mean)" in drawn
    assert "<b>lm_head</b>" in drawn
    assert "DoRA" in drawn
