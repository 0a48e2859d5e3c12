"""Layers are exchanged only where they stay the same, and come back as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.architectures import ARCHITECTURES
from training import faster_layers
from training.faster_layers import make_faster
from training.fused_layers import rms_norm
from training.modules import module_kinds

_IDS = torch.arange(3, 23)[None]


def adapted(config: PretrainedConfig, **options: object) -> PeftModel:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(copy.deepcopy(config)).requires_grad_(False)
    kinds = [kind.name for kind in module_kinds(base)]
    model = get_peft_model(base, LoraConfig(r=4, target_modules=kinds, **{"lora_dropout": 0.0} | options))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    assert isinstance(model, PeftModel)
    return model


def trial_of(model: nn.Module) -> Callable[[], object]:
    return lambda: model(_IDS, use_cache=False)


def forwards(model: nn.Module) -> dict[str, object]:
    return {name: vars(module)["forward"] for name, module in model.named_modules() if "forward" in vars(module)}


def test_queries_keys_and_values_are_computed_together_and_so_are_gate_and_up() -> None:
    model = adapted(ARCHITECTURES["llama"])
    exchanged = forwards_after(model)
    last = {name.rsplit(".", 1)[-1] for name in exchanged}
    assert last >= {"q_proj", "o_proj", "down_proj", "input_layernorm", "norm", "mlp", "self_attn"}
    layer = model.get_base_model().model.layers[0]
    calls = []
    hidden = torch.randn(1, 6, 64, requires_grad=True)
    for parts in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        owner = layer.self_attn if parts[0] == "q_proj" else layer.mlp
        calls.append({getattr(owner, part)(hidden).grad_fn for part in parts})
    assert [len(nodes) for nodes in calls] == [1, 1]


def forwards_after(model: PeftModel) -> dict[str, object]:
    make_faster(model.get_base_model(), trial_of(model))
    return forwards(model)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_result_and_gradients_stay_and_undo_leaves_no_trace(family: str) -> None:
    model = adapted(ARCHITECTURES[family]).train()
    before = forwards(model)
    expected = model(_IDS, use_cache=False).logits
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    exchanges = make_faster(model.get_base_model(), trial_of(model))
    found = model(_IDS, use_cache=False).logits
    assert len(forwards(model)) > len(before)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    for name, gradient in gradients.items():
        now = dict(model.named_parameters())[name].grad
        assert now is not None and (now - gradient).norm() <= 1e-5 * gradient.norm(), name
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    exchanges.undo()
    assert forwards(model) == before
    assert torch.equal(model(_IDS, use_cache=False).logits, expected)


def test_a_model_beside_it_keeps_its_own_layers() -> None:
    one, other = (adapted(ARCHITECTURES["llama"]) for _ in range(2))
    expected = other(_IDS).logits
    make_faster(one.get_base_model(), trial_of(one))
    assert torch.equal(other(_IDS).logits, expected) and not forwards(other)


def test_norms_that_compute_otherwise_are_left_alone() -> None:
    """Gemma's multiplies by one more than its weight."""
    config = Gemma3TextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=99,
    )
    assert not [name for name in forwards_after(adapted(config)) if "norm" in name]


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_bias": True}, {"use_qalora": False, "lora_dropout": 0.1}]
)
def test_adapters_of_other_kinds_stay_peft_s(options: dict[str, object]) -> None:
    model = adapted(
        LlamaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64),
        **options,
    )
    with_dropout = "lora_dropout" in options
    assert any("q_proj" in name for name in forwards_after(model)) is with_dropout


def test_an_adapter_that_is_turned_off_is_off() -> None:
    model = adapted(ARCHITECTURES["llama"]).eval()
    with model.disable_adapter():
        expected = model(_IDS).logits
    make_faster(model.get_base_model(), trial_of(model))
    with model.disable_adapter():
        torch.testing.assert_close(model(_IDS).logits, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(model(_IDS).logits, expected, atol=1e-3)


class Gated(nn.Module):
    """A norm that is called with a gate, as those of state-space models are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.variance_epsilon = 1e-6

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        x = x if gate is None else x * nn.functional.silu(gate)
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class Careful(nn.Module):
    """A feed-forward layer that differs from others in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8) for _ in range(3))
        self.act_fn = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(nn.functional.dropout(inner, 0.5, self.training))


@pytest.mark.parametrize("module", [Gated(), Careful()], ids=["gated norm", "dropout behind the gate"])
def test_layers_that_do_more_are_left_alone(module: nn.Module) -> None:
    make_faster(nn.Sequential(module).eval(), lambda: None)
    assert not forwards(module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_in_short_types_are_as_exact_as_the_plain_ones(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = LlamaRMSNorm(64, 1e-6)
    x = (300 * torch.randn(50, 64)).requires_grad_()
    direction = 100 * torch.randn(50, 64)
    (expected,) = torch.autograd.grad(plain(x), x, direction)
    short = x.detach().to(dtype).requires_grad_()
    weight = plain.weight.to(dtype)
    errors = []
    for out in (plain.to(dtype)(short), rms_norm(short, weight, 1e-6)):
        (found,) = torch.autograd.grad(out, short, direction.to(dtype))
        errors.append(float((found.float() - expected).norm() / expected.norm()))
    assert errors[1] <= 1.5 * errors[0]


def test_sixteen_bits_take_the_faster_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states are short there already, before autocast looks at them."""
    model = adapted(ARCHITECTURES["llama"])
    for parameter in model.parameters():
        parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()
    calls = []
    outputs = faster_layers.lora_outputs
    monkeypatch.setattr(faster_layers, "lora_outputs", lambda *a: calls.append(len(a[1])) or outputs(*a))
    with torch.autocast("cpu", torch.bfloat16):
        make_faster(model.get_base_model(), trial_of(model))
        calls.clear()
        model(_IDS)
    assert calls == [3, 1, 2, 1] * 2  # queries, keys and values; output; gate and up; down; in each of two layers
    calls.clear()
    model(_IDS)  # without autocast the types do not fit
    assert not calls
