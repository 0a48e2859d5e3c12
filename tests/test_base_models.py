"""What a model's folder is told to be without loading it, and what is said of models that cannot be trained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.architectures import ARCHITECTURES
from tests.tiny import add_base, make_folders, make_model, make_tokenizer
from training import trainable
from training.base_models import about_base_model, context_length, locate_base_model
from training.errors import UserError
from training.hub_cache import model_folder
from training.model_facts import about, count_text, facts_of, size_text
from training.paths import PROJECT, Folders, list_models
from training.trainable import causal_model_types, why_not

_BACK_ENDS = ("optimum", "gptqmodel")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return replace(make_folders(tmp_path), hub_cache=tmp_path / "hub")


@pytest.fixture
def base(folders: Folders) -> Path:
    return add_base(folders)


def _configure(base: Path, **changes: Any) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Facts


def test_facts_of_the_starter() -> None:
    facts = facts_of(Folders().models / "starter")
    assert (facts.architecture, facts.model_type, facts.dtype) == ("LlamaForCausalLM", "llama", "bfloat16")
    assert (facts.context_length, facts.vocabulary, facts.hidden_size, facts.layers) == (2048, 4096, 256, 6)
    assert facts.whole and facts.has_chat_template and not facts.quantization and not facts.code
    assert about(facts) == "Llama, 5.2 million parameters, 11 MB, reads 2,048 tokens, has a chat template"


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_parameters_of_every_family_are_exact(tmp_path: Path, family: str) -> None:
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[family])
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    facts = facts_of(tmp_path)
    assert facts.parameters == model.num_parameters() and facts.dtype == "float32"
    assert facts.layers == 2 and facts.hidden_size == 64 and why_not(facts) == ""
    assert facts.bytes_on_disk == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_what_old_checkpoints_store_beside_the_parameters(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    before = facts_of(base).parameters
    _configure(base, tie_word_embeddings=True)
    weights |= {
        "h.0.attn.bias": torch.ones(1, 1, 8, 8),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "rotary.inv_freq": torch.ones(4),
        "positions": torch.arange(9),
    }
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert before and facts_of(base).parameters == before - weights["lm_head.weight"].numel()


def test_text_part_of_a_model_for_pictures(base: Path) -> None:
    text = {"max_position_embeddings": 77, "hidden_size": 8, "num_hidden_layers": 3, "vocab_size": 99}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    (base / "config.json").write_text(json.dumps(config))
    facts = facts_of(base)
    assert (facts.context_length, facts.hidden_size, facts.layers, facts.vocabulary) == (77, 8, 3, 99)
    assert context_length(str(base)) == 77 and why_not(facts) == "" and about(facts).startswith("Gemma3, ")
    assert context_length("org/model") is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4-bit"),
        ({"load_in_8bit": True, "quant_method": "bitsandbytes"}, "bitsandbytes 8-bit"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ 4-bit"),
        ({"quant_method": "fp8"}, "FP8"),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_quantization(base: Path, given: dict[str, Any], told: str) -> None:
    _configure(base, quantization_config=given)
    facts = facts_of(base)
    assert facts.quantization == told and facts.parameters is None and f"stored in {told}" in about(facts)


def test_chat_template_in_the_tokenizer_config(base: Path) -> None:
    (base / "chat_template.jinja").unlink()
    assert not facts_of(base).has_chat_template and about(facts_of(base)).endswith("has no chat template")
    (base / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert facts_of(base).has_chat_template


def test_sizes_in_words() -> None:
    assert [size_text(n) for n in (900, 5_200_000, 16_060_000_000)] == ["1 kB", "5.2 MB", "16 GB"]
    assert [count_text(n) for n in (900, 5_180_672, 8_030_000_000)] == ["900", "5.2 million", "8.0 billion"]


def test_reading_facts_imports_no_heavy_library() -> None:
    script = (
        "import sys; from pathlib import Path; from training.model_facts import facts_of;"
        "from training.trainable import why_not; from training.base_models import locate_base_model;"
        "assert why_not(facts_of(Path('models/starter'))) == '';"
        "print(*(name for name in ('torch', 'transformers') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_known_families_are_those_of_transformers() -> None:
    assert causal_model_types() == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


# What cannot be trained


def _files(*names: str) -> Callable[[Path], None]:
    """Nothing but these files."""

    def change(base: Path) -> None:
        shutil.rmtree(base)
        base.mkdir()
        for name in names:
            (base / name).write_text("{}")

    return change


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda base: _configure(base, **changes)


def _quantized(method: str) -> Callable[[Path], None]:
    return _config(quantization_config={"quant_method": method, "bits": 4})


def _kind(architecture: str, model_type: str, **more: Any) -> Callable[[Path], None]:
    return _config(architectures=[architecture], model_type=model_type, **more)


def _without(pattern: str) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        for path in base.glob(pattern):
            path.unlink()

    return change


def _cut(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _in_shards(base: Path, index: str | None = None) -> None:
    (base / "model.safetensors").unlink()
    make_model(len(make_tokenizer())).save_pretrained(base, max_shard_size="100KB")
    if index is not None:
        (base / "model.safetensors.index.json").write_text(index)


def _without_shards(base: Path) -> None:
    _in_shards(base)
    for shard in sorted(base.glob("model-*"))[1:3]:
        shard.unlink()


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "gguf": (_files("model.Q4_K_M.gguf"), "holds a GGUF file, .* get the original Hugging Face folder"),
    "adapter": (_files("adapter_config.json", "adapter_model.safetensors"), "is a LoRA adapter .* choose the base"),
    "diffusers": (_files("model_index.json"), "is a model for pictures"),
    "pickled": (_files("config.json", "pytorch_model.bin"), "has no .safetensors weights .* choose a model that has"),
    "no config": (_files("model.safetensors"), "has no config.json"),
    "damaged config": (
        lambda base: (base / "config.json").write_text("{") and None,
        "config.json of 'tiny' is damaged",
    ),
    "config of another shape": (lambda base: (base / "config.json").write_text("[]") and None, "is damaged"),
    "empty config": (lambda base: (base / "config.json").write_text("{}") and None, "does not say what kind"),
    "encoder": (_kind("BertForMaskedLM", "bert"), r"is an encoder, .* \(BertForMaskedLM\), .* choose a causal"),
    "encoder and decoder": (
        _kind("T5ForConditionalGeneration", "t5", is_encoder_decoder=True),
        r"is no causal language model \(T5ForConditionalGeneration\): choose a causal",
    ),
    "translator": (_kind("MarianMTModel", "marian", is_encoder_decoder=True), "is no causal language model"),
    "classifier": (_kind("LlamaForSequenceClassification", "llama"), "sorts texts into classes"),
    "embedder": (_kind("MistralModel", "mistral"), "turns texts into numbers"),
    "pictures": (_kind("ViltForConditionalGeneration", "vilt"), "is no causal language model"),
    "unheard of": (_kind("NewForCausalLM", "new"), r"of a kind \('new'\) that the installed transformers"),
    "own code": (
        _kind("NewForCausalLM", "new", auto_map={"AutoModelForCausalLM": "modeling_new.NewForCausalLM"}),
        'tick "Run the model\'s own code" if you trust its makers',
    ),
    "awq": (_quantized("awq"), "stored in AWQ 4-bit, for which gptqmodel is not installed: choose the original"),
    "gptq": (_quantized("gptq"), "stored in GPTQ 4-bit, for which optimum and gptqmodel are not installed"),
    "fp8": (_quantized("fp8"), "stored in FP8 4-bit, which is for running, not for training"),
    "another packing": (_quantized("quip"), "stored in quip 4-bit, which Graft cannot train on"),
    "missing shards": (_without_shards, "is not whole, because model-00002-of-.* and 1 more are missing"),
    "cut shard": (_cut, "is damaged, because model.safetensors is cut short"),
    "damaged index": (lambda base: _in_shards(base, '{"weight_map": []}'), "index.json of 'tiny' is damaged"),
    "index out of the folder": (
        lambda base: _in_shards(base, '{"weight_map": {"a": "../x.safetensors"}}'),
        "index.json of 'tiny' is damaged",
    ),
    "no tokenizer": (_without("tokenizer.json"), "has no tokenizer"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_cannot_be_trained(folders: Folders, base: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, says = BROKEN[case]
    monkeypatch.setattr(trainable, "find_spec", lambda name: None if name in _BACK_ENDS else find_spec(name))
    assert locate_base_model(folders, "tiny")
    change(base)
    for ask in (locate_base_model, about_base_model):
        with pytest.raises(UserError, match=f"^Base model: .*{says}") as caught:
            ask(folders, "tiny")
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith(".")


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_packed_model_with_its_back_end(base: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _quantized(method)(base)
    monkeypatch.setattr(trainable, "find_spec", lambda name: object() if name in _BACK_ENDS else find_spec(name))
    assert why_not(facts_of(base)) == ""


def test_own_code_that_may_run(folders: Folders, base: Path) -> None:
    BROKEN["own code"][0](base)
    assert locate_base_model(folders, "tiny", run_code=True) == str(base.resolve())
    assert about_base_model(folders, "tiny", run_code=True).startswith("New, ")
    # A family that transformers has itself needs none of the code that comes with it.
    _kind("LlamaForCausalLM", "llama")(base)
    assert locate_base_model(folders, "tiny")


# The Hugging Face cache


def _cache(folders: Folders, base: Path, repo_id: str, commit: str = "a" * 40) -> Path:
    """Put a copy of a model into the cache, as huggingface_hub would."""
    assert folders.hub_cache
    place = model_folder(folders.hub_cache, repo_id)
    shutil.copytree(base, place / "snapshots" / commit)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    return place / "snapshots" / commit


def test_whole_model_of_the_cache_is_offered_and_found(folders: Folders, base: Path) -> None:
    cached = _cache(folders, base, "org/model")
    assert list_models(folders) == ["tiny", "org/model"]
    assert locate_base_model(folders, "org/model") == str(cached.resolve())
    assert about_base_model(folders, "org/model").startswith("Llama, ")
    (cached / "model.safetensors").unlink()
    assert list_models(folders) == ["tiny"] and locate_base_model(folders, "org/model") == "org/model"
    assert about_base_model(folders, "org/model").startswith("Not on this computer yet")


@pytest.mark.parametrize("change", [_cut, _without("tokenizer.json"), _without("config.json"), _without_shards])
def test_part_of_a_model_in_the_cache_is_not_offered(
    folders: Folders, base: Path, change: Callable[[Path], None]
) -> None:
    change(_cache(folders, base, "org/model"))
    assert list_models(folders) == ["tiny"] and locate_base_model(folders, "org/model") == "org/model"


def test_older_version_serves_until_the_new_one_is_whole(folders: Folders, base: Path) -> None:
    old = _cache(folders, base, "org/model")
    new = _cache(folders, base, "org/model", "b" * 40)
    assert locate_base_model(folders, "org/model") == str(new.resolve())
    _cut(new)
    assert locate_base_model(folders, "org/model") == str(old.resolve())


def test_models_of_other_programs_are_not_offered_but_explained(folders: Folders, base: Path) -> None:
    _kind("BertForMaskedLM", "bert")(_cache(folders, base, "org/bert"))
    BROKEN["own code"][0](_cache(folders, base, "org/own-code"))
    assert list_models(folders) == ["tiny", "org/own-code"]
    with pytest.raises(UserError, match="'org/bert' is an encoder"):
        locate_base_model(folders, "org/bert")
