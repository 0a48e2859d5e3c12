"""Settings come back from the files of earlier LoRAs: Graft's own, text-generation-webui's, and plain adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.copied_settings import copy_settings
from training.errors import UserError
from training.parsing import parse
from training.paths import Folders
from training.runs import Run
from training.settings import ALL_LINEAR, Settings

# As text-generation-webui wrote it.
OLD: dict[str, Any] = {
    "lora_name": "pirate",
    "always_override": True,
    "save_steps": 25.0,
    "micro_batch_size": 4,
    "batch_size": 128,
    "epochs": 3.0,
    "learning_rate": "3e-4",
    "lr_scheduler_type": "linear",
    "lora_rank": 32,
    "lora_alpha": 64,
    "lora_dropout": 0.05,
    "cutoff_len": 256,
    "dataset": "pirates",
    "eval_dataset": "None",
    "format": "alpaca-format",
    "eval_steps": 100.0,
    "raw_text_file": "None",
    "overlap_len": 64,
    "newline_favor_len": 128,
    "higher_rank_limit": False,
    "warmup_steps": 100.0,
    "optimizer": "adamw_torch",
    "hard_cut_string": "\\n\\n\\n",
    "train_only_after": "Assistant:",
    "stop_at_loss": 1.5,
    "add_eos_token": False,
    "min_chars": 0.0,
    "report_to": "None",
}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = Folders(models=tmp_path / "models", datasets=tmp_path / "datasets", loras=tmp_path / "loras")
    folders.make()
    return folders


def _run(folders: Folders, **files: Any) -> Run:
    run = Run(folders.loras / "pirate")
    run.folder.mkdir()
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (run.folder / f"{name}.json").write_text(text)
    return run


def test_every_setting_of_an_own_run_comes_back(folders: Folders) -> None:
    asked = parse(
        {"name": "pirate", "dataset": "a.json", "learning_rate": 1e-5, "target_modules": ["q_proj", "up_proj"]}
    )
    run = _run(folders)
    run.write_settings(asked)
    assert copy_settings(folders, run).settings == asked


def test_old_page_settings_are_translated(folders: Folders) -> None:
    (folders.datasets / "pirates.json").write_text("[]")
    copied = copy_settings(folders, _run(folders, training_parameters=OLD | {"q_proj_en": True, "o_proj_en": True}))
    settings = copied.settings
    assert settings.name == "pirate"
    assert (settings.batch_size, settings.micro_batch_size, settings.epochs) == (128, 4, 3)
    assert (settings.learning_rate, settings.scheduler) == (3e-4, "linear")
    assert (settings.lora_rank, settings.lora_alpha, settings.lora_dropout) == (32, 64, 0.05)
    assert (settings.cutoff_length, settings.overlap_length, settings.prefer_line_cut) == (256, 64, 32)
    assert (settings.save_every, settings.evaluate_every, settings.stop_at_loss) == (25, 100, 1.5)
    assert settings.warmup == 4  # 100 micro-batches of warm-up at 32 a step
    assert settings.target_modules == ["q_proj", "o_proj"]
    assert (settings.dataset, settings.raw_text) == (["pirates.json"], [])
    assert settings.train_on == "answers"
    assert settings.if_exists == "ask"  # nothing is overwritten because an old file says so
    assert any("alpaca-format" in note for note in copied.notes)


def test_old_page_without_ticks_trained_two_modules(folders: Folders) -> None:
    assert copy_settings(folders, _run(folders, training_parameters=OLD)).settings.target_modules == [
        "q_proj",
        "v_proj",
    ]


def test_old_page_raw_text(folders: Folders) -> None:
    (folders.datasets / "book.txt").write_text("words")
    settings = copy_settings(folders, _run(folders, training_parameters=OLD | {"raw_text_file": "book"})).settings
    assert (settings.dataset, settings.raw_text) == ([], ["book.txt"])


def test_what_graft_does_not_have_becomes_the_default_and_is_said(folders: Folders) -> None:
    old = OLD | {"optimizer": "adamw_anyprecision", "lora_rank": 0}
    copied = copy_settings(folders, _run(folders, training_parameters=old))
    assert copied.settings.optimizer == Settings().optimizer
    assert copied.settings.lora_rank == Settings().lora_rank
    assert copied.settings.lora_alpha == 64
    assert any("Optimizer" in note for note in copied.notes)
    assert any("LoRA rank" in note for note in copied.notes)


def test_plain_adapter_gives_its_lora_settings_and_base(folders: Folders) -> None:
    (folders.models / "small").mkdir()
    (folders.models / "small" / "config.json").write_text("{}")
    config = {
        "base_model_name_or_path": "/home/somebody/models/small",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "target_modules": ["v_proj", "q_proj"],
    }
    copied = copy_settings(folders, _run(folders, adapter_config=config))
    assert copied.settings.base_model == "small"
    assert (copied.settings.lora_rank, copied.settings.lora_alpha, copied.settings.lora_dropout) == (8, 16, 0.1)
    assert copied.settings.target_modules == ["q_proj", "v_proj"]
    assert copied.notes


def test_consent_to_run_code_is_not_copied(folders: Folders) -> None:
    run = _run(folders)
    run.write_settings(parse({"name": "pirate", "dataset": "a.json", "trust_remote_code": True}))
    copied = copy_settings(folders, run)
    assert copied.settings.trust_remote_code is False
    assert "Run the model's own code" in copied.notes[0]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"target_modules": ["c_attn"]}, {"target_modules": ["c_attn"]}),
        ({"target_modules": "all-linear"}, {"target_modules": [ALL_LINEAR], "target_pattern": ""}),
        ({"target_modules": ".*_proj"}, {"target_modules": [ALL_LINEAR], "target_pattern": ".*_proj"}),
        ({"use_rslora": True, "use_dora": True}, {"rank_stabilized": True, "dora": True}),
        ({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {}}, {"rank_pattern": "q_proj=4", "alpha_pattern": ""}),
        ({"layers_to_transform": [0, 3]}, {"layers": [0, 3]}),
        ({"layers_to_transform": 2}, {"layers": [2]}),
        ({"modules_to_save": ["lm_head"]}, {"train_fully": ["lm_head"]}),
        ({"init_lora_weights": "pissa_niter_16"}, {"initialization": "PiSSA"}),
        ({"init_lora_weights": True}, {"initialization": "default"}),
        ({"peft_type": "VERA", "r": 256, "vera_dropout": 0.1}, {"method": "VeRA", "lora_dropout": 0.1}),
        ({"peft_type": "LOHA", "alpha": 8, "rank_dropout": 0.2}, {"method": "LoHa", "lora_alpha": 8}),
        ({"peft_type": "IA3", "target_modules": ["k_proj"]}, {"method": "IA3", "target_modules": ["k_proj"]}),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 7}, {"method": "prefix tuning", "virtual_tokens": 7}),
        ({"peft_type": "P_TUNING"}, {"method": "P-tuning"}),
    ],
)
def test_adapters_of_every_method_are_read(folders: Folders, config: dict[str, Any], expected: dict[str, Any]) -> None:
    copied = copy_settings(folders, _run(folders, adapter_config=config))
    assert {name: getattr(copied.settings, name) for name in expected} == expected
    assert len(copied.notes) == 1  # that the rest is the default


def test_a_method_that_graft_has_not_is_said(folders: Folders) -> None:
    copied = copy_settings(folders, _run(folders, adapter_config={"peft_type": "BOFT", "target_modules": ["q_proj"]}))
    assert copied.settings.method == "LoRA"
    assert "BOFT" in copied.notes[0]


def test_what_peft_can_and_graft_cannot_say_becomes_the_default(folders: Folders) -> None:
    config = {"rank_pattern": {"q_proj, k_proj": 4}, "init_lora_weights": "loftq"}
    copied = copy_settings(folders, _run(folders, adapter_config=config))
    assert (copied.settings.rank_pattern, copied.settings.initialization) == ("", "default")
    assert any("Ranks of their own" in note for note in copied.notes)
    assert any("LoftQ" in note for note in copied.notes)


@pytest.mark.parametrize("files", [{}, {"settings": "{"}, {"training_parameters": "["}, {"adapter_config": "[]"}])
def test_nothing_or_damaged_files_are_a_sentence(folders: Folders, files: dict[str, str]) -> None:
    with pytest.raises(UserError, match="pirate"):
        copy_settings(folders, _run(folders, **files))
