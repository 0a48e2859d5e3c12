"""The declaration of all settings: defaults, bounds, labels, and the names that earlier versions used."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from training import formats
from training.errors import SettingsError
from training.parsing import parse
from training.settings import FULL, Group, Method, Optimizer, Scheduler, Settings
from training.settings_info import describe

PROMISED = {
    "base_model": "starter",
    "precision": "16-bit",
    "if_exists": "ask",
    "batch_size": 32,
    "micro_batch_size": 4,
    "epochs": 3.0,
    "learning_rate": 3e-4,
    "scheduler": "cosine",
    "warmup": 0.1,
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "cutoff_length": 512,
    "overlap_length": 128,
    "prefer_line_cut": 128,
    "hard_cut_string": "\\n\\n\\n",
    "target_modules": ["all-linear"],
    "train_on": "answers",
    "optimizer": "adamw_torch",
    "seed": 42,
    "dataset": [],
    "raw_text": [],
    "chat_template": "",
    "too_long": "drop the example",
    "drop_duplicates": False,
    "minimum_length": 8,
    "method": "LoRA",
    "quantization_type": "NF4",
    "double_quantization": True,
    "trust_remote_code": False,
    "start_from": "",
    "rank_stabilized": False,
    "dora": False,
    "initialization": "default",
    "lora_plus_ratio": 1.0,
    "train_fully": [],
    "new_tokens": [],
    "neftune_noise": 0.0,
    "label_smoothing": 0.0,
}


def problems(**values: Any) -> dict[str, str]:
    """What is wrong with these values, by setting."""
    with pytest.raises(SettingsError) as caught:
        parse(values)
    return caught.value.problems


@pytest.mark.parametrize(("name", "value"), PROMISED.items())
def test_default(name: str, value: Any) -> None:
    assert getattr(Settings(), name) == value


def test_defaults_pass_their_own_validation() -> None:
    defaults = Settings()
    assert parse(defaults.model_dump()) == defaults


def test_every_setting_is_declared_in_full() -> None:
    infos = describe()
    assert [i.name for i in infos] == list(Settings.model_fields)
    for info in infos:
        assert not info.label[:1].islower() and len(info.label) < 30, info.name
        assert info.help.endswith(".") and 20 < len(info.help) < 160, info.name
        assert info.group in Group
        assert info.kind in (bool, int, float, str, list)
        assert set(info.methods) <= set(get_args(Method))
    assert len({i.label for i in infos}) == len(infos)


def test_description_agrees_with_declaration() -> None:
    by_name = {i.name: i for i in describe()}
    assert by_name["precision"].choices == ("32-bit", "16-bit", "8-bit", "4-bit") and by_name["precision"].kind is str
    assert by_name["data_format"].choices == formats.NAMES
    assert by_name["target_modules"].kind is list and by_name["target_modules"].choices[0] == "all-linear"
    assert by_name["drop_duplicates"].kind is bool
    assert by_name["dataset"].kind is list and by_name["dataset"].choices == ()
    assert by_name["dora"].methods == ("LoRA",) and by_name["epochs"].methods == ()
    assert FULL in by_name["new_tokens"].methods and FULL not in by_name["train_fully"].methods


@pytest.mark.parametrize("info", describe(), ids=lambda info: info.name)
def test_bounds_and_choices_are_enforced(info: Any) -> None:
    declared = Settings.model_json_schema()["properties"][info.name]
    assert info.kind not in (int, float) or "minimum" in declared or "exclusiveMinimum" in declared
    for bound, beyond in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1), ("exclusiveMaximum", 0)):
        if bound in declared:
            assert info.name in problems(**{info.name: declared[bound] + beyond})
    if info.choices and info.kind is not list:  # target modules may have any name
        assert info.name in problems(**{info.name: "nonsense"})
    for choice in info.choices:
        value = [choice] if info.kind is list else choice
        beside = {"precision": "4-bit"} if choice == "LoftQ" else {}
        assert getattr(parse(beside | {info.name: value}), info.name) == value


def test_plateau_scheduler_is_content_with_an_evaluation_file() -> None:
    parse({"scheduler": "reduce_lr_on_plateau", "held_out_share": 0, "evaluation_file": "e.json"})


def test_overlap_matters_only_for_raw_text() -> None:
    parse({"dataset": "d.json", "cutoff_length": 64, "overlap_length": 128})


def test_json_round_trip() -> None:
    settings = parse({"name": "Ünïcode 名", "target_modules": ["q_proj", "v_proj"], "hard_cut_string": " --- "})
    assert parse(json.loads(settings.model_dump_json())) == settings
    assert settings.hard_cut_string == " --- "


def test_text_is_stripped() -> None:
    settings = parse({"name": " mine ", "dataset": [" d.json\n", " "], "evaluation_file": " e.json "})
    assert (settings.name, settings.dataset, settings.evaluation_file) == ("mine", ["d.json"], "e.json")


def test_default_list_is_not_shared() -> None:
    Settings().target_modules.append("q_proj")
    assert Settings().target_modules == ["all-linear"]


def test_choices_are_known_to_transformers() -> None:
    assert set(get_args(Scheduler)) <= {s.value for s in SchedulerType}
    assert set(get_args(Optimizer)) <= {o.value for o in OptimizerNames}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"train_on_answers_only": True}, {"train_on": "answers"}),
        ({"train_on_answers_only": False}, {"train_on": "everything"}),
        ({"train_on_answers_only": False, "train_on": "last answer"}, {"train_on": "last answer"}),
        ({"prefer_newline_cut": 5}, {"prefer_line_cut": 5}),
        ({"prefer_newline_cut": 5, "prefer_line_cut": 6}, {"prefer_line_cut": 6}),
        ({"dataset": " d.json ", "raw_text": ""}, {"dataset": ["d.json"], "raw_text": []}),
        ({"raw_text": "t.txt"}, {"raw_text": ["t.txt"]}),
        ({"gradient_checkpointing": True}, {"gradient_checkpointing": "always"}),
        ({"gradient_checkpointing": False}, {"gradient_checkpointing": "when memory needs it"}),
    ],
)
def test_settings_of_earlier_versions_are_read(old: dict[str, Any], new: dict[str, Any]) -> None:
    given = dict(old)
    assert parse(old) == parse(new)
    assert old == given  # what the caller holds stays as it is


@pytest.mark.parametrize("name", ["columns", "mine.json"])
def test_data_format_may_be_the_users_own(name: str) -> None:
    assert parse({"data_format": name}).data_format == name


@pytest.mark.parametrize(
    ("text", "layers"),
    [("", None), ("3", [3]), ("16-18", [16, 17, 18]), ("0-2, 28", [0, 1, 2, 28]), (" 5 - 6,5", [5, 6])],
)
def test_layers_are_read_from_their_range(text: str, layers: list[int] | None) -> None:
    assert parse({"layer_range": text}).layers == layers


@pytest.mark.parametrize(
    ("values", "at"),
    [
        ({"method": FULL, "precision": "4-bit"}, "precision"),
        ({"method": FULL, "start_from": "mine"}, "start_as"),
        ({"initialization": "PiSSA", "train_fully": ["lm_head"]}, "initialization"),
        ({"method": "prompt tuning", "new_tokens": ["<a>"]}, "new_tokens"),
        ({"target_pattern": ".*q_proj", "layer_range": "0-1"}, "layer_range"),
        ({"method": "prefix tuning", "gradient_checkpointing": "always"}, "gradient_checkpointing"),
        ({"initialization": "PiSSA", "precision": "8-bit"}, "initialization"),
        ({"initialization": "OLoRA", "dora": True}, "initialization"),
        ({"initialization": "LoftQ"}, "initialization"),
        ({"initialization": "EVA", "rank_pattern": "q_proj=2"}, "rank_pattern"),
        ({"initialization": "EVA", "start_from": "mine"}, "initialization"),
    ],
)
def test_what_a_method_cannot_be_combined_with_is_told(values: dict[str, Any], at: str) -> None:
    assert list(problems(**values)) == [at]


def test_what_does_not_belong_to_the_method_is_no_problem() -> None:
    parse({"method": "IA3", "initialization": "LoftQ"})
    parse({"method": "prefix tuning", "gradient_checkpointing": "when memory needs it"})
    parse({"initialization": "EVA", "start_from": "mine", "start_as": "merge it into the base"})
