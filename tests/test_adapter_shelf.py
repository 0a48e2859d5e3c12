"""Adapters go on and off one base model: what comes out is what a fresh load gives, and the base is as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import make_model, make_tokenizer
from training.adapter_shelf import AdapterShelf, changes_base
from training.answer_lora import LoraForAnswers
from training.model import load_adapter, load_base
from training.settings import Precision, Settings

IDS = torch.arange(5, 25)[None]
ALL = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}
KINDS: dict[str, Callable[[], PeftConfig]] = {
    "LoRA": lambda: LoraConfig(r=4, init_lora_weights=False, **ALL),
    "rsLoRA": lambda: LoraConfig(
        r=4, lora_alpha=2, use_rslora=True, rank_pattern={"q_proj": 8}, init_lora_weights=False, **ALL
    ),
    "DoRA": lambda: LoraConfig(r=4, use_dora=True, init_lora_weights=False, **ALL),
    "embeddings": lambda: LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], init_lora_weights=False),
    "head": lambda: LoraConfig(r=4, modules_to_save=["lm_head"], init_lora_weights=False, **ALL),
    "all of it": lambda: LoraConfig(r=4, modules_to_save=["embed_tokens", "lm_head"], init_lora_weights=False, **ALL),
    "IA3": lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoHa": lambda: LoHaConfig(r=4, init_weights=False, **ALL),
    "LoKr": lambda: LoKrConfig(r=4, init_weights=False, **ALL),
    "VeRA": lambda: VeraConfig(r=16, init_weights=False, target_modules=["q_proj", "k_proj"]),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny base model on the disk."""
    folder = tmp_path_factory.mktemp("shelf") / "tiny"
    make_model(len(tokenizer)).save_pretrained(str(folder))
    return folder


def fresh(source: Path, precision: Precision = "32-bit") -> PreTrainedModel:
    return load_base(str(source), Settings(precision=precision)).eval()


def save(source: Path, folder: Path, config: PeftConfig, seed: int = 1) -> tuple[Path, int]:
    """An adapter of that kind with random weights, as a training leaves it."""
    torch.manual_seed(seed)
    model = get_peft_model(fresh(source), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder, folder.stat().st_mtime_ns


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=IDS).logits
    return out[:, -IDS.shape[1] :]  # without those of virtual tokens


