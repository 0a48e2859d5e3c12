"""Uploads are checked, stored whole, and never take another file's place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.errors import UserError
from training.paths import Folders
from training.uploads import store_upload

ROWS = json.dumps([{"question": "a", "answer": "b"}])


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = Folders(models=tmp_path / "models", datasets=tmp_path / "datasets", loras=tmp_path / "loras")
    folders.make()
    return folders


def _upload(tmp_path: Path, name: str, text: str) -> Path:
    folder = tmp_path / "browser"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_stored_under_its_name(folders: Folders, tmp_path: Path) -> None:
    assert store_upload(folders, _upload(tmp_path, "My rows.JSON", ROWS)) == "My rows.json"
    assert (folders.datasets / "My rows.json").read_text() == ROWS
    assert store_upload(folders, _upload(tmp_path, "book.txt", "Once.")) == "book.txt"


def test_same_name_never_replaces_and_same_content_is_stored_once(folders: Folders, tmp_path: Path) -> None:
    assert store_upload(folders, _upload(tmp_path, "a.txt", "one")) == "a.txt"
    assert store_upload(folders, _upload(tmp_path, "a.txt", "two")) == "a-2.txt"
    assert store_upload(folders, _upload(tmp_path, "a.txt", "two")) == "a-2.txt"
    assert (folders.datasets / "a.txt").read_text() == "one"
    assert len(list(folders.datasets.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("..json", "data.json"),
        ("<b>.json", "b.json"),
        ("čaj 1.json", "čaj 1.json"),
        ("a" * 200 + ".json", "a" * 60 + ".json"),
    ],
)
def test_odd_names_become_safe_ones(folders: Folders, tmp_path: Path, name: str, stored: str) -> None:
    source = _upload(tmp_path, "plain.json", ROWS)
    assert store_upload(folders, source.rename(source.with_name(name))) == stored


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", "not json", "not valid JSON"),
        ("a.json", "", "empty"),
        ("a.json", "[]", "no rows"),
        ("a.json", '[{"foo": 1}]', "'foo'"),
        ("a.json", '[{"question": "a", "answer": ""}]', "row 1: 'answer' is missing or empty"),
        ("a.txt", " \n", "empty"),
        ("a.exe", "x", "no kind"),
    ],
)
def test_useless_files_are_refused_in_a_sentence(
    folders: Folders, tmp_path: Path, name: str, text: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        store_upload(folders, _upload(tmp_path, name, text))
    assert list(folders.datasets.iterdir()) == []
