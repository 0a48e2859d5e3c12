"""An adapter added to its base for good: the sum is a base model that answers as the two did."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.architectures import ARCHITECTURES
from tests.plain_load import logits_of
from tests.trials import IDS, files_of, save_base, settings_for, train, working_folders
from training.errors import UserError
from training.events import Note
from training.merging import merge
from training.model import load_base, load_tokenizer
from training.paths import Folders
from training.runs import ADAPTER_WEIGHTS, EventReader, is_whole_model
from training.settings import Settings

WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"rank_stabilized": True},
    "DoRA": {"dora": True},
    "PiSSA": {"initialization": "PiSSA"},
    "VeRA": {"method": "VeRA", "lora_rank": 32, "learning_rate": 0.1},
    "LoHa": {"method": "LoHa"},
    "LoKr": {"method": "LoKr"},
    "IA3": {"method": "IA3", "learning_rate": 0.1},
    "trained fully": {"train_fully": ["lm_head"]},
    "new tokens": {"new_tokens": [f"<{n}>" for n in range(40)]},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    made = working_folders(tmp_path_factory.mktemp("merging"))
    for family in ("llama", "gemma", "gpt2"):
        save_base(made, family, ARCHITECTURES[family])
    return made


def merging(earlier: str, **changes: Any) -> Settings:
    """Settings that begin with the run called `earlier` merged into its base."""
    return settings_for(start_from=earlier, start_as="merge it into the base", **changes)


@pytest.mark.parametrize(
    ("way", "family"), [*((way, "llama") for way in WAYS), ("LoRA", "gpt2"), ("LoRA", "gemma"), ("new tokens", "gemma")]
)
def test_the_sum_answers_as_base_and_adapter_did(folders: Folders, way: str, family: str) -> None:
    trial = train(folders, settings_for(base_model=family, name="part", precision="32-bit", **WAYS[way]))
    source, files = folders.models / family, files_of(folders.models / family)
    settings = merging(trial.run.name, base_model=family, precision="32-bit")
    folder = merge(folders, str(source), settings)
    assert folder.parent == folders.models and folder.name.startswith(f"{trial.run.name}-merged")
    assert is_whole_model(folder)
    merged = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    torch.testing.assert_close(logits_of(merged, IDS), trial.logits(), atol=1e-5, rtol=0)
    assert files_of(source) == files
    untouched = AutoModelForCausalLM.from_pretrained(str(source))
    assert not torch.allclose(
        logits_of(untouched, IDS), logits_of(merged, IDS)[:, : untouched.config.vocab_size], atol=1e-3
    )
    tokenizer, its = (AutoTokenizer.from_pretrained(str(place)) for place in (folder, trial.run.folder))
    assert tokenizer.get_vocab() == its.get_vocab()
    assert not list(folders.models.glob(".*partial"))


@pytest.mark.parametrize("method", ["prefix tuning", "prompt tuning", "P-tuning"])
def test_virtual_tokens_cannot_be_merged(folders: Folders, method: str) -> None:
    trial = train(folders, settings_for(base_model="llama", name="virtual", method=method))
    settings = merging(trial.run.name, base_model="llama", method=method)
    with pytest.raises(UserError, match="cannot be merged into a model"):
        merge(folders, str(folders.models / "llama"), settings)
    assert not list(folders.models.glob(f"{trial.run.name}*"))


def test_the_same_sum_is_taken_again_and_another_never(folders: Folders) -> None:
    own = folders.models / "again-merged"
    own.mkdir()
    (own / "mine").touch()
    trial = train(folders, settings_for(base_model="llama", name="again"))
    settings, source = merging(trial.run.name, base_model="llama"), str(folders.models / "llama")
    folder = merge(folders, source, settings)
    assert folder.name == "again-merged-2" and (own / "mine").exists()
    assert merge(folders, source, settings) == folder
    shutil.copy(next(trial.run.folder.glob("checkpoint-*")) / ADAPTER_WEIGHTS, trial.run.folder)
    with (trial.run.folder / ADAPTER_WEIGHTS).open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    other = merge(folders, source, settings)
    assert other.name == "again-merged-3" and (folder / "model.safetensors").is_file()


def test_name_of_the_longest_kind(folders: Folders) -> None:
    trial = train(folders, settings_for(base_model="llama", name="n" * 80))
    folder = merge(folders, str(folders.models / "llama"), merging(trial.run.name, base_model="llama"))
    assert folder.name.endswith("n-merged") and len(folder.name) < 80


@pytest.mark.parametrize("precision", ["32-bit", "4-bit"])
def test_a_training_on_top_of_the_sum(folders: Folders, precision: str) -> None:
    first = train(folders, settings_for(base_model="llama", name="first", learning_rate=5e-3))
    settings = merging(first.run.name, base_model="llama", name="second", precision=precision, learning_rate=2e-3)
    second = train(folders, settings)
    asked = second.run.settings()
    assert asked.base_model.startswith("first") and "-merged" in asked.base_model and asked.start_from == ""
    assert second.losses[0] < first.losses[2] and second.losses[2] < second.losses[0]
    notes = [event.text for event in EventReader(second.run).read_new() if isinstance(event, Note)]
    assert any(f"'{first.run.name}' is merged into llama first" in note for note in notes)
    assert any(f"The sum is the base model {asked.base_model} in models/" in note for note in notes)
    assert second.base_folder == folders.models / asked.base_model


def test_another_base_is_refused(folders: Folders) -> None:
    trial = train(folders, settings_for(base_model="llama", name="other"))
    with pytest.raises(UserError, match="was trained on llama and fits no other"):
        merge(folders, str(folders.models / "gemma"), merging(trial.run.name, base_model="gemma"))


def test_a_base_that_is_stored_quantized_is_refused(folders: Folders) -> None:
    target = folders.models / "stored-in-4-bit"
    settings = settings_for(base_model="llama", precision="4-bit")
    load_base(str(folders.models / "llama"), settings).save_pretrained(str(target))
    load_tokenizer(str(folders.models / "llama")).save_pretrained(str(target))
    trial = train(folders, settings_for(base_model=target.name, name="on-4-bit"))
    with pytest.raises(UserError, match="the base model is stored quantized"):
        merge(folders, str(target), merging(trial.run.name, base_model=target.name))


def test_a_base_of_16_bits_stays_one(folders: Folders) -> None:
    target = folders.models / "short"
    AutoModelForCausalLM.from_pretrained(str(folders.models / "llama"), dtype=torch.bfloat16).save_pretrained(
        str(target)
    )
    load_tokenizer(str(folders.models / "llama")).save_pretrained(str(target))
    trial = train(folders, settings_for(base_model="short", name="on-short", precision="16-bit"))
    merged = AutoModelForCausalLM.from_pretrained(
        str(merge(folders, str(target), merging(trial.run.name, base_model="short")))
    )
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(logits_of(merged, IDS), trial.logits(), atol=0.03, rtol=0)
