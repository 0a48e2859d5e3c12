"""The declaration of all settings, and what is said about values that cannot be used."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from training import formats
from training.errors import SettingsError
from training.settings import Group, Optimizer, Scheduler, Settings, describe, parse, parse_runnable

PROMISED = {
    "base_model": "starter",
    "precision": "16-bit",
    "if_exists": "new version",
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
    "prefer_newline_cut": 128,
    "hard_cut_string": "\\n\\n\\n",
    "target_modules": ["all-linear"],
    "train_on_answers_only": True,
    "optimizer": "adamw_torch",
    "seed": 42,
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
        assert info.label[:1].isupper() and len(info.label) < 30, info.name
        assert info.help.endswith(".") and 20 < len(info.help) < 160, info.name
        assert info.group in Group
        assert info.kind in (bool, int, float, str, list)
    assert len({i.label for i in infos}) == len(infos)


def test_description_agrees_with_declaration() -> None:
    by_name = {i.name: i for i in describe()}
    assert by_name["precision"].choices == ("16-bit", "8-bit", "4-bit") and by_name["precision"].kind is str
    assert by_name["data_format"].choices == formats.NAMES
    assert by_name["target_modules"].kind is list and by_name["target_modules"].choices[0] == "all-linear"
    assert by_name["train_on_answers_only"].kind is bool


@pytest.mark.parametrize("info", describe(), ids=lambda info: info.name)
def test_bounds_and_choices_are_enforced(info: Any) -> None:
    declared = Settings.model_json_schema()["properties"][info.name]
    assert info.kind not in (int, float) or "minimum" in declared or "exclusiveMinimum" in declared
    for bound, beyond in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1), ("exclusiveMaximum", 0)):
        if bound in declared:
            assert info.name in problems(**{info.name: declared[bound] + beyond})
    if info.choices:
        assert info.name in problems(**{info.name: ["nonsense"] if info.kind is list else "nonsense"})
    for choice in info.choices:
        value = [choice] if info.kind is list else choice
        assert getattr(parse({info.name: value}), info.name) == value


def test_numbers_may_be_text() -> None:
    settings = parse({"learning_rate": " 1e-4 ", "batch_size": "64", "epochs": "0.5"})
    assert (settings.learning_rate, settings.batch_size, settings.epochs) == (1e-4, 64, 0.5)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("learning_rate", "fast", "Learning rate: 'fast' is not a number: write it like 0.0003 or 3e-4."),
        ("learning_rate", "1,5", "Learning rate: '1,5' is not a number: write it like 0.0003 or 3e-4."),
        ("learning_rate", "nan", "Learning rate: 'nan' is not a number: write it like 0.0003 or 3e-4."),
        ("learning_rate", float("inf"), "Learning rate: 'inf' is not a number: write it like 0.0003 or 3e-4."),
        ("learning_rate", 0, "Learning rate: 0 is too low: it must be above 0.0."),
        ("learning_rate", "", "Learning rate: it is empty: type a value."),
        ("learning_rate", None, "Learning rate: it is empty: type a value."),
        ("batch_size", "a few", "Batch size: 'a few' is not a whole number."),
        ("batch_size", 1.5, "Batch size: '1.5' is not a whole number."),
        ("batch_size", "9" * 5000, None),
        ("batch_size", 0, "Batch size: 0 is too low: the least is 1."),
        ("lora_dropout", 1, "LoRA dropout: 1 is too high: it must be below 1.0."),
        ("held_out_share", 0.9, "Held-out share: 0.9 is too high: the most is 0.5."),
        ("precision", "2-bit", "Load in: '2-bit' is not one of '16-bit', '8-bit' or '4-bit'."),
        ("data_format", "csv", None),
        ("target_modules", [], "Target modules: tick at least one."),
        ("target_modules", ["router"], None),
        ("target_modules", ["all-linear", "q_proj"], None),
        ("train_on_answers_only", "perhaps", None),
        ("dataset", 7, None),
        ("name", "a/b", None),
        ("name", "..", None),
    ],
)
def test_bad_value_gives_a_sentence_with_the_label(name: str, value: Any, sentence: str | None) -> None:
    found = problems(**{name: value})
    assert list(found) == [name]
    assert found[name].startswith(f"{Settings.model_fields[name].title}: ")
    assert found[name].endswith((".", ")."))
    assert "pydantic" not in found[name] and "Input should" not in found[name].split("(")[0]
    if sentence:
        assert found[name] == sentence


def test_all_problems_are_named_at_once() -> None:
    found = problems(learning_rate="x", batch_size=0, scheduler="zigzag", target_modules=[], name="a/b", nonsense=1)
    assert set(found) == {"learning_rate", "batch_size", "scheduler", "target_modules", "name", "nonsense"}
    assert found["nonsense"] == "there is no setting called 'nonsense'."


@pytest.mark.parametrize(
    ("values", "at"),
    [
        ({"batch_size": 2, "micro_batch_size": 4}, "micro_batch_size"),
        ({"raw_text": "a.txt", "cutoff_length": 128, "overlap_length": 128}, "overlap_length"),
        ({"raw_text": "a.txt", "dataset": "b.json"}, "dataset"),
        ({"scheduler": "reduce_lr_on_plateau", "held_out_share": 0}, "scheduler"),
    ],
)
def test_conflict_is_told_at_one_setting(values: dict[str, Any], at: str) -> None:
    found = problems(**values)
    assert list(found) == [at]
    assert found[at].startswith(f"{Settings.model_fields[at].title}: ")


def test_several_conflicts_are_told_together() -> None:
    found = problems(batch_size=1, micro_batch_size=2, scheduler="reduce_lr_on_plateau", held_out_share=0)
    assert set(found) == {"micro_batch_size", "scheduler"}


def test_plateau_scheduler_is_content_with_an_evaluation_file() -> None:
    parse({"scheduler": "reduce_lr_on_plateau", "held_out_share": 0, "evaluation_file": "e.json"})


def test_overlap_matters_only_for_raw_text() -> None:
    parse({"dataset": "d.json", "cutoff_length": 64, "overlap_length": 128})


@pytest.mark.parametrize("values", [[], "text", 3, None])
def test_no_object_at_all(values: Any) -> None:
    with pytest.raises(SettingsError):
        parse(values)


def test_json_round_trip() -> None:
    settings = parse({"name": "Ünïcode 名", "target_modules": ["q_proj", "v_proj"], "hard_cut_string": " --- "})
    assert parse(json.loads(settings.model_dump_json())) == settings
    assert settings.hard_cut_string == " --- "


def test_text_is_stripped() -> None:
    settings = parse({"name": " mine ", "dataset": " d.json\n"})
    assert (settings.name, settings.dataset) == ("mine", "d.json")


def test_default_list_is_not_shared() -> None:
    Settings().target_modules.append("q_proj")
    assert Settings().target_modules == ["all-linear"]


def test_choices_are_known_to_transformers() -> None:
    assert set(get_args(Scheduler)) <= {s.value for s in SchedulerType}
    assert set(get_args(Optimizer)) <= {o.value for o in OptimizerNames}


def test_runnable_needs_base_name_and_data() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_runnable({"base_model": ""})
    assert set(caught.value.problems) == {"base_model", "name", "dataset"}
    parse_runnable({"name": "mine", "raw_text": "book.txt"})


def test_all_that_is_wrong_or_missing_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_runnable({"name": " ", "learning_rate": "0,0003", "batch_size": 2, "micro_batch_size": 4})
    assert list(caught.value.problems) == ["name", "dataset", "micro_batch_size", "learning_rate"]
