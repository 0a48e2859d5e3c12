"""The sizes of models of every family beside PEFT's own counts of real adapters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import DeepseekV3Config, GPT2Config, PretrainedConfig, RwkvConfig

from tests.architectures import ARCHITECTURES
from tests.trials import settings_for
from training.errors import UserError
from training.lora_arithmetic import Shape
from training.methods import attach, parameter_counts
from training.model_shape import shape_of
from training.paths import PROJECT, Folders
from training.skeleton import skeleton

QUERY_AND_VALUE = {
    "gpt2": {"c_attn"},
    "gpt-neox": {"query_key_value"},
    "falcon": {"query_key_value"},
    "bloom": {"query_key_value"},
    "mamba": set(),
}


def saved(folder: Path, config: PretrainedConfig) -> str:
    config.save_pretrained(folder)
    return str(folder)


def last_parts(shape: Shape) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in shape.query_and_value}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_counts_are_those_of_a_real_adapter(tmp_path: Path, family: str) -> None:
    source = saved(tmp_path, ARCHITECTURES[family])
    shape = shape_of(source, family)
    assert shape.name == family
    trained, total = parameter_counts(attach(skeleton(source), settings_for(lora_rank=8)))
    assert (shape.trainable(8), shape.parameters) == (trained, total - trained)
    few = last_parts(shape)
    assert few == QUERY_AND_VALUE.get(family, {"q_proj", "v_proj"})
    if few:
        settings = settings_for(lora_rank=8, target_modules=sorted(few))
        assert shape.trainable(8, shape.query_and_value) == parameter_counts(attach(skeleton(source), settings))[0]


def test_queries_and_values_that_are_pressed_together(tmp_path: Path) -> None:
    config = DeepseekV3Config(
        vocab_size=288,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        q_lora_rank=16,
        kv_lora_rank=16,
    )
    shape = shape_of(saved(tmp_path, config), "deepseek")
    assert last_parts(shape) == {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"}


def test_values_without_queries_are_no_attention(tmp_path: Path) -> None:
    config = RwkvConfig(vocab_size=288, hidden_size=64, num_hidden_layers=2)
    shape = shape_of(saved(tmp_path, config), "rwkv")
    assert shape.query_and_value == ()
    assert any(linear.name.endswith(".value") for linear in shape.linears)


def test_inputs_and_outputs_are_told_apart(tmp_path: Path) -> None:
    """GPT-2 keeps its weights the other way round than all others."""
    gpt2 = shape_of(saved(tmp_path / "gpt2", GPT2Config(n_embd=64, n_layer=1, n_head=4)), "gpt2")
    assert [(one.inputs, one.outputs) for one in gpt2.linears] == [(64, 192), (64, 64), (64, 256), (256, 64)]
    bloom = shape_of(saved(tmp_path / "bloom", ARCHITECTURES["bloom"]), "bloom")
    assert [(one.inputs, one.outputs) for one in bloom.linears][:4] == [(64, 192), (64, 64), (64, 256), (256, 64)]


def test_starter_has_as_many_numbers_as_its_file() -> None:
    folder = Folders().models / "starter"
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        sizes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - no dictionary
    expected = sum(size[0] * (size[1] if len(size) > 1 else 1) for size in sizes)
    assert shape_of(str(folder), "starter").parameters == expected


def test_it_is_read_again_only_when_the_config_changed(tmp_path: Path) -> None:
    source = saved(tmp_path, GPT2Config(n_embd=64, n_layer=1, n_head=4))
    first = shape_of(source, "one")
    assert shape_of(source, "one") is first
    saved(tmp_path, GPT2Config(n_embd=64, n_layer=2, n_head=4))
    os.utime(tmp_path / "config.json", (1, 1))
    assert len(shape_of(source, "one").linears) == 2 * len(first.linears)


def test_model_that_cannot_be_counted_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UserError, match="no causal language model"):
        shape_of(str(tmp_path), "t5")


def test_it_can_be_imported_while_another_thread_imports_transformers() -> None:
    """As when the Learn tab is opened while the Training tab still counts."""
    script = (
        "import sys, threading, torch, training.model_facts\n"
        "from training.libraries import load_libraries\n"
        "other = threading.Thread(target=lambda: __import__('transformers'))\n"
        "other.start()\n"
        "while 'transformers' not in sys.modules: pass\n"
        "load_libraries()\n"
        "import training.model_shape"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
