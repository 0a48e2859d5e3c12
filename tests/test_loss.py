"""Packed rows give the loss and the gradient of padded ones; what cannot be packed is padded, and says why."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, Lfm2Config, PretrainedConfig, PreTrainedModel

from tests.architectures import ARCHITECTURES
from tests.trials import save_base, settings_for, train, working_folders
from training import model as models
from training.batches import pad
from training.events import Note
from training.loss import ExampleLoss
from training.modules import module_kinds
from training.noise import add_noise
from training.prepared import IGNORED, Example
from training.receipt import last_receipt
from training.runs import EventReader

_LENGTHS = (9, 40, 3, 21, 2, 33, 100, 14)
_PADDED = ("bloom", "falcon", "mamba")  # positions from the padding mask, attention of its own, a state


def examples_for(config: PretrainedConfig, lengths: Sequence[int] = _LENGTHS) -> list[Example]:
    """Random tokens; a first part is not trained, as a prompt is not."""
    chance = random.Random(0)
    made = []
    for length in lengths:
        ids = [chance.randrange(config.vocab_size) for _ in range(length)]
        prompt = chance.randrange(length)
        made.append(Example(ids, [IGNORED] * prompt + ids[prompt:], ""))
    return made


def adapted(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> PeftModel:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(copy.deepcopy(config)).to(dtype).requires_grad_(False)
    return with_lora(base)


def with_lora(base: PreTrainedModel) -> PeftModel:
    """On all linear layers, as if it had learnt something already."""
    kinds = [kind.name for kind in module_kinds(base)]
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=kinds))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    assert isinstance(model, PeftModel)
    return model


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def plain_loss(model: torch.nn.Module, examples: Sequence[Example]) -> torch.Tensor:
    """As any trainer computes it: padded, with all logits."""
    rows = pad(examples, 0, torch.device("cpu"))
    logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits
    longest = rows.input_ids.shape[1]
    labels = torch.tensor([e.labels + [IGNORED] * (longest - len(e.labels)) for e in examples])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum")


def accumulated(loss: ExampleLoss, examples: Sequence[Example], micro_batches: int) -> float:
    """The loss of all, computed and sent back in so many parts."""
    total, size = 0.0, len(examples) // micro_batches
    for first in range(0, len(examples), size):
        part = loss.of(examples[first : first + size])
        if part.requires_grad:
            part.backward()
        total += part.item()
    return total


def compare(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], relative: float) -> None:
    assert expected.keys() == found.keys() and expected
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= relative * gradient.norm(), name


@pytest.mark.parametrize("micro_batches", [1, 8])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_loss_and_gradient_are_those_of_padded_rows(family: str, micro_batches: int) -> None:
    config = ARCHITECTURES[family]
    model = adapted(config).train()
    examples = examples_for(config)
    expected_loss = plain_loss(model, examples)
    expected_loss.backward()
    expected = gradients(model)
    loss = ExampleLoss(model, 0)
    assert bool(loss.why_padded) == (family in _PADDED), loss.why_padded
    total = accumulated(loss, examples, micro_batches)
    assert total == pytest.approx(expected_loss.item(), rel=1e-6)
    compare(expected, gradients(model), 1e-5)


@pytest.mark.parametrize("micro_batches", [1, 8])
@pytest.mark.parametrize("precision", ["4-bit", "8-bit"])
def test_loss_and_gradient_on_quantized_weights(tmp_path: Path, precision: str, micro_batches: int) -> None:
    """Computed in 32 bits on the quantized weights, whose own products are the same in both ways."""
    folders = working_folders(tmp_path)
    save_base(folders, "llama", ARCHITECTURES["llama"])
    with patch.object(models, "compute_dtype", lambda _: torch.float32):
        base = models.load_base(str(folders.models / "llama"), settings_for(precision=precision))
    model = with_lora(base).train()
    examples = examples_for(ARCHITECTURES["llama"])
    expected = plain_loss(model, examples)
    expected.backward()
    of_padded = gradients(model)
    loss = ExampleLoss(model, 0)
    assert not loss.why_padded
    total = accumulated(loss, examples, micro_batches)
    # In 8 bits inputs are rounded too, where the last bit of a sum may decide.
    relative = 1e-5 if precision == "4-bit" else 2e-2
    assert total == pytest.approx(expected.item(), rel=relative)
    compare(of_padded, gradients(model), relative)


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "mamba"])
def test_loss_in_16_bits_is_that_of_32_but_for_rounding(family: str) -> None:
    config = ARCHITECTURES[family]
    examples = examples_for(config)
    expected = plain_loss(adapted(config).train(), examples)
    expected.backward()
    model = adapted(config, dtype=torch.bfloat16).train()
    loss = ExampleLoss(model, 0, torch.bfloat16)
    total = loss.of(examples)
    total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=2e-3)
    assert loss.round_to == 32


def test_trained_head_and_embeddings_get_their_gradients() -> None:
    for family in ("llama", "gemma"):  # the second has one matrix for both
        model = adapted(ARCHITECTURES[family]).get_base_model().requires_grad_(True).train()
        examples = examples_for(ARCHITECTURES[family])
        plain_loss(model, examples).backward()
        expected = gradients(model)
        ExampleLoss(model, 0).of(examples).backward()
        compare(expected, gradients(model), 1e-5)


def test_methods_that_put_tokens_before_each_example_are_padded() -> None:
    base = AutoModelForCausalLM.from_config(copy.deepcopy(ARCHITECTURES["llama"]))
    model = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    loss = ExampleLoss(model, 0)
    assert "tokens of its own" in loss.why_padded
    examples = examples_for(ARCHITECTURES["llama"])
    model.train()
    loss.of(examples).backward()
    assert all(gradient.any() for gradient in gradients(model).values())


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_no_logits_are_made_where_nothing_is_trained(family: str) -> None:
    """Not for prompts, whose last token alone speaks of an answer, and never for all of an example at once."""
    config = ARCHITECTURES[family]
    model = adapted(config)
    loss = ExampleLoss(model, 0)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0].shape[-2]))
    ids = list(range(50))
    loss.of([Example(ids, [IGNORED] * 44 + ids[44:], "") for _ in range(3)])
    assert sum(seen) == 3 * 6


def test_noise_goes_by_the_length_of_each_example() -> None:
    model = adapted(ARCHITECTURES["llama"]).train()
    add_noise(model, 5.0)
    loss = ExampleLoss(model, 0)
    seen = []
    model.get_base_model().model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    short, long = Example([7] * 4, [7] * 4, ""), Example([7] * 100, [7] * 100, "")
    for examples in ([short, long], [short], [long]):
        loss.of(examples)
    plain = model.get_input_embeddings().weight[7]
    packed, first, second = ((hidden[0] - plain).abs() for hidden in seen)
    for noise, tokens in ((packed[:4], 4), (packed[4:], 100), (first, 4), (second, 100)):
        most = 5.0 / (tokens * plain.numel()) ** 0.5
        assert 0.9 * most < noise.max() <= 1.0001 * most


@pytest.mark.parametrize(("family", "word"), [("llama", ""), ("mamba", "where an example begins")])
def test_receipt_and_reader_are_told_of_padding(tmp_path: Path, family: str, word: str) -> None:
    folders = working_folders(tmp_path)
    save_base(folders, family, ARCHITECTURES[family])
    run = train(folders, settings_for(base_model=family, epochs=1)).run
    receipt = last_receipt(run)
    assert receipt is not None and bool(receipt.padded_because) == bool(word) and word in receipt.padded_because
    notes = [e.text for e in EventReader(run).read_new() if isinstance(e, Note) and "padded" in e.text]
    assert len(notes) == bool(word) and all(word in note for note in notes)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_little_leaking_between_examples_is_found_in_short_types_too(compute: torch.dtype) -> None:
    """Short convolutions look back over the border of an example, at next to nothing in a fresh model."""
    config = Lfm2Config(
        vocab_size=288, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(compute)
    assert ExampleLoss(model, 0, compute).why_padded


def test_full_training_in_sixteen_bits_is_not_padded() -> None:
    """Its weights and hidden states are in 32 bits, and computed in 16."""
    model = AutoModelForCausalLM.from_config(copy.deepcopy(ARCHITECTURES["llama"]))
    assert not ExampleLoss(model, 0, torch.bfloat16).why_padded


def test_layers_before_the_first_adapter_keep_nothing() -> None:
    base = AutoModelForCausalLM.from_config(copy.deepcopy(ARCHITECTURES["llama"]))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1])).train()
    loss = ExampleLoss(model, 0)
    seen = []
    for layer in base.model.layers:
        layer.register_forward_hook(lambda _, __, out: seen.append(out.requires_grad))
    loss.of(examples_for(ARCHITECTURES["llama"])).backward()
    assert seen == [False, True]
