"""What a step keeps can wait elsewhere: the gradients stay what they were, and weights stay where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

from tests.architectures import ARCHITECTURES
from tests.tiny import make_model, make_settings
from training import offload
from training.loss import ExampleLoss
from training.methods import TrainableModel, attach
from training.offload import offload_activations
from training.prepared import Example

EXAMPLES = [Example([5 + (7 * n + i) % 90 for i in range(n)], list(range(n)), "") for n in (30, 17)]


def model_of(family: str, **changes: Any) -> TrainableModel:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(ARCHITECTURES[family])
    if changes.pop("checkpointed", False):
        base.activation_checkpointing_enable()
    base.requires_grad_(False)
    model = attach(base, make_settings(lora_dropout=0, **changes))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def gradients(model: TrainableModel, compute: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    ExampleLoss(model, 0, compute).of(EXAMPLES).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("llama", {"method": "full fine-tuning"}),
        ("llama", {"method": "prompt tuning"}),
        ("llama", {"checkpointed": True}),
    ],
    ids=str,
)
def test_gradients_are_the_same(
    monkeypatch: pytest.MonkeyPatch, family: str, changes: dict[str, Any], compute: torch.dtype
) -> None:
    """With torch's own store, which on a processor copies from main memory into main memory."""
    monkeypatch.setattr(offload, "_WORTH_IT", 1)
    expected = gradients(model_of(family, **changes), compute)
    model = model_of(family, **changes)
    offload_activations(model)
    found = gradients(model, compute)
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_weights_and_small_tensors_stay_and_all_else_is_put_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "_WORTH_IT", 1000)
    model = model_of("llama")
    own = {id(p.untyped_storage()) for p in model.parameters()}
    away: list[torch.Tensor] = []
    back: list[torch.Tensor] = []

    def put(tensor: torch.Tensor) -> list[torch.Tensor]:
        assert id(tensor.untyped_storage()) not in own and tensor.nbytes >= 1000
        away.append(tensor)
        return [tensor.clone()]

    def take(kept: list[torch.Tensor]) -> torch.Tensor:
        back.append(kept[0])
        return kept[0]

    offload_activations(model, saved_tensors_hooks(put, take))
    loss = ExampleLoss(model, 0).of(EXAMPLES)
    assert len(away) >= 2 * model.config.num_hidden_layers and not back
    # Logits are made and used up a chunk at a time: they never wait.
    assert model.config.vocab_size not in {size for tensor in away for size in tensor.shape}
    loss.backward()
    assert len(back) == len(away)


def test_nothing_is_put_away_after_an_error_or_without_gradients() -> None:
    def refuse(_: torch.Tensor) -> None:
        raise AssertionError("put away")

    model = make_model(300)
    offload_activations(model, saved_tensors_hooks(refuse, lambda kept: kept))
    with torch.no_grad():
        model(input_ids=torch.arange(9)[None])
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[10_000]]))
    x = torch.ones(2**20, requires_grad=True)
    (x * x).sum().backward()  # outside the model: the hooks are gone
    assert x.grad is not None
