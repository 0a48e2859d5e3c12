"""Training on from an earlier adapter: it begins as what it was, at its rank or another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from tests.architectures import ARCHITECTURES
from tests.plain_load import logits_of
from tests.trials import IDS, Trial, save_base, settings_for, train, working_folders
from training.earlier import continue_adapter, earlier_adapter, tokenizer_folder
from training.errors import UserError
from training.events import Note
from training.model import load_base, load_tokenizer
from training.paths import Folders
from training.runs import EventReader
from training.settings import Settings

WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"rank_stabilized": True},
    "DoRA": {"dora": True},
    "one layer": {"layer_range": "1"},
    "pattern": {"target_pattern": r".*\.mlp\..*_proj"},
    "PiSSA": {"initialization": "PiSSA"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    made = working_folders(tmp_path_factory.mktemp("earlier"))
    for family in ("llama", "gpt2"):
        save_base(made, family, ARCHITECTURES[family])
    return made


@pytest.fixture(scope="module")
def trials(folders: Folders) -> dict[str, Trial]:
    """A finished training of each way, of rank 8 (PiSSA is saved with 16) and alpha 16."""
    return {way: train(folders, earlier_settings(way)) for way in WAYS}


def earlier_settings(way: str) -> Settings:
    return settings_for(base_model="llama", name=way.replace(" ", "-"), lora_rank=8, lora_alpha=16, **WAYS[way])


def continued(folders: Folders, trial: Trial, **changes: Any) -> tuple[PeftModel, list[str]]:
    """The trial's adapter on a fresh base, as a training that continues it begins with."""
    settings = trial.settings.model_copy(
        update={"start_from": trial.run.name, "initialization": "default", "seed": 7} | changes
    )
    model, notes = continue_adapter(base(folders, settings), earlier_adapter(folders, settings), settings)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    return model, notes


def base(folders: Folders, settings: Settings) -> PreTrainedModel:
    return load_base(str(folders.models / settings.base_model), settings)


def layers(model: torch.nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5, rtol=0)


# Its rank and alpha


@pytest.mark.parametrize("way", WAYS)
def test_same_rank_begins_as_the_adapter_ended(folders: Folders, trials: dict[str, Trial], way: str) -> None:
    rank = 16 if way == "PiSSA" else 8
    model, notes = continued(folders, trials[way], lora_rank=rank, lora_alpha=32 if way == "PiSSA" else 16)
    assert same(logits_of(model, IDS), trials[way].logits())
    assert notes == []
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "changes",
    [
        {"lora_rank": 24, "lora_alpha": 16},
        {"lora_rank": 24, "lora_alpha": 48},
        {"lora_rank": 16, "lora_alpha": 5},
        {"lora_rank": 16, "lora_alpha": 7, "rank_stabilized": True},
        {"lora_rank": 20, "lora_alpha": 7, "rank_pattern": "up_proj=32", "alpha_pattern": "up_proj=3"},
    ],
)
def test_more_rank_or_other_alpha_is_the_same_function(
    folders: Folders, trials: dict[str, Trial], way: str, changes: dict[str, Any]
) -> None:
    model, notes = continued(folders, trials[way], **changes)
    assert same(logits_of(model, IDS), trials[way].logits())
    its = 16 if way == "PiSSA" else 8
    (note,) = notes
    assert note.startswith(f"The earlier LoRA of rank {its} and alpha ")
    assert note.endswith(f"is continued at rank {changes['lora_rank']} and alpha {changes['lora_alpha']}.")
    assert {layer.r["default"] for layer in layers(model).values()} <= {changes["lora_rank"], 32}
    assert layers(model).keys() == layers(trials[way].model).keys()


def test_further_rows_can_learn(folders: Folders, trials: dict[str, Trial]) -> None:
    model, _ = continued(folders, trials["LoRA"], lora_rank=24)
    for layer in layers(model).values():
        assert layer.lora_A["default"].weight[8:].norm(dim=1).min() > 0
        assert not layer.lora_B["default"].weight[:, 8:].any()


@pytest.mark.parametrize("way", ["LoRA", "rsLoRA", "DoRA", "one layer"])
@pytest.mark.parametrize("rank", [1, 3])
def test_lower_rank_is_the_best_that_rank_can_do(
    folders: Folders, trials: dict[str, Trial], way: str, rank: int
) -> None:
    model, notes = continued(folders, trials[way], lora_rank=rank, lora_alpha=11)
    before, after = layers(trials[way].model), layers(model)
    assert before.keys() == after.keys() and notes
    for name, layer in after.items():
        update, kept = (product(one).detach() for one in (before[name], layer))
        u, values, v = torch.linalg.svd(update)
        best = u[:, :rank] * values[:rank] @ v[:rank]
        torch.testing.assert_close(kept, best, atol=1e-5, rtol=1e-3)
        assert values[rank] > 1e-4  # so that something is lost
        if way == "DoRA":
            lengths = (one.lora_magnitude_vector["default"].weight for one in (before[name], layer))
            assert torch.equal(*lengths)


def product(layer: LoraLayer) -> torch.Tensor:
    return layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]


# Whole trainings


