"""What is said about values that cannot be used, all at once and each in a plain sentence."""

from __future__ import annotations

from typing import Any

import pytest

from training.errors import SettingsError
from training.parsing import parse, parse_runnable
from training.settings import Settings


def problems(**values: Any) -> dict[str, str]:
    """What is wrong with these values, by setting."""
    with pytest.raises(SettingsError) as caught:
        parse(values)
    return caught.value.problems


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
        ("precision", "2-bit", "Load in: '2-bit' is not one of '32-bit', '16-bit', '8-bit' or '4-bit'."),
        ("data_format", "csv", None),
        ("target_modules", [], "Target modules: tick at least one."),
        ("target_pattern", "(q_proj", None),
        ("layer_range", "all", "Layers: 'all' names no layers: write it like 16-31, or 0-3, 28."),
        ("layer_range", "3-", None),
        ("rank_pattern", "q_proj", "Ranks of their own: 'q_proj' cannot be read: write it like q_proj=32, v_proj=8."),
        ("alpha_pattern", "q_proj=x", None),
        ("virtual_tokens", 0, "Virtual tokens: 0 is too low: the least is 1."),
        ("method", "magic", None),
        ("target_modules", ["all-linear", "q_proj"], None),
        ("train_on", "perhaps", None),
        ("drop_duplicates", "perhaps", None),
        ("dataset", 7, None),
        ("dataset", ["a.json", 7], None),
        ("raw_text", {"a": 1}, None),
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


@pytest.mark.parametrize("values", [[], "text", 3, None])
def test_no_object_at_all(values: Any) -> None:
    with pytest.raises(SettingsError):
        parse(values)


def test_runnable_needs_base_name_and_data() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_runnable({"base_model": ""})
    assert set(caught.value.problems) == {"base_model", "name", "dataset"}
    parse_runnable({"name": "mine", "raw_text": "book.txt"})


def test_all_that_is_wrong_or_missing_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_runnable({"name": " ", "learning_rate": "0,0003", "batch_size": 2, "micro_batch_size": 4})
    assert list(caught.value.problems) == ["name", "dataset", "micro_batch_size", "learning_rate"]
