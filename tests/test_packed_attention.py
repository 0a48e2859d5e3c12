"""Attention inside each example of a packed row is that of each example alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, PretrainedConfig

from training import processor_attention
from training.packed_attention import CannotPackError, _attention, use_packed_attention
from training.packing import Masks, Packing, packed_as

_SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def queries_keys_values(tokens: int, heads: int, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    made = [torch.randn(1, tokens, n, 16, dtype=dtype).transpose(1, 2) for n in (heads, min(heads, 2), min(heads, 2))]
    return [tensor.detach().requires_grad_() for tensor in made]


def alone(tensors: list[torch.Tensor], packing: Packing, scale: float) -> torch.Tensor:
    """Each example by torch's own attention, and zeros behind them; (1, tokens, heads, size)."""
    outputs = [
        F.scaled_dot_product_attention(
            *(t[:, :, start : start + length] for t in tensors), is_causal=True, scale=scale, enable_gqa=True
        )
        for start, length in packing.spans()
    ]
    rest = tensors[0].shape[2] - sum(packing.lengths)
    return F.pad(torch.cat(outputs, dim=2), (0, 0, 0, rest)).transpose(1, 2)


@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("round_to", [1, 32])
@pytest.mark.parametrize(
    "lengths", [(37, 300, 5, 130), (1, 1), (128,), (129, 127), (256, 2), (290, 9, 300, 9, 31, 300, 9)]
)
@pytest.mark.parametrize("scores_at_once", [1, 2**30], ids=["one by one", "as many as can be"])
def test_result_and_gradient_are_those_of_each_example_alone(
    lengths: tuple[int, ...], round_to: int, heads: int, scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor_attention, "_SCORES_AT_ONCE", scores_at_once)
    processor_attention._by_length.cache_clear()
    packing = Packing(lengths, round_to)
    tensors = queries_keys_values(sum(lengths) + 40, heads, torch.float64)
    out, _ = _attention(torch.nn.Module(), *tensors, Masks(packing), scaling=0.3)
    expected = alone(tensors, packing, 0.3)
    torch.testing.assert_close(out, expected)
    direction = torch.randn_like(out)
    direction[:, sum(lengths) :] = 0  # what stands behind the examples reaches no loss
    given = direction.clone()
    torch.testing.assert_close(
        torch.autograd.grad(out, tensors, direction), torch.autograd.grad(expected, tensors, direction)
    )
    assert torch.equal(direction, given)


def test_what_stands_behind_the_examples_changes_nothing() -> None:
    packing = Packing((5, 9), 32)
    tensors = queries_keys_values(64, 4, torch.float32)
    out, _ = _attention(torch.nn.Module(), *tensors, Masks(packing))
    with torch.no_grad():
        for tensor in tensors:
            tensor[:, :, 14:] = 1e4
    again, _ = _attention(torch.nn.Module(), *tensors, Masks(packing))
    torch.testing.assert_close(out[:, :14], again[:, :14])
    assert not again[:, 14:].any()


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**_SIZE, num_hidden_layers=2, vocab_size=99),
        MistralConfig(**_SIZE, num_hidden_layers=2, vocab_size=99, sliding_window=7),
        Gemma3TextConfig(**_SIZE, num_hidden_layers=6, vocab_size=99, head_dim=16, sliding_window=4),
    ],
    ids=["plain", "window", "windows and whole by turns"],
)
def test_windows_slide_within_each_example(config: PretrainedConfig) -> None:
    """Examples are longer than the windows, which the short ones of a trial never are."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    texts = [torch.randint(0, 99, (1, n)) for n in (23, 3, 40, 23)]
    expected = torch.cat([model(text).logits for text in texts], dim=1)
    use_packed_attention(model)
    with packed_as(Packing((23, 3, 40, 23))):
        positions = torch.cat([torch.arange(text.shape[1]) for text in texts])[None]
        found = model(torch.cat(texts, dim=1), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(texts[2]).logits, expected[:, 26:66], atol=1e-5, rtol=0)  # unpacked as before


def test_dropout_leaves_out_but_does_not_mix() -> None:
    packing = Packing((6, 7))
    tensors = queries_keys_values(13, 4, torch.float32)
    with torch.no_grad():
        tensors[2][:, :, 6:] = 0.0  # the second example has nothing to say
    out, _ = _attention(torch.nn.Module(), *tensors, Masks(packing), dropout=0.5)
    assert not out[:, 6:].any() and out[:, :6].any()


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_what_it_does_not_do_is_refused(name: str) -> None:
    tensors = queries_keys_values(4, 4, torch.float32)
    with pytest.raises(CannotPackError, match=name):
        _attention(torch.nn.Module(), *tensors, Masks(Packing((4,))), **{name: 1.0})


def test_a_row_that_reaches_it_without_its_examples_is_refused() -> None:
    tensors = queries_keys_values(4, 4, torch.float32)
    with packed_as(Packing((2, 2))), pytest.raises(CannotPackError, match="tell examples apart"):
        _attention(torch.nn.Module(), *tensors, None)