def test_training_goes_on_from_where_the_adapter_was(folders: Folders, trials: dict[str, Trial]) -> None:
    trial = train(folders, earlier_settings("LoRA").model_copy(update={"name": "more", "start_from": "LoRA"}))
    assert trial.losses[0] < trials["LoRA"].losses[2]
    assert trial.losses[2] < trial.losses[0]
    notes = [event.text for event in EventReader(trial.run).read_new() if isinstance(event, Note)]
    assert not any("continued at rank" in note for note in notes)
    smaller = train(
        folders, earlier_settings("LoRA").model_copy(update={"name": "less", "start_from": "LoRA", "lora_rank": 2})
    )
    notes = [event.text for event in EventReader(smaller.run).read_new() if isinstance(event, Note)]
    assert any("of rank 8 and alpha 16 is continued at rank 2 and alpha 16" in note for note in notes)


def test_a_checkpoint_is_branched_from(folders: Folders) -> None:
    settings = settings_for(base_model="llama", name="branch", save_every=1, keep_last=0)
    trial = train(folders, settings)
    first = trial.run.checkpoints()[0].folder
    settings = settings.model_copy(update={"start_from": "branch/checkpoint-1"})
    assert earlier_adapter(folders, settings) == first
    assert tokenizer_folder(first) == trial.run.folder
    model, notes = continue_adapter(base(folders, settings), first, settings)
    assert notes == [] and not same(logits_of(model, IDS), trial.logits())
    again = train(folders, settings.model_copy(update={"name": "twig", "epochs": 1}))
    assert again.losses == [pytest.approx(trial.losses[1], abs=1e-6)]


@pytest.mark.parametrize("method", ["VeRA", "LoHa", "LoKr", "IA3", "prefix tuning", "prompt tuning"])
def test_other_methods_are_continued_as_they_are(folders: Folders, method: str) -> None:
    rate = 0.1 if "tuning" in method else 1e-2
    trial = train(folders, settings_for(base_model="llama", name="other", method=method, learning_rate=rate))
    model, notes = continued(folders, trial)
    assert notes == [] and same(logits_of(model, IDS), trial.logits())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(trial.trained())


def test_what_an_earlier_adapter_keeps_is_said(folders: Folders, trials: dict[str, Trial]) -> None:
    _, notes = continued(folders, trials["LoRA"], target_modules=["q_proj"], dora=True, layer_range="0")
    assert notes == [
        "The earlier LoRA keeps its own modules and layers and DoRA, which the settings cannot change any more."
    ]
    trial = train(folders, settings_for(base_model="llama", name="hada", method="LoHa", lora_rank=2))
    model, notes = continued(folders, trial, lora_rank=8)
    assert notes == ["The earlier adapter keeps its own rank, which the settings cannot change any more."]
    assert same(logits_of(model, IDS), trial.logits())
    trial = train(folders, settings_for(base_model="llama", name="prompt", method="prompt tuning", virtual_tokens=3))
    with pytest.raises(UserError, match="has 3 virtual tokens: set as many"):
        continued(folders, trial, virtual_tokens=8)
    model, notes = continued(folders, trial)
    assert not notes and same(logits_of(model, IDS), trial.logits())


def test_new_tokens_of_the_earlier_adapter_stay(folders: Folders) -> None:
    changes: dict[str, Any] = {"base_model": "llama", "learning_rate": 1e-3}
    tokens = ["<one>", "<two>", *(f"<{n}>" for n in range(40))]
    trial = train(folders, settings_for(name="tokens", new_tokens=tokens, **changes))
    settings = settings_for(name="more-tokens", start_from="tokens", epochs=1, **changes)
    again = train(folders, settings)
    assert again.losses[0] < trial.losses[2]
    assert all(torch.equal(weight, trial.trained()[name]) for name, weight in again.at_start.items())
    ids = [load_tokenizer(str(one.run.folder)).convert_tokens_to_ids(tokens) for one in (trial, again)]
    assert ids[0] == ids[1] and len(set(ids[0])) == 42


# What cannot be


def test_another_method(folders: Folders, trials: dict[str, Trial]) -> None:
    with pytest.raises(UserError, match=r"LoRA.* not IA3: choose its method"):
        continued(folders, trials["LoRA"], method="IA3")


def test_p_tuning_cannot_be_continued(folders: Folders) -> None:
    trial = train(folders, settings_for(base_model="llama", name="p", method="P-tuning"))
    with pytest.raises(UserError, match="only the virtual tokens are saved, not what makes them"):
        continued(folders, trial)


def test_trained_fully_keeps_its_rank(folders: Folders) -> None:
    trial = train(folders, settings_for(base_model="llama", name="head", train_fully=["lm_head"]))
    model, _ = continued(folders, trial)
    assert same(logits_of(model, IDS), trial.logits())
    with pytest.raises(UserError, match="also trains lm_head, so keep its rank and alpha"):
        continued(folders, trial, lora_rank=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_from": "nothing"}, "There is no LoRA called 'nothing'"),
        ({"start_from": "LoRA/checkpoint-99"}, "has no checkpoint of step 99"),
        ({"start_from": "LoRA/worker.log"}, "'worker.log' is no checkpoint: write it like my-lora/checkpoint-40"),
        ({"start_from": "LoRA", "base_model": "gpt2"}, "'LoRA' was trained on llama and fits no other"),
        ({"start_from": "whole"}, "'whole' is a whole model, no adapter: move its folder to models/"),
    ],
)
def test_no_such_adapter(
    folders: Folders, trials: dict[str, Trial], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    whole = folders.loras / "whole"
    if not whole.exists():
        shutil.copytree(folders.models / "llama", whole)
        shutil.copy(trials["LoRA"].run.folder / "settings.json", whole)
        shutil.copy(trials["LoRA"].run.folder / "state.json", whole)
    settings = settings_for(base_model="llama").model_copy(update=changes)
    with pytest.raises(UserError, match=message):
        earlier_adapter(folders, settings)
