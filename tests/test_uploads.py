"""Uploads are checked, stored whole, and never take another file's place unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.data_files import iter_rows
from training.errors import UserError
from training.paths import DATASET_SUFFIXES, Folders, data_files, list_data_files
from training.uploads import NameTaken, store_uploads

ROWS = json.dumps([{"question": "a", "answer": "b"}])
FORMAT = json.dumps({"instruction,output": "User: %instruction%\nAssistant: %output%"})


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    names = ("models", "datasets", "loras", "presets", "formats", "templates")
    folders = Folders(**{name: tmp_path / name for name in names})
    folders.make()
    return folders


def _upload(tmp_path: Path, name: str, text: str, place: str = "browser") -> Path:
    path = tmp_path / place / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _stored(folders: Folders) -> dict[str, str]:
    files = (path for path in folders.datasets.rglob("*") if path.is_file())
    return {path.relative_to(folders.datasets).as_posix(): path.read_text() for path in files}


def test_stored_under_their_names(folders: Folders, tmp_path: Path) -> None:
    files = [_upload(tmp_path, "My rows.JSON", ROWS), _upload(tmp_path, "book.txt", "Once.")]
    assert store_uploads(folders, files) == ["My rows.json", "book.txt"]
    assert _stored(folders) == {"My rows.json": ROWS, "book.txt": "Once."}


def test_unknown_columns_are_taken_for_they_can_be_assigned_later(folders: Folders, tmp_path: Path) -> None:
    assert store_uploads(folders, [_upload(tmp_path, "a.csv", "Frage;Antwort\n1;2\n")]) == ["a.csv"]
    assert list(iter_rows(folders.datasets / "a.csv")) == [{"Frage": "1", "Antwort": "2"}]


def test_a_taken_name_is_asked_about_before_anything_is_stored(folders: Folders, tmp_path: Path) -> None:
    store_uploads(folders, [_upload(tmp_path, "a.txt", "one"), _upload(tmp_path, "b.txt", "one")])
    again = [_upload(tmp_path, name, text) for name, text in (("new.txt", "x"), ("a.txt", "two"), ("b.txt", "one"))]
    with pytest.raises(NameTaken, match=r"already called 'a\.txt'") as caught:
        store_uploads(folders, again)
    assert caught.value.names == ["a.txt"]
    assert _stored(folders) == {"a.txt": "one", "b.txt": "one"}


def test_replace(folders: Folders, tmp_path: Path) -> None:
    store_uploads(folders, [_upload(tmp_path, "a.txt", "one")])
    assert store_uploads(folders, [_upload(tmp_path, "a.txt", "two")], on_conflict="replace") == ["a.txt"]
    assert _stored(folders) == {"a.txt": "two"}


def test_keep_both_stores_each_content_once(folders: Folders, tmp_path: Path) -> None:
    for text, name in (
        ("one", "a.txt"),
        ("two", "a-2.txt"),
        ("three", "a-3.txt"),
        ("two", "a-2.txt"),
        ("one", "a.txt"),
    ):
        assert store_uploads(folders, [_upload(tmp_path, "a.txt", text)], on_conflict="keep both") == [name]
    assert _stored(folders) == {"a.txt": "one", "a-2.txt": "two", "a-3.txt": "three"}


def test_a_folder_of_files(folders: Folders, tmp_path: Path) -> None:
    files = [_upload(tmp_path, "a.json", ROWS), _upload(tmp_path, "b.csv", "question,answer\n1,2\n")]
    assert store_uploads(folders, files, folder=" My set ") == ["My set/"]
    assert sorted(_stored(folders)) == ["My set/a.json", "My set/b.csv"]
    assert list_data_files(folders, DATASET_SUFFIXES) == ["My set/"]
    assert [path.name for path in data_files(folders, ["My set/"], DATASET_SUFFIXES)] == ["a.json", "b.csv"]


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ".hidden", "con", "taken.txt"])
def test_folder_names_that_cannot_be(folders: Folders, tmp_path: Path, name: str) -> None:
    (folders.datasets / "taken.txt").write_text("x")
    with pytest.raises(UserError):
        store_uploads(folders, [_upload(tmp_path, "a.json", ROWS)], folder=name)
    assert _stored(folders) == {"taken.txt": "x"}


def test_a_format_file_goes_to_the_formats(folders: Folders, tmp_path: Path) -> None:
    assert store_uploads(folders, [_upload(tmp_path, "my-format.json", FORMAT)], folder="x") == [
        "formats/my-format.json"
    ]
    assert (folders.formats / "my-format.json").read_text() == FORMAT and _stored(folders) == {}
    broken = FORMAT.replace("%output%", "%other%")
    with pytest.raises(UserError, match="other"):
        store_uploads(folders, [_upload(tmp_path, "broken.json", broken)])
    with pytest.raises(NameTaken):
        store_uploads(folders, [_upload(tmp_path, "my-format.json", FORMAT.replace("User", "Human"))])


def test_two_uploads_for_one_place(folders: Folders, tmp_path: Path) -> None:
    first, same, other = (
        _upload(tmp_path, "a.txt", text, place) for text, place in (("1", "x"), ("1", "y"), ("2", "z"))
    )
    with pytest.raises(UserError, match=r"Two of the files would be stored as 'a\.txt'"):
        store_uploads(folders, [first, other], on_conflict="keep both")
    assert _stored(folders) == {}
    assert store_uploads(folders, [first, same]) == ["a.txt"]
    assert store_uploads(folders, [first, same, other], folder="set") == ["set/"]
    assert _stored(folders) == {"a.txt": "1", "set/a.txt": "1", "set/a-2.txt": "2"}


def test_a_folder_is_never_replaced_by_a_file(folders: Folders, tmp_path: Path) -> None:
    (folders.datasets / "a.json").mkdir()
    with pytest.raises(UserError, match=r"'a\.json' is a folder"):
        store_uploads(folders, [_upload(tmp_path, "a.json", ROWS)], on_conflict="replace")


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("..json", "data.json"),
        ("<b>.json", "b.json"),
        ("čaj 1.json", "čaj 1.json"),
        ("cafe\u0301.json", "café.json"),
        ("a" * 200 + ".json", "a" * 60 + ".json"),
        ("日" * 70 + ".json", "日" * 20 + ".json"),
    ],
)
def test_odd_names_become_safe_ones(folders: Folders, tmp_path: Path, name: str, stored: str) -> None:
    source = _upload(tmp_path, "plain.json", ROWS)
    assert store_uploads(folders, [source.rename(source.with_name(name))]) == [stored]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", "not json", "not valid JSON"),
        ("a.json", "", "empty"),
        ("a.json", "[]", "no rows"),
        ("a.json", '[{"foo": 1}, 2]', "row 2"),
        ("a.jsonl", '{"foo": 1}\n{', "line 2"),
        ("a.txt", " \n", "empty"),
        ("a.exe", "x", "no kind"),
    ],
)
def test_useless_files_are_refused_and_nothing_is_stored(
    folders: Folders, tmp_path: Path, name: str, text: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        store_uploads(folders, [_upload(tmp_path, "good.txt", "fine"), _upload(tmp_path, name, text)])
    assert _stored(folders) == {}


def test_a_full_disk_is_told_and_leaves_nothing(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any, target: Path) -> None:
        target.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.uploads.shutil.copyfile", full)
    with pytest.raises(UserError, match=r"a\.txt could not be stored .*No space left"):
        store_uploads(folders, [_upload(tmp_path, "a.txt", "one")])
    assert _stored(folders) == {}
