"""Singular values of real PEFT adapters, beside those of the whole product."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from tests.tiny import make_model
from training.adapter_spectrum import Spectrum, Update, spectrum, verdict
from training.errors import UserError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def trained(**options: Any) -> PeftModel:
    """A LoRA on the tiny model whose B is no longer zero."""
    lora = LoraConfig(
        **{"r": 6, "lora_alpha": 9, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | options
    )
    model = get_peft_model(make_model(300), lora)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            parameter.data = torch.randn_like(parameter) * torch.logspace(0, -2, parameter.shape[1])
    return model


def saved(folder: Path, **options: Any) -> tuple[Path, PeftModel]:
    model = trained(**options)
    model.save_pretrained(str(folder))
    return folder, model


def expected(model: PeftModel) -> dict[str, tuple[int, np.ndarray]]:
    """By module, the rank and the singular values of the update that PEFT itself puts together."""
    found = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            delta = module.get_delta_weight("default").detach().double().numpy()
            rank = module.r["default"]
            found[name] = (rank, np.linalg.svd(delta, compute_uv=False)[:rank])
    return found


def compare(found: Spectrum, model: PeftModel, relative: float = 1e-5) -> None:
    truth = expected(model)
    assert {update.module for update in found.updates} == set(truth)
    for update in found.updates:
        rank, values = truth[update.module]
        assert update.rank == rank
        np.testing.assert_allclose(update.values, values, rtol=relative, atol=relative * values[0])
        assert update.norm == pytest.approx(float(np.linalg.norm(values)), rel=relative)


def test_values_are_those_of_the_whole_product(tmp_path: Path) -> None:
    folder, model = saved(tmp_path)
    found = spectrum(folder)
    compare(found, model)
    assert [(update.layer, update.name) for update in found.updates] == [
        (0, "down_proj"),
        (0, "q_proj"),
        (1, "down_proj"),
        (1, "q_proj"),
    ]
    assert found.ranks == (6, 6)
    assert 1 < found.effective_rank < 6
    assert found.used_share == pytest.approx(found.effective_rank / 6)
    assert (found.is_dora, found.begun_as, found.whole_modules) == (False, "", ())


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 3, r".*\.1\.mlp\.down_proj": 12}, "alpha_pattern": {"layers.0.mlp.down_proj": 2}},
        {"target_modules": "all-linear", "r": 100},  # more than some layers have directions
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"lora_alpha": -3},
    ],
    ids=["rslora", "patterns", "high rank", "embeddings", "negative alpha"],
)
def test_scaling_and_ranks_are_those_of_each_module(tmp_path: Path, options: dict[str, Any]) -> None:
    folder, model = saved(tmp_path, **options)
    compare(spectrum(folder), model)


def test_modules_outside_the_blocks_have_no_layer(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path, target_modules=["q_proj", "lm_head"])
    assert [update.layer for update in spectrum(folder).updates] == [None, 0, 1]


def test_bfloat16_adapter(tmp_path: Path) -> None:
    folder, model = saved(tmp_path)
    save_file({name: one.bfloat16() for name, one in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    compare(spectrum(folder), model, relative=0.03)


def test_dora_other_beginnings_and_whole_modules_are_told(tmp_path: Path) -> None:
    folder, model = saved(tmp_path / "dora", use_dora=True)
    assert spectrum(folder).is_dora
    compare(spectrum(folder), model)
    assert spectrum(saved(tmp_path / "pissa", init_lora_weights="pissa_niter_2")[0]).begun_as == "pissa_niter_2"
    assert spectrum(saved(tmp_path / "gauss", init_lora_weights="gaussian")[0]).begun_as == ""
    assert spectrum(saved(tmp_path / "head", modules_to_save=["lm_head"])[0]).whole_modules == ("lm_head",)


def update(*values: float, rank: int | None = None) -> Update:
    return Update("layers.0.q_proj", 0, rank or len(values), values)


def test_effective_rank_of_known_values() -> None:
    """Roy and Vetterli: all equal gives their number, a single one gives 1."""
    assert update(2.0, 2.0, 2.0).effective_rank == pytest.approx(3)
    assert update(5.0, 0.0, 0.0).effective_rank == 1
    assert update(0.0, 0.0).effective_rank == 0
    assert update(3.0, 1.0).effective_rank == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert update(3.0, 4.0).norm == 5


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0] * 16, "Of rank 16, this LoRA uses about 16.0, which is nearly all of it"),
        ([1.0] * 10 + [0.0] * 6, "Of rank 16, this LoRA uses about 10.0: the rank suits"),
        ([1.0] * 5 + [0.0] * 11, "Of rank 16, this LoRA uses about 5.0: a lower rank, such as 8,"),
        ([1.0] + [0.0] * 15, "Of rank 16, this LoRA uses about 1.0: a lower rank, such as 1,"),
        ([0.0] * 16, "This LoRA changes nothing"),
    ],
)
def test_verdict(values: list[float], says: str) -> None:
    assert verdict(Spectrum((update(*values),), False, "", ())).startswith(says)


def test_files_are_read_again_only_when_they_changed(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path)
    first = spectrum(folder)
    assert spectrum(folder) is first
    values = load_file(folder / WEIGHTS)
    save_file({name: 2 * one if "lora_B" in name else one for name, one in values.items()}, folder / WEIGHTS)
    assert spectrum(folder).updates[0].norm == pytest.approx(2 * first.updates[0].norm)


def test_other_adapter_is_a_sentence(tmp_path: Path) -> None:
    get_peft_model(make_model(300), IA3Config(task_type="CAUSAL_LM")).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="an adapter of the kind IA3"):
        spectrum(tmp_path)


def _set(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def _replace(folder: Path, part: str, value: Any) -> None:
    """Put another tensor in the place of the first whose name has `part` in it."""
    values = load_file(folder / WEIGHTS)
    name = next(name for name in sorted(values) if part in name)
    save_file(values | {name: value(values[name])}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda f: (f / WEIGHTS).unlink(), "no finished adapter"),
        (lambda f: (f / CONFIG).unlink(), "no finished adapter"),
        (lambda f: (f / CONFIG).write_text("{"), f"{CONFIG} of .* is damaged"),
        (lambda f: (f / CONFIG).write_text("[1]"), f"{CONFIG} of .* is damaged"),
        (lambda f: _set(f, r="many"), f"{CONFIG} of .* is damaged"),
        (lambda f: _set(f, lora_alpha=math.nan), f"{CONFIG} of .* is damaged"),
        (lambda f: _set(f, rank_pattern={"(": 3}), "a pattern that cannot be read"),
        (lambda f: _set(f, target_parameters=["experts"]), "for each expert"),
        (lambda f: _set(f, r=5), "other sizes than rank 5"),
        (lambda f: (f / WEIGHTS).write_bytes(b"none"), "damaged .its file is not whole"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-8]), "damaged .its file is not whole"),
        (lambda f: save_file({"other": torch.ones(2)}, f / WEIGHTS), "holds no LoRA matrices"),
        (lambda f: _replace(f, "lora_A", lambda one: one[0]), "other sizes"),
        (lambda f: _replace(f, "lora_B", lambda one: one * math.nan), "not finite"),
    ],
)
def test_damaged_adapter_is_a_sentence(tmp_path: Path, break_it: Any, says: str) -> None:
    folder, _ = saved(tmp_path)
    break_it(folder)
    with pytest.raises(UserError, match=says):
        spectrum(folder)


def test_convolution_layer_is_not_called_damaged(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Conv1d(3, 8, 4))
    get_peft_model(layers, LoraConfig(r=2, target_modules=["0"])).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r"has a B and A on a convolution layer \(0\), which cannot be shown"):
        spectrum(tmp_path)
