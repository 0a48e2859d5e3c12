"""A model without weights counts exactly as the real one does, for each family and each way to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.architectures import ARCHITECTURES
from tests.trials import settings_for
from training.errors import UserError
from training.methods import attach, parameter_counts
from training.model import load_base
from training.modules import module_kinds
from training.skeleton import skeleton

WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {"lora_rank": 3},
    "rank 200, more than the model is wide": {"lora_rank": 200},
    "rsLoRA": {"rank_stabilized": True},
    "DoRA": {"dora": True},
    "one layer": {"layer_range": "1"},
    "PiSSA": {"initialization": "PiSSA"},
    "OLoRA": {"initialization": "OLoRA"},
    "orthogonal": {"initialization": "orthogonal"},
    "EVA": {"initialization": "EVA"},
    "trained fully": {"train_fully": ["lm_head"]},
    "VeRA": {"method": "VeRA"},
    "LoHa": {"method": "LoHa"},
    "LoKr": {"method": "LoKr"},
    "IA3": {"method": "IA3"},
    "prefix tuning": {"method": "prefix tuning"},
    "prompt tuning": {"method": "prompt tuning"},
    "P-tuning": {"method": "P-tuning"},
    "full fine-tuning": {"method": "full fine-tuning"},
}
# What does not fit, and what is said of it.
_NO_HEADS = "does not work on this base model .*num_attention_heads"  # prefixes and prompts are made for attention
REFUSED: dict[tuple[str, str], str] = {
    ("mamba", "prefix tuning"): _NO_HEADS,
    ("mamba", "prompt tuning"): _NO_HEADS,
    ("mamba", "P-tuning"): _NO_HEADS,
    ("gpt2", "LoHa"): "LoHa does not work on this base model",  # PEFT has none for GPT-2's transposed layers
    ("gpt2", "LoKr"): "LoKr does not work on this base model",
    ("moe", "PiSSA"): "^Initialization: PiSSA has at most 1 directions to begin with in shared_expert_gate",
    ("moe", "OLoRA"): "^Initialization: OLoRA has at most 1 directions to begin with in shared_expert_gate",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    for family, config in ARCHITECTURES.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(str(root / family))
    return root


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_it_is_the_real_model_without_weights(saved: Path, family: str) -> None:
    empty, real = skeleton(str(saved / family)), load_base(str(saved / family), settings_for())
    assert all(p.is_meta for p in empty.parameters())
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert module_kinds(empty) == module_kinds(real)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_counts_are_those_of_the_real_model(saved: Path, family: str, way: str) -> None:
    source, settings = str(saved / family), settings_for(**WAYS[way])
    if message := REFUSED.get((family, way)):
        for load in (lambda: skeleton(source), lambda: load_base(source, settings)):
            with pytest.raises(UserError, match=message):
                attach(load(), settings)
        return
    expected = parameter_counts(attach(load_base(source, settings), settings))
    assert parameter_counts(attach(skeleton(source), settings)) == expected
    assert 0 < expected[0] <= expected[1]


@pytest.mark.parametrize("precision", ["8-bit", "4-bit"])
@pytest.mark.parametrize("way", ["LoRA", "IA3", "prefix tuning"])
def test_trainable_count_of_a_quantized_model(saved: Path, way: str, precision: str) -> None:
    source, settings = str(saved / "llama"), settings_for(precision=precision, **WAYS[way])
    assert parameter_counts(attach(skeleton(source), settings)) == parameter_counts(
        attach(load_base(source, settings), settings)
    )


@pytest.mark.parametrize(
    "config",
    ["{}", '{"model_type": "unheard-of"}', '{"model_type": "t5"}', '{"model_type": "llama", "hidden_size": "wide"}'],
)
def test_config_of_no_causal_model(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"its config\.json is of no causal language model"):
        skeleton(str(tmp_path))
