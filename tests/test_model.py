"""Loading base models, tokenizers and adapters, and what is said of those that are no good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.tiny import add_base, make_folders, make_model, make_settings, make_tokenizer
from training import model
from training.base_models import locate_base_model
from training.errors import UserError
from training.methods import attach
from training.model import load_adapter, load_base, load_tokenizer
from training.paths import Folders


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


@pytest.fixture
def base(folders: Folders) -> Path:
    return add_base(folders)


# Which model


def test_folder_wins_over_hub_name(folders: Folders, base: Path) -> None:
    assert locate_base_model(folders, " tiny ") == str(base.resolve())
    add_base(folders, "org/model")
    assert locate_base_model(folders, "org/model") == str((folders.models / "org" / "model").resolve())
    assert locate_base_model(folders, "other-org/model_1.5") == "other-org/model_1.5"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "choose one"),
        ("none", "no folder 'none'"),
        (".", "no config.json"),
        ("..", "no folder"),
        ("../outside", "no folder"),
        ("-x/y", "no folder"),
        ("a/b/c", "no folder"),
        ("x" * 5000, "no folder"),
        ("a\0b", "no folder"),
        ("model.Q4_K_M.GGUF", "is a single file"),
        ("org/model.safetensors", "is a single file"),
        ("gguf", "holds a GGUF file"),
        ("empty", "has no config.json"),
        ("broken", "is damaged"),
        ("pickled", "has no .safetensors weights"),
    ],
)
def test_no_model(folders: Folders, name: str, message: str) -> None:
    add_base(Folders(models=folders.models.parent), "outside")
    for folder in ("gguf", "empty", "broken", "pickled"):
        (folders.models / folder).mkdir()
    (folders.models / "gguf" / "model.gguf").touch()
    (folders.models / "broken" / "config.json").write_text("{")
    (folders.models / "pickled" / "config.json").write_text("{}")
    (folders.models / "pickled" / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=f"^Base model: .*{message}"):
        locate_base_model(folders, name)


# Loading


def test_base_is_frozen(base: Path) -> None:
    loaded = load_base(str(base), make_settings())
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.dtype == model.compute_dtype("32-bit")


def test_shared_embeddings_are_no_missing_weights(folders: Folders, base: Path) -> None:
    tied = make_model(263)
    tied.config.tie_word_embeddings = True
    tied = LlamaForCausalLM(tied.config)
    tied.save_pretrained(str(base))
    assert load_base(str(base), make_settings()).get_output_embeddings().weight.shape == (263, 64)


@pytest.mark.parametrize("precision", ["4-bit", "8-bit"])
def test_model_saved_quantized_is_read_as_such(base: Path, folders: Folders, precision: str) -> None:
    target = folders.models / "quantized"
    quantized = load_base(str(base), make_settings(precision=precision))
    quantized.save_pretrained(str(target))
    loaded = load_base(str(target), make_settings())
    ids = torch.arange(9)[None]
    torch.testing.assert_close(loaded(input_ids=ids).logits, quantized(input_ids=ids).logits)


@pytest.mark.parametrize("damage", ["short", "empty", "rubbish"])
def test_damaged_weights(base: Path, damage: str) -> None:
    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes({"short": whole[: len(whole) // 2], "empty": b"", "rubbish": b"rubbish" * 99}[damage])
    with pytest.raises(UserError, match="the model in 'tiny' could not be loaded"):
        load_base(str(base), make_settings())


@pytest.mark.parametrize("config", [[], {}, {"model_type": "unheard-of"}])
def test_unknown_kind_of_model(base: Path, config: object) -> None:
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="'tiny'"):
        load_base(str(base), make_settings())


def test_weights_that_lack_a_layer_are_not_filled_with_random_numbers(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="'tiny' lacks 9 of its weights"):
        load_base(str(base), make_settings())


def test_tokenizer_pads_with_something(base: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(str(base))
    loaded = load_tokenizer(str(base))
    assert loaded.pad_token_id == loaded.eos_token_id is not None


def test_tokenizer_without_an_end(base: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(str(base))
    with pytest.raises(UserError, match="has no end token"):
        load_tokenizer(str(base))


def test_damaged_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="the tokenizer in 'tiny' could not be loaded"):
        load_tokenizer(str(base))


# Adapters


def test_lora_is_as_the_settings_say(base: Path) -> None:
    lora = attach(load_base(str(base), make_settings()), make_settings(lora_rank=3, lora_alpha=6, lora_dropout=0.25))
    config = lora.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 6, 0.25)
    trainable = {name for name, p in lora.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 2 * 7  # two layers, seven linear layers in each, A and B; not the output head
    assert all("lora_" in name for name in trainable)
    assert all(p.dtype == torch.float32 for p in lora.parameters() if p.requires_grad)


def test_chosen_layers_only(base: Path) -> None:
    lora = attach(load_base(str(base), make_settings()), make_settings(target_modules=["q_proj", "v_proj"]))
    names = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, p in lora.named_parameters() if p.requires_grad}
    assert names == {"q_proj", "v_proj"}


def test_layers_the_model_lacks(base: Path) -> None:
    settings = make_settings().model_copy(update={"target_modules": ["c_attn"]})
    with pytest.raises(UserError, match="no layers called c_attn"):
        attach(load_base(str(base), make_settings()), settings)


def test_new_adapter_changes_nothing_yet(base: Path) -> None:
    plain = load_base(str(base), make_settings()).eval()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = plain(input_ids=ids).logits
        assert torch.equal(attach(plain, make_settings()).eval()(input_ids=ids).logits, before)


@pytest.mark.parametrize("trainable", [True, False])
def test_adapter_is_loaded_to_train_or_to_use(base: Path, tmp_path: Path, trainable: bool) -> None:
    attach(load_base(str(base), make_settings()), make_settings()).save_pretrained(str(tmp_path / "a"))
    lora = load_adapter(load_base(str(base), make_settings()), tmp_path / "a", trainable=trainable)
    assert any(p.requires_grad for p in lora.parameters()) == trainable


def test_adapter_that_is_not_there_or_does_not_fit(base: Path, folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no adapter in 'tiny'"):
        load_adapter(load_base(str(base), make_settings()), base)
    attach(load_base(str(base), make_settings()), make_settings()).save_pretrained(str(tmp_path / "a"))
    config = make_model(263).config
    config.hidden_size = 128
    LlamaForCausalLM(config).save_pretrained(str(folders.models / "wider"))
    with pytest.raises(UserError, match="does not fit this base model"):
        load_adapter(load_base(str(folders.models / "wider"), make_settings()), tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="adapter in 'a'"):
        load_adapter(load_base(str(base), make_settings()), tmp_path / "a")


def test_pickled_adapter_is_not_loaded(base: Path, tmp_path: Path) -> None:
    lora = attach(load_base(str(base), make_settings()), make_settings())
    lora.save_pretrained(str(tmp_path / "a"))
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    torch.save(lora.state_dict(), tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(UserError, match="only such weights are loaded"):
        load_adapter(load_base(str(base), make_settings()), tmp_path / "a")


def test_memory_in_use_is_a_number_of_bytes() -> None:
    assert model.memory_in_use() > 2**20
