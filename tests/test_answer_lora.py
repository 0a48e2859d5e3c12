"""LoRA layers for answering compute what PEFT's do, on the base's own weights."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tests.tiny import make_model
from training.answer_lora import LoraForAnswers, for_answers

WIDTH = 64


def make_layer(**options: object) -> nn.Module:
    """The q_proj of a tiny model with a LoRA of random weights on it."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False, **options)
    model: PeftModel = get_peft_model(make_model(50), config)
    return model.eval().get_submodule("base_model.model.model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize("tokens", [1, 7])
def test_it_gives_what_pefts_layer_gives(tokens: int) -> None:
    layer = make_layer(lora_dropout=0.5)
    quick = for_answers(layer)
    x = torch.randn(1, tokens, WIDTH)
    with torch.no_grad():
        assert type(quick) is LoraForAnswers
        torch.testing.assert_close(quick(x), layer(x), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(quick(x), layer.base_layer(x), atol=1e-2)


def test_a_base_in_16_bits_is_added_to_in_32() -> None:
    layer = make_layer()
    layer.base_layer.bfloat16()
    x = torch.randn(1, 5, WIDTH, dtype=torch.bfloat16)
    with torch.no_grad():
        quick = for_answers(layer)(x)
        assert quick.dtype == torch.bfloat16
        torch.testing.assert_close(quick, layer(x))


def test_the_base_layer_is_shared_and_not_changed() -> None:
    layer = make_layer()
    before = layer.base_layer.weight.clone()
    quick = for_answers(layer)
    with torch.no_grad():
        quick(torch.randn(1, 3, WIDTH))
    assert quick.base_layer is layer.base_layer
    assert torch.equal(before, quick.base_layer.weight)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_layers_that_compute_otherwise_stay_pefts(options: dict[str, object]) -> None:
    layer = make_layer(**options)
    assert for_answers(layer) is layer
    assert for_answers(layer.base_layer) is layer.base_layer


def test_a_merged_layer_stays_pefts() -> None:
    layer = make_layer()
    layer.merge()
    assert for_answers(layer) is layer
