"""What a base model offers to choose from is what it really has, whatever its family."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import PeftModel
from transformers import PreTrainedModel

from tests.architectures import ARCHITECTURES
from training import module_choices as module
from training.methods import attach
from training.module_choices import ModuleChoices, module_choices
from training.parsing import parse
from training.skeleton import skeleton


def saved(root: Path, family: str) -> str:
    ARCHITECTURES[family].save_pretrained(root)
    return str(root)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_each_choice_can_be_trained_whole_and_means_what_it_says(tmp_path: Path, family: str) -> None:
    source = saved(tmp_path, family)
    choices = module_choices(source)
    assert choices.kinds and choices.layers == 2
    first = choices.kinds[0].name
    for name in choices.whole:
        settings = parse({"target_modules": [first], "train_fully": [name]})
        model = attach(skeleton(source), settings)
        assert isinstance(model, PeftModel)
        whole = {full.split(".modules_to_save")[0] for full, _ in model.named_modules() if "modules_to_save." in full}
        assert whole, name
        assert all(full.endswith(f".{name}") for full in whole)


def test_names_that_end_others_are_given_in_full(tmp_path: Path) -> None:
    choices = module_choices(saved(tmp_path, "llama"))
    assert choices.whole == (
        "embed_tokens",
        "lm_head",
        "input_layernorm",
        "model.norm",
        "post_attention_layernorm",
    )
    assert [(kind.name, kind.count) for kind in choices.kinds][:2] == [("q_proj", 2), ("k_proj", 2)]


def test_a_model_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(source: str) -> PreTrainedModel:
        read.append(source)
        return skeleton(source)

    monkeypatch.setattr(module, "skeleton", counted)
    source = saved(tmp_path, "llama")
    first: ModuleChoices = module_choices(source)
    assert module_choices(source) is first
    assert saved(tmp_path, "gpt2") == source
    assert module_choices(source).kinds[0].name == "c_attn"
    assert len(read) == 2