def state(base: PreTrainedModel) -> dict[str, Any]:
    """All of the base: its modules by class, and its weights."""
    kinds = {name: type(module).__name__ for name, module in base.named_modules()}
    return {**kinds, **{f"{name} weights": weights.clone() for name, weights in base.state_dict().items()}}


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name], name


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_again(tmp_path: Path, source: Path, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    key = save(source, tmp_path / "a", KINDS[kind]())
    other = save(source, tmp_path / "b", KINDS["LoRA"](), seed=2)
    expected = logits(PeftModel.from_pretrained(fresh(source), str(key[0])).eval())
    base = fresh(source)
    before, alone = state(base), logits(base)
    shelf = AdapterShelf(base)
    first = logits(shelf.wear(key, tokenizer))
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(first, alone, atol=0.1)
    for_other = logits(shelf.wear(other, tokenizer))
    assert torch.equal(logits(shelf.wear(key, tokenizer)), first)
    assert torch.equal(logits(shelf.wear(other, tokenizer)), for_other)
    assert torch.equal(logits(shelf.wear(None, tokenizer)), alone)
    assert_same(before, state(base))
    assert "peft_config" not in vars(base), "PEFT would take the next adapter for an addition to this one"
    torch.testing.assert_close(
        for_other, logits(PeftModel.from_pretrained(fresh(source), str(other[0])).eval()), rtol=1e-5, atol=1e-4
    )


def test_trained_modules_go_on_and_off_where_embeddings_are_the_head(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tied = make_model(len(tokenizer))
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(str(tmp_path / "tied"))
    key = save(tmp_path / "tied", tmp_path / "a", KINDS["all of it"]())
    base = fresh(tmp_path / "tied")
    before, alone = state(base), logits(base)
    shelf = AdapterShelf(base)
    expected = logits(PeftModel.from_pretrained(fresh(tmp_path / "tied"), str(key[0])).eval())
    torch.testing.assert_close(logits(shelf.wear(key, tokenizer)), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(shelf.wear(None, tokenizer)), alone)
    assert_same(before, state(base))
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight


@pytest.mark.parametrize("precision", ["8-bit", "4-bit"])
@pytest.mark.parametrize("kind", ["LoRA", "IA3"])
def test_a_quantized_base_is_as_it_was(
    tmp_path: Path,
    source: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    kind: str,
) -> None:
    monkeypatch.setattr("training.model.compute_dtype", lambda _: torch.float32)  # the same on every processor
    key = save(source, tmp_path / "a", KINDS[kind]())
    base = fresh(source, precision)
    alone = logits(base)
    shelf = AdapterShelf(base)
    worn = logits(shelf.wear(key, tokenizer))
    expected = logits(load_adapter(fresh(source, precision), key[0]).eval())
    torch.testing.assert_close(worn, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(shelf.wear(None, tokenizer)), alone)
    assert torch.equal(logits(shelf.wear(key, tokenizer)), worn)


def test_an_adapter_for_which_the_base_is_widened_stays_on_it(
    tmp_path: Path, source: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT's IA3 layers for quantized weights need the rest of the base in 32 bits."""
    monkeypatch.setattr("training.model.compute_dtype", lambda _: torch.bfloat16)
    key = save(source, tmp_path / "a", KINDS["IA3"]())
    shelf = AdapterShelf(fresh(source, "4-bit"))
    assert shelf.can_wear(None)
    shelf.wear(key, tokenizer)
    assert shelf.can_wear(key) and not shelf.can_wear(None)


def test_it_is_read_once_and_wears_layers_for_answers(
    tmp_path: Path, source: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [save(source, tmp_path / name, KINDS["LoRA"](), seed) for seed, name in enumerate("ab")]
    shelf = AdapterShelf(fresh(source))
    for key in keys:
        assert not shelf.has(key)
        shelf.wear(key, tokenizer)
        assert shelf.has(key)
    monkeypatch.setattr("training.model.load_adapter", lambda *_: pytest.fail("it was read again"))
    for key in (keys[0], None, keys[1], keys[1]):
        model = shelf.wear(key, tokenizer)
    assert sum(isinstance(module, LoraForAnswers) for module in model.modules()) == 14
    assert model is shelf.base


def test_all_answer_with_one_copy_of_the_weights(
    tmp_path: Path, source: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    keys = [save(source, tmp_path / name, KINDS["LoRA"](), seed) for seed, name in enumerate("ab")]
    shelf = AdapterShelf(fresh(source))
    places = {weight.data_ptr() for weight in shelf.base.parameters()}
    for key in (*keys, None):
        model = shelf.wear(key, tokenizer)
        large = {weight.data_ptr() for weight in model.parameters()}
        assert large == places, key


def test_an_adapter_that_was_not_worn_for_long_makes_room(
    tmp_path: Path, source: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    few = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    keys = [save(source, tmp_path / str(seed), few, seed) for seed in range(5)]
    shelf = AdapterShelf(fresh(source))
    for key in keys[:4]:
        shelf.wear(key, tokenizer)
    shelf.wear(keys[0], tokenizer)
    shelf.wear(keys[4], tokenizer)
    assert [shelf.has(key) for key in keys] == [True, False, True, True, True]
    assert shelf.clear() and not shelf.has(keys[0]) and shelf.has(keys[4])
    assert not shelf.clear()


def test_large_adapters_are_not_kept_beside_each_other(
    tmp_path: Path, source: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    large = LoraConfig(r=32, target_modules="all-linear", init_lora_weights=False)
    keys = [save(source, tmp_path / str(seed), large, seed) for seed in range(2)]
    shelf = AdapterShelf(fresh(source))
    for key in keys:
        shelf.wear(key, tokenizer)
    assert not shelf.has(keys[0]) and shelf.has(keys[1])


def test_one_trained_again_under_its_name_is_another(
    tmp_path: Path, source: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    folder, written = save(source, tmp_path / "a", KINDS["LoRA"]())
    shelf = AdapterShelf(fresh(source))
    before = logits(shelf.wear((folder, written), tokenizer))
    save(source, folder, KINDS["LoRA"](), seed=2)
    after = logits(shelf.wear((folder, written + 1), tokenizer))
    assert not torch.allclose(before, after)
    assert not shelf.has((folder, written))


@pytest.mark.parametrize(
    "config", [LoraConfig(r=4, init_lora_weights="pissa", **ALL), LoraConfig(r=4, bias="all", **ALL)]
)
def test_what_changes_the_base_stays_on_it(
    tmp_path: Path, source: Path, tokenizer: PreTrainedTokenizerFast, config: LoraConfig
) -> None:
    key = save(source, tmp_path / "a", config)
    other = save(source, tmp_path / "b", KINDS["LoRA"]())
    expected = logits(PeftModel.from_pretrained(fresh(source), str(key[0])).eval())
    shelf = AdapterShelf(fresh(source))
    shelf.wear(other, tokenizer)
    assert shelf.can_wear(key)
    assert torch.equal(logits(shelf.wear(key, tokenizer)), expected)
    assert shelf.can_wear(key) and not shelf.can_wear(other) and not shelf.can_wear(None)


def test_which_beginnings_change_the_base() -> None:
    for beginning in (True, False, "gaussian", "eva", "orthogonal"):
        assert not changes_base(LoraConfig(init_lora_weights=beginning)), beginning
    for beginning in ("pissa", "pissa_niter_4", "olora"):
        assert changes_base(LoraConfig(init_lora_weights=beginning)), beginning
    assert changes_base(LoraConfig(bias="lora_only"))
    assert not changes_base(IA3Config()) and not changes_base(PrefixTuningConfig(num_virtual_tokens=2))
