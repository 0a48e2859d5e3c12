"""Every preset that ships loads, and a damaged one is named without hiding the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.errors import UserError
from training.parsing import parse_runnable
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders, data_files
from training.presets import FIRST_VISIT, Preset, load_preset, load_presets, values_of
from training.settings import Settings

SHIPPED = sorted(Folders.presets.glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_preset_is_valid_and_says_what_it_is_for(path: Path) -> None:
    preset = load_preset(path)
    assert preset.label
    assert preset.about.endswith(".")
    assert set(preset.settings) <= set(Settings.model_fields)
    for name, suffixes in (("dataset", DATASET_SUFFIXES), ("raw_text", TEXT_SUFFIXES)):
        if preset.settings.get(name):
            assert data_files(Folders(), preset.settings[name], suffixes)


def test_promised_presets_ship() -> None:
    labels = [preset.label for preset in load_presets(Folders())[0]]
    assert labels == ["Quick demo", "Style", "Knowledge", "Raw text", "QLoRA for a small GPU"]


def test_a_preset_leaves_alone_what_is_the_users_own() -> None:
    values = values_of(Preset(label="x", about="y", settings={"lora_rank": 4}))
    assert values["lora_rank"] == 4
    assert values["dora"] is False  # a setting it does not name is the default
    assert not {"base_model", "trust_remote_code", "start_from", "new_tokens", "name", "dataset"} & set(values)


def test_first_visit_can_be_started_as_it_stands() -> None:
    preset = next(p for p in load_presets(Folders())[0] if p.label == FIRST_VISIT)
    settings = parse_runnable(preset.settings)
    assert settings.base_model == "starter"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ('{"label": "x", "settings": {}}', "about"),
        ('{"label": "x", "about": "y", "settings": {"batch_sise": 3}}', "batch_sise"),
        ('{"label": "x", "about": "y", "settings": {"batch_size": 0}}', "Batch size"),
    ],
)
def test_damaged_preset_is_named(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError, match=word) as caught:
        load_preset(path)
    assert "mine.json" in str(caught.value)


def test_damaged_preset_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "1-bad.json").write_text("{")
    (tmp_path / "2-good.json").write_text('{"label": "Mine", "about": "Works.", "settings": {"epochs": 2}}')
    presets, problems = load_presets(Folders(presets=tmp_path))
    assert [p.label for p in presets] == ["Mine"]
    assert len(problems) == 1
    assert "1-bad.json" in problems[0]
