"""Each way to train and each of its options: it learns, is saved, loads anywhere, and does what it is called."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.architectures import ARCHITECTURES
from tests.plain_load import logits_of
from tests.trials import (
    IDS,
    PlainProcess,
    Trial,
    files_of,
    plain_process,
    save_base,
    settings_for,
    train,
    working_folders,
)
from training import model as models
from training.data import prepare
from training.errors import UserError
from training.methods import attach, embedding_names, initialize
from training.optimization import make_optimizer
from training.paths import Folders
from training.run_store import continue_run
from training.runs import Run

WAYS: dict[str, dict[str, Any]] = {
    "rsLoRA": {"rank_stabilized": True},
    "gaussian": {"initialization": "gaussian"},
    "orthogonal": {"initialization": "orthogonal"},
    "PiSSA": {"initialization": "PiSSA"},
    "OLoRA": {"initialization": "OLoRA"},
    "EVA": {"initialization": "EVA"},
    "LoftQ": {"initialization": "LoftQ"},
    "LoRA+": {"lora_plus_ratio": 16, "learning_rate": 1e-3},
    "VeRA": {"method": "VeRA", "learning_rate": 0.1, "lora_rank": 32},
    "LoHa": {"method": "LoHa"},
    "LoKr": {"method": "LoKr"},
    "prompt tuning": {"method": "prompt tuning", "learning_rate": 0.1},
    "P-tuning": {"method": "P-tuning", "learning_rate": 1e-2},
    "trained fully": {"train_fully": ["lm_head", "embed_tokens"], "learning_rate": 1e-3},
    "new tokens": {"new_tokens": ["<tool>", "<done>"] * 20, "learning_rate": 1e-3},
    "new tokens, whole model": {"new_tokens": ["<tool>"], "method": "full fine-tuning", "learning_rate": 1e-3},
    "one layer": {"layer_range": "1"},
    "ranks and alphas": {"rank_pattern": "q_proj=8, layers.1.mlp.up_proj=2", "alpha_pattern": "q_proj=64"},
    "LoHa with ranks": {"method": "LoHa", "rank_pattern": "q_proj=8"},
    "pattern": {"target_pattern": r".*\.mlp\..*_proj"},
    "IA3 by pattern": {"method": "IA3", "target_pattern": r".*\.mlp\..*_proj", "learning_rate": 0.1},
    "IA3 on two": {"method": "IA3", "target_modules": ["k_proj", "v_proj"], "learning_rate": 0.3},
    "NEFTune": {"neftune_noise": 1},
    "label smoothing": {"label_smoothing": 0.1},
    "FP4": {"quantization_type": "FP4"},
    "single quantization": {"double_quantization": False},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "gradient checkpointing, IA3": {"gradient_checkpointing": True, "method": "IA3", "learning_rate": 0.1},
    "gradient checkpointing, prompt": {"gradient_checkpointing": True, "method": "prompt tuning", "learning_rate": 0.1},
    "gradient checkpointing, whole": {
        "gradient_checkpointing": True,
        "method": "full fine-tuning",
        "learning_rate": 1e-3,
    },
}
PRECISIONS = ("32-bit", "16-bit", "8-bit", "4-bit")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    made = working_folders(tmp_path_factory.mktemp("methods"))
    save_base(made, "llama", ARCHITECTURES["llama"])
    save_base(made, "gemma", ARCHITECTURES["gemma"])
    save_base(made, "gpt2", ARCHITECTURES["gpt2"])
    return made


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[PlainProcess]:
    with plain_process() as process:
        yield process


QUANTIZED = ("8-bit", "4-bit")
# Ways and the precisions to which they do not apply, and what the user reads.
NOT_APPLICABLE: list[tuple[tuple[str, ...], tuple[str, ...], str]] = [
    (("PiSSA", "OLoRA"), QUANTIZED, "changes the weights: load the model in 16-bit"),
    (("orthogonal",), QUANTIZED, "^Initialization: orthogonal needs a model that is loaded in 16-bit"),
    (("LoftQ",), ("32-bit", "16-bit", "8-bit"), "makes up for what 4-bit loading loses"),
    (("LoHa", "LoHa with ranks", "LoKr"), ("4-bit",), "^Method: LoHa and LoKr do not work with 4-bit weights"),
    (("new tokens, whole model", "gradient checkpointing, whole"), QUANTIZED, "changes the weights themselves"),
]


def refusal(way: str, precision: str) -> str:
    """What the user reads where a way does not apply to a precision; empty where it does."""
    return next((text for ways, those, text in NOT_APPLICABLE if way in ways and precision in those), "")


TIED = ("trained fully", "new tokens", "new tokens, whole model")  # matters where the head is the embeddings
CASES = [
    *itertools.product(WAYS, ("llama",), PRECISIONS),
    *itertools.product(TIED, ("gemma",), ("32-bit", "4-bit")),
    ("LoftQ", "gpt2", "4-bit"),  # whose weights lie the other way round
]


@pytest.mark.parametrize(("way", "family", "precision"), CASES)
def test_it_learns_is_saved_and_loads_anywhere(
    folders: Folders, elsewhere: PlainProcess, way: str, family: str, precision: str
) -> None:
    changes = {"base_model": family, "precision": precision, "learning_rate": 5e-3} | WAYS[way]
    if message := refusal(way, precision):
        with pytest.raises(UserError, match=message):
            train(folders, settings_for(**changes))
        return
    files = files_of(folders.models / family)
    trial = train(folders, settings_for(**changes))
    assert trial.losses[2] < trial.losses[0]
    assert files_of(folders.models / family) == files
    assert all(p.dtype == torch.float32 for p in trial.trained().values())
    loaded = elsewhere.logits(trial.plain_case())
    # What these take out of 16-bit weights is rounded with them; what is saved is not.
    rounded = way in ("PiSSA", "OLoRA") and precision == "16-bit"
    torch.testing.assert_close(loaded, trial.logits(), atol=0.02 if rounded else 1e-5, rtol=0)


# What they do


def base_of(folders: Folders, **changes: Any) -> PreTrainedModel:
    settings = settings_for(**changes)
    return models.load_base(str(folders.models / settings.base_model), settings)


def lora_layers(model: torch.nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@pytest.mark.parametrize("initialization", ["PiSSA", "OLoRA"])
def test_what_is_saved_is_a_plain_lora_on_the_untouched_base(folders: Folders, initialization: str) -> None:
    trial = train(folders, settings_for(base_model="llama", initialization=initialization, lora_rank=4))
    config = json.loads((trial.run.folder / "adapter_config.json").read_text())
    assert (config["init_lora_weights"], config["r"]) == (True, 8)
    untouched = AutoModelForCausalLM.from_pretrained(str(trial.base_folder), dtype=torch.float32)
    expected = logits_of(untouched, IDS)
    loaded = PeftModel.from_pretrained(untouched, str(trial.run.folder))
    torch.testing.assert_close(logits_of(loaded, IDS), trial.logits(), atol=1e-5, rtol=0)
    with loaded.disable_adapter():
        assert torch.equal(logits_of(loaded, IDS), expected)
    assert not torch.allclose(trial.logits(), expected, atol=1e-3)


@pytest.mark.parametrize(("family", "alpha"), [("llama", 4), ("llama", 8), ("gpt2", 8)])
def test_loftq_brings_the_4_bit_model_nearer_to_the_full_one(folders: Folders, family: str, alpha: int) -> None:
    changes = {"base_model": family, "precision": "4-bit", "initialization": "LoftQ", "lora_alpha": alpha}
    settings = settings_for(**changes)
    full = dict(base_of(folders, base_model=family).named_modules())
    lora = attach(base_of(folders, **changes), settings)
    assert isinstance(lora, PeftModel)
    initialize(lora, settings, str(folders.models / family), [])
    layers = lora_layers(lora)
    assert len(layers) == {"llama": 14, "gpt2": 8}[family]
    for name, layer in layers.items():
        original = full[name.removeprefix("base_model.model.")].weight.float()
        kept = dequantize_module_weight(layer.get_base_layer()).float()
        if family == "gpt2":
            original = original.T
        update = layer.get_delta_weight("default").float()
        before, after = (original - kept).norm(), (original - kept - update).norm()
        # The best that a rank of 4 can do, which the power method nearly finds.
        best = torch.linalg.svdvals(original - kept)[4:].norm()
        assert best <= after * 1.0001 and after < best * 1.02 and after < before


def test_loftq_on_a_base_that_is_stored_quantized(folders: Folders, quantized_base: str) -> None:
    with pytest.raises(UserError, match="LoftQ finds no original weights in 'stored-in-4-bit'"):
        train(folders, settings_for(base_model=quantized_base, precision="4-bit", initialization="LoftQ"))


def test_eva_begins_with_the_directions_of_the_data(folders: Folders) -> None:
    settings = settings_for(base_model="llama", initialization="EVA", lora_rank=4)
    lora = attach(base_of(folders, base_model="llama"), settings)
    assert isinstance(lora, PeftModel)
    batch = {"input_ids": torch.tensor([IDS, IDS[::-1]]), "attention_mask": torch.ones(2, len(IDS), dtype=torch.long)}
    seen = []
    layer = lora_layers(lora)["base_model.model.model.layers.0.self_attn.q_proj"]
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().flatten(0, 1)))
    lora(**batch, use_cache=False)
    hook.remove()
    initialize(lora, settings, "", [batch])
    centred = seen[0] - seen[0].mean(dim=0)
    directions = torch.linalg.svd(centred, full_matrices=False)[2][:4]
    a = layer.lora_A["default"].weight
    assert a.shape == (4, 64) and not layer.lora_B["default"].weight.any()
    overlap = F.normalize(a, dim=1) @ directions.T
    torch.testing.assert_close(overlap.abs().max(dim=1).values, torch.ones(4), atol=0.05, rtol=0)


def test_lora_plus_moves_b_faster(folders: Folders) -> None:
    settings = settings_for(base_model="llama", lora_plus_ratio=16, learning_rate=1e-4, train_fully=["lm_head"])
    model = attach(base_of(folders, base_model="llama"), settings)
    optimizer = make_optimizer(model, settings)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name: rates[id(p)] for name, p in named.items()} == {
        name: pytest.approx(16e-4 if "lora_B" in name else 1e-4) for name in named
    }
    trial = train(folders, settings_for(base_model="llama", lora_plus_ratio=16, learning_rate=1e-4, epochs=1))
    moved = {name: (p - trial.at_start[name]).abs().max().item() for name, p in trial.trained().items()}
    # Adam's first step is as long as the rate.
    assert {round(length, 6) for name, length in moved.items() if "lora_B" in name} == {16e-4}


def test_neftune_is_noise_in_training_only(folders: Folders) -> None:
    trial = train(folders, settings_for(base_model="llama", neftune_noise=5))
    ids = torch.tensor([IDS])
    embeddings = trial.model.get_input_embeddings()
    trial.model.train()
    noisy = embeddings(ids)
    trial.model.eval()
    quiet = embeddings(ids)
    largest = 5 / (quiet.shape[1] * quiet.shape[2]) ** 0.5
    assert 0.9 * largest < (noisy - quiet).abs().max().item() <= largest * 1.0001
    assert torch.equal(quiet, embeddings.weight[ids])
    assert torch.equal(trial.logits(), trial.logits())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_smoothing_is_torchs_own(folders: Folders, smoothing: float) -> None:
    settings = settings_for(base_model="llama", label_smoothing=smoothing, epochs=1)
    trial = train(folders, settings)
    tokenizer = models.load_tokenizer(str(folders.models / "llama"))
    examples = list(prepare(settings, folders, tokenizer).train)
    base = base_of(folders, base_model="llama").eval()
    total, count = 0.0, 0
    for example in examples:
        labels = torch.tensor(example.labels[1:])
        logits = base(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
        total += F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing).item()
        count += int((labels != -100).sum())
    assert trial.losses == [pytest.approx(total / count, abs=1e-5)]


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_new_tokens_are_learnt_and_come_along(folders: Folders, family: str) -> None:
    before = len(AutoTokenizer.from_pretrained(str(folders.models / family)))
    tokens = [f"<new-{n}>" for n in range(40)]  # more than the unused rows of the embeddings
    trial = train(folders, settings_for(base_model=family, new_tokens=tokens))
    tokenizer = AutoTokenizer.from_pretrained(str(trial.run.folder))
    assert tokenizer.convert_tokens_to_ids(tokens) == list(range(before, before + 40))
    assert tokenizer("<new-7>", add_special_tokens=False).input_ids == [before + 7]
    saved = load_file(trial.run.folder / "adapter_model.safetensors")
    rows = {name: weight.shape[0] for name, weight in saved.items() if "embed_tokens" in name or "lm_head" in name}
    assert set(rows.values()) == {before + 40} and len(rows) == 2
    base = AutoModelForCausalLM.from_pretrained(str(folders.models / family))
    assert sorted(embedding_names(base)) == ["embed_tokens", "lm_head"]


def test_one_layer_only(folders: Folders) -> None:
    model = attach(base_of(folders, base_model="llama"), settings_for(layer_range="1"))
    assert all(".layers.1." in name for name in lora_layers(model)) and len(lora_layers(model)) == 7
    with pytest.raises(UserError, match=r"^Layers: this base model has 2, counted from 0"):
        attach(base_of(folders, base_model="llama"), settings_for(layer_range="1-2"))


def test_ranks_and_alphas_of_their_own(folders: Folders) -> None:
    settings = settings_for(lora_rank=4, lora_alpha=4, **WAYS["ranks and alphas"])
    layers = lora_layers(attach(base_of(folders, base_model="llama"), settings))
    found = {
        name.split("model.layers.")[1]: (layer.r["default"], layer.scaling["default"]) for name, layer in layers.items()
    }
    assert found["0.self_attn.q_proj"] == found["1.self_attn.q_proj"] == (8, 8)
    assert (found["0.mlp.up_proj"], found["1.mlp.up_proj"]) == ((4, 1), (2, 2))


@pytest.mark.parametrize(("kind", "double"), [("NF4", True), ("FP4", True), ("NF4", False), ("FP4", False)])
def test_4_bit_is_of_the_kind_asked_for(folders: Folders, kind: str, double: bool) -> None:
    model = base_of(folders, base_model="llama", precision="4-bit", quantization_type=kind, double_quantization=double)
    states = [module.weight.quant_state for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(states) == 14 and {(s.quant_type, s.nested) for s in states} == {(kind.lower(), double)}


@pytest.fixture(scope="module")
def quantized_base(folders: Folders) -> str:
    """The name of a base model whose files hold 4-bit weights."""
    target = folders.models / "stored-in-4-bit"
    base_of(folders, base_model="llama", precision="4-bit").save_pretrained(str(target))
    models.load_tokenizer(str(folders.models / "llama")).save_pretrained(str(target))
    return target.name


@pytest.mark.parametrize("method", ["LoRA", "IA3", "prefix tuning"])
def test_base_that_is_stored_quantized(
    folders: Folders, elsewhere: PlainProcess, quantized_base: str, method: str
) -> None:
    files = files_of(folders.models / quantized_base)
    rate = {"LoRA": 5e-3}.get(method, 0.1)
    trial = train(
        folders, settings_for(base_model=quantized_base, precision="16-bit", method=method, learning_rate=rate)
    )
    assert any(isinstance(module, Linear4bit) for module in trial.model.modules())
    assert trial.losses[2] < trial.losses[0] and files_of(folders.models / quantized_base) == files
    after = trial.base_after()
    assert [n for n, before in trial.base_before.items() if not torch.equal(before.float(), after[n].float())] == []
    case = trial.plain_case() | {"widened": method == "IA3"}
    torch.testing.assert_close(elsewhere.logits(case), trial.logits(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["LoRA", "IA3", "P-tuning", "full fine-tuning"])
def test_gradient_checkpointing_changes_nothing(folders: Folders, way: str) -> None:
    losses = []
    for checkpointing in (True, False):
        settings = settings_for(
            base_model="llama", method=way, learning_rate=1e-2, gradient_checkpointing=checkpointing
        )
        trial = train(folders, settings)
        losses.append(trial.losses)
        assert any(getattr(m, "gradient_checkpointing", False) for m in trial.model.modules()) is checkpointing
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_prefix_tuning_is_refused_with_gradient_checkpointing() -> None:
    with pytest.raises(UserError, match="prefix tuning does not work with it"):
        settings_for(method="prefix tuning", gradient_checkpointing=True)


def test_orthogonal_needs_an_even_rank(folders: Folders) -> None:
    with pytest.raises(UserError, match=r"^Initialization: orthogonal needs an even rank"):
        attach(base_of(folders, base_model="llama"), settings_for(initialization="orthogonal", lora_rank=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target_pattern": "q_proj"},
            r"fits no layer of this base model\. .* such as model\.layers\.0\.self_attn\.q_proj",
        ),
        ({"target_pattern": "q_proj", "method": "IA3"}, "^Module pattern: it fits no layer"),
        (
            {"target_modules": ["c_attn"]},
            r"^Target modules: this base model has no layers called c_attn. It has q_proj, k_proj",
        ),
        ({"target_modules": ["mlp"]}, r"^Target modules: this base model has no layers called mlp"),
        (
            {"target_modules": ["input_layernorm"]},
            r"^Target modules: this base model has no layers called input_layernorm",
        ),
        ({"train_fully": ["wte"]}, "^Train fully: this base model has nothing called wte; .* embed_tokens and lm_head"),
        ({"rank_pattern": "c_attn=4"}, "^Ranks and alphas of their own: no layer called c_attn gets an adapter"),
        (
            {"alpha_pattern": "up_proj=4", "target_modules": ["q_proj"]},
            "^Ranks and alphas of their own: no layer called up_proj gets an adapter",
        ),
        (
            {"alpha_pattern": "c_attn=4", "method": "LoKr"},
            "^Ranks and alphas of their own: no layer called c_attn gets an adapter",
        ),
        ({"rank_pattern": "q_proj(=4"}, "LoRA does not work on this base model"),
    ],
)
def test_names_that_the_model_has_not(folders: Folders, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attach(base_of(folders, base_model="llama"), settings_for(**changes))


# Going on


RESUMED = {
    "PiSSA": {"initialization": "PiSSA"},
    "OLoRA": {"initialization": "OLoRA"},
    "EVA": {"initialization": "EVA"},
    "DoRA": {"dora": True},
    "LoRA+": {"lora_plus_ratio": 16},
    "VeRA": {"method": "VeRA"},
    "LoHa": {"method": "LoHa"},
    "IA3": {"method": "IA3"},
    "prefix tuning": {"method": "prefix tuning"},
    "P-tuning": {"method": "P-tuning"},
    "full fine-tuning": {"method": "full fine-tuning"},
    "NEFTune": {"neftune_noise": 5},
    "trained fully": {"train_fully": ["lm_head"]},
    "new tokens": {"new_tokens": ["<tool>"] + [f"<{n}>" for n in range(30)]},
    "dropout": {"lora_dropout": 0.3},
}


@pytest.mark.parametrize(
    ("way", "precision"),
    [
        *((way, "16-bit") for way in RESUMED),
        *((way, "32-bit") for way in ("PiSSA", "full fine-tuning", "prefix tuning")),
        *((way, "4-bit") for way in ("DoRA", "EVA", "IA3", "P-tuning", "new tokens", "dropout")),
    ],
)
def test_a_run_that_goes_on_is_the_run_that_never_ended(folders: Folders, way: str, precision: str) -> None:
    changes = {"base_model": "llama", "precision": precision, "save_every": 1, "keep_last": 0} | RESUMED[way]
    whole = train(folders, settings_for(**changes, epochs=4))
    half = train(folders, settings_for(**changes, epochs=2))
    rest = train(folders, settings_for(**changes, name=half.run.name, epochs=4), continued(half, epochs=4))
    assert rest.losses == whole.losses
    assert {n: p.dtype for n, p in rest.trained().items()} == {n: p.dtype for n, p in whole.trained().items()}
    expected = whole.trained()
    assert [name for name, p in rest.trained().items() if not torch.equal(p, expected[name])] == []
    for file in whole.run.folder.glob("*.safetensors"):
        once, twice = load_file(file), load_file(rest.run.folder / file.name)
        assert [name for name in once if not torch.equal(once[name], twice[name])] == []


def continued(trial: Trial, **changes: Any) -> Run:
    return continue_run(trial.run, trial.run.settings().model_copy(update=changes))
