"""The kinds of layers of each family: told apart, counted, and just those on which an adapter has an effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, JambaConfig, PreTrainedModel

from tests.architectures import ARCHITECTURES
from tests.trials import IDS, settings_for
from training.methods import attach, targets
from training.modules import layer_count, module_kinds

ATTENTION = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "gemma": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "qwen": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mistral": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "phi": {"q_proj", "k_proj", "v_proj", "dense"},
    "gpt2": {"c_attn", "attn.c_proj"},
    "gpt-neox": {"query_key_value", "dense"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj"},
    "falcon": {"query_key_value", "dense"},
    "bloom": {"query_key_value", "dense"},
    "mamba": {"in_proj", "x_proj"},  # of what stands there in the place of attention
    "moe": {"q_proj", "k_proj", "v_proj", "o_proj"},
}
FEED_FORWARD = {
    "llama": {"gate_proj", "up_proj", "down_proj"},
    "gemma": {"gate_proj", "up_proj", "down_proj"},
    "qwen": {"gate_proj", "up_proj", "down_proj"},
    "mistral": {"gate_proj", "up_proj", "down_proj"},
    "phi": {"fc1", "fc2"},
    "gpt2": {"c_fc", "mlp.c_proj"},
    "gpt-neox": {"dense_h_to_4h", "dense_4h_to_h"},
    "opt": {"fc1", "fc2"},
    "falcon": {"dense_h_to_4h", "dense_4h_to_h"},
    "bloom": {"dense_h_to_4h", "dense_4h_to_h"},
    "mamba": set(),
    "moe": {"gate_proj", "up_proj", "down_proj", "shared_expert_gate"},
}
DOWN = {
    "gpt2": {"mlp.c_proj"},
    "phi": {"fc2"},
    "opt": {"fc2"},
    "gpt-neox": {"dense_4h_to_h"},
    "falcon": {"dense_4h_to_h"},
    "bloom": {"dense_4h_to_h"},
    "mamba": set(),
}


@pytest.fixture(params=ARCHITECTURES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[family])


def adapted(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def test_kinds_by_part(model: PreTrainedModel, family: str) -> None:
    kinds = module_kinds(model)
    names = [kind.name for kind in kinds]
    assert len(set(names)) == len(names)
    assert {kind.name for kind in kinds if kind.part == "attention"} == ATTENTION[family]
    assert {kind.name for kind in kinds if kind.part == "feed-forward"} == FEED_FORWARD[family]
    assert [kind.name for kind in kinds if kind.part == "other"] == []
    assert {kind.name for kind in kinds if kind.goes_down} == DOWN.get(family, {"down_proj"})


def test_counts_are_those_of_the_model(model: PreTrainedModel) -> None:
    layers = {f".{n}": m.weight.numel() for n, m in model.named_modules() if hasattr(m, "weight")}
    assert layer_count(model) == 2
    for kind in module_kinds(model):
        sizes = [size for name, size in layers.items() if name.endswith(f".{kind.name}")]
        assert (kind.count, kind.parameters) == (len(sizes), sum(sizes))
        assert kind.count == layer_count(model)


def test_peft_puts_an_adapter_on_just_the_kind_that_is_ticked(model: PreTrainedModel) -> None:
    kinds = module_kinds(model)
    for kind in kinds:
        lora = attach(model, settings_for(target_modules=[kind.name]))
        assert isinstance(lora, PeftModel)
        names = adapted(lora)
        assert len(names) == kind.count and all(name.endswith(f".{kind.name}") for name in names)
        lora.unload()
    lora = attach(model, settings_for())
    assert len(adapted(lora)) == sum(kind.count for kind in kinds)
    assert model.get_output_embeddings() is not None and not isinstance(model.get_output_embeddings(), LoraLayer)


def test_no_adapter_is_without_effect(model: PreTrainedModel) -> None:
    lora = attach(model, settings_for())
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([IDS])
    lora(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    gradients = {name: p.grad for name, p in lora.named_parameters() if p.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_layers_of_two_kinds_in_turn() -> None:
    config = JambaConfig(
        vocab_size=288,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=2,
        mamba_d_state=4,
        use_mamba_kernels=False,
    )
    model = AutoModelForCausalLM.from_config(config)
    kinds = {kind.name: kind for kind in module_kinds(model)}
    assert "dt_proj" not in kinds and kinds["q_proj"].count == 2 and kinds["in_proj"].count == 2
    lora = attach(model, settings_for())
    assert len(adapted(lora)) == sum(kind.count for kind in kinds.values())


def test_targets_of_names_and_of_a_pattern() -> None:
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["llama"])
    assert targets(model, settings_for(target_modules=["q_proj"])) == ["q_proj"]
    pattern = r".*layers\.1\.mlp\..*_proj"
    lora = attach(model, settings_for(target_pattern=pattern))
    found = adapted(lora)
    assert len(found) == 3 and all(".layers.1.mlp." in name for name in found)
