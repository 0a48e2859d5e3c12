"""Counts of trainable parameters beside PEFT's own, on models that have shapes but no weights."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, FalconConfig, LlamaConfig, PretrainedConfig

from training.lora_arithmetic import (
    GB,
    MEMORY_SHAPES,
    RANK_SHAPES,
    Shape,
    loaded_bytes,
    smallest_card,
    weight_bytes,
)


def peft_counts(config: PretrainedConfig, rank: int, targets: str | list[str]) -> tuple[int, int]:
    """Trainable and other parameters as PEFT counts them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        lora = LoraConfig(r=rank, target_modules=targets, task_type="CAUSAL_LM")
        trainable, everything = get_peft_model(model, lora).get_nb_trainable_parameters()
    return trainable, everything - trainable


def check(shape: Shape, config: PretrainedConfig, rank: int = 5) -> None:
    assert (shape.trainable(rank), shape.parameters) == peft_counts(config, rank, "all-linear")
    few = list(shape.query_and_value)
    assert (shape.trainable(rank, few), shape.parameters) == peft_counts(config, rank, few)


def test_well_known_shapes_have_their_published_sizes() -> None:
    assert {shape.name: shape.parameters for shape in (*RANK_SHAPES, *MEMORY_SHAPES)} == {
        "Llama 2 7B": 6_738_415_616,
        "Llama 2 13B": 13_015_864_320,
        "Llama 2 70B": 68_976_648_192,
        "Falcon 180B": 179_522_565_120,
        "Llama 3.1 8B": 8_030_261_248,
        "Llama 3.1 70B": 70_553_706_496,
        "Llama 3.1 405B": 405_853_388_800,
    }


def test_llama_2_7b_on_peft() -> None:
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    check(RANK_SHAPES[0], config, rank=16)
    assert RANK_SHAPES[0].trainable(16) == 39_976_960


def test_falcon_180b_on_peft() -> None:
    config = FalconConfig(
        hidden_size=14848,
        num_hidden_layers=80,
        num_attention_heads=232,
        num_kv_heads=8,
        new_decoder_architecture=True,
        vocab_size=65024,
        tie_word_embeddings=False,
    )
    check(RANK_SHAPES[3], config, rank=8)


def test_memory_of_weights() -> None:
    assert weight_bytes(8_000_000_000, 32) == 32e9
    assert weight_bytes(8_000_000_000, 8) == 8e9
    # 0.127 bits for the constants (Dettmers et al., 2023)
    assert weight_bytes(8_000_000_000, 4) == pytest.approx(4.127e9, rel=1e-4)


def test_loaded_model_keeps_what_is_not_quantized_in_16_bits() -> None:
    shape = MEMORY_SHAPES[0]
    assert loaded_bytes(shape, 16) == 2 * shape.parameters
    assert loaded_bytes(shape, 8) == shape.linear_parameters + 2 * shape.other
    assert shape.linear_parameters + shape.other == shape.parameters
    assert shape.other == 2 * 128_256 * 4096 + 65 * 4096


@pytest.mark.parametrize(
    ("size", "card"), [(1, 8), (7.2 * GB, 8), (7.21 * GB, 12), (20 * GB, 24), (72 * GB, 80), (73 * GB, None)]
)
def test_smallest_card_keeps_a_tenth_free(size: float, card: int | None) -> None:
    assert smallest_card(size) == card
