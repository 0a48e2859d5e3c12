"""Names that may become files, data files found by name, and writing whole files."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny import make_folders
from training.errors import UserError
from training.paths import (
    DATASET_SUFFIXES,
    MAX_NAME_LENGTH,
    TEXT_SUFFIXES,
    Folders,
    data_files,
    list_data_files,
    list_models,
    replaced_atomically,
    safe_name,
    write_atomically,
)

_POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders, and asks for rights to link")


@pytest.mark.parametrize(
    "name", ["my-first-lora", "a", "Mixed Case_1.2-b", "日本語", "Ångström", "42", "x" * 80, "console"]
)
def test_good_name_stays(name: str) -> None:
    assert safe_name(name) == name


def test_name_is_stripped_and_composed() -> None:
    assert safe_name("  Cafe\u0301\n") == "Caf\u00e9"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " \t\n\u00a0\u3000",
        ".",
        "..",
        "...",
        "../up",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "..\\up",
        "C:",
        "C:evil",
        "a\u2215b",  # division slash
        "a\uff0fb",  # full-width slash
        "a\u2044b",  # fraction slash
        "a\uff3cb",  # full-width backslash
        "a\u2024\u2024b",  # one-dot leaders
        ".hidden",
        "dot.",
        "-_-",
        "con",
        "NUL.txt",
        "Com7",
        "lpt1.anything",
        "com\u00b9",  # Windows reserves the raised digits too
        "con .txt",
        "a\0b",
        "a\nb",
        "a\x1bb",
        "a\x7fb",
        "abc\u202egnp",  # bidirectional override
        "a\u200bb",  # zero width
        "a\ufeffb",
        "a\u2028b",
        "a\u00a0b",
        "\ud800",
        *(f"a{c}b" for c in "<>:\"|?*'`$%&;!#{}[]~^=+,@"),
        "x" * (MAX_NAME_LENGTH + 1),
        "\u65e5" * 30,
    ],
)
def test_hostile_name_is_refused_in_words(name: str) -> None:
    with pytest.raises(UserError) as caught:
        safe_name(name)
    message = str(caught.value)
    assert message.startswith("The name ")
    # What is shown must not itself break the page or the terminal.
    assert all(c.isprintable() for c in message)


def test_what_is_named_in_the_message() -> None:
    with pytest.raises(UserError, match=r"^The file's name is empty"):
        safe_name("", "The file's name")


def test_folders_are_made(tmp_path: Path) -> None:
    folders = make_folders(tmp_path / "deep" / "er")
    assert folders.models.is_dir() and folders.datasets.is_dir() and folders.loras.is_dir()
    folders.make()


def test_templates_of_a_test_are_copies(tmp_path: Path) -> None:
    copies, shipped = (set(folders.templates.iterdir()) for folders in (make_folders(tmp_path), Folders()))
    assert {path.name for path in copies} >= {path.name for path in shipped if path.suffix == ".jinja"}
    assert not copies & shipped


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        Folders(models=tmp_path / "file" / "models").make()


def _data(tmp_path: Path, *names: str) -> Folders:
    folders = make_folders(tmp_path)
    for name in names:
        path = folders.datasets / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folders


@_POSIX
def test_data_files_and_folders_in_their_order(tmp_path: Path) -> None:
    inside = ("set/b.json", "set/a.CSV", "set/deep/er/c.parquet", "x.json/d.tsv")
    others = ("set/.hidden.json", "set/.git/e.json", "set/notes.txt", "set/.a.CSV.columns")
    folders = _data(tmp_path, "z.jsonl", *inside, *others)
    outside = tmp_path / "outside.json"
    outside.touch()
    (folders.datasets / "set" / "gone.json").symlink_to("nowhere")
    os.mkfifo(folders.datasets / "set" / "pipe.json")
    anywhere = replace(folders, data_anywhere=True)
    found = data_files(anywhere, ["z.jsonl", "set", "x.json", str(outside)], DATASET_SUFFIXES)
    names = ["z.jsonl", *sorted(inside[:3]), "x.json/d.tsv"]
    assert found == [*(folders.datasets / name for name in names), outside]
    assert data_files(folders, ["set/"], TEXT_SUFFIXES) == [folders.datasets / "set" / "notes.txt"]


@_POSIX
@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "No data file is chosen"),
        (["", "a.json"], "No data file is chosen"),
        (["a.json", "none.json"], "There is no file or folder 'none.json'"),
        (["x" * 5000], "There is no file or folder"),
        (["a\0b"], "There is no file or folder"),
        (["a.txt"], "'a.txt' is of another kind"),
        (["empty"], "The folder 'empty' holds no file that ends in one of .json, .jsonl, .csv, .tsv, .parquet"),
        (["a.json", "a.json"], r"The file a\.json is chosen twice \('a.json' and 'a.json'\)"),
        (["set/b.json", "set/"], r"The file b\.json is chosen twice \('set/b.json' and 'set/'\)"),
        (["a.json", "same.json"], "The file a.json is chosen twice"),
        (["pipe.json"], "'pipe.json' is neither a file nor a folder"),
    ],
)
def test_data_files_that_cannot_be(tmp_path: Path, names: list[str], says: str) -> None:
    folders = _data(tmp_path, "a.json", "a.txt", "set/b.json", "empty/a.txt", "empty/.b.json")
    (folders.datasets / "same.json").symlink_to("a.json")
    os.mkfifo(folders.datasets / "pipe.json")
    with pytest.raises(UserError, match=says):
        data_files(folders, names, DATASET_SUFFIXES)


def test_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = _data(tmp_path, "set/a.json")

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(UserError, match=r"set cannot be read \(Permission denied\)"):
        data_files(folders, ["set"], DATASET_SUFFIXES)


def test_lists(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    for name in ("b.TXT", "A.md", ".hidden.txt", "c.json"):
        (folders.datasets / name).touch()
    (folders.datasets / "folder.txt").mkdir()
    for name in ("Set/deep/a.md", ".hidden/a.md", "Rows/a.json", "Secret/.a.md"):
        (folders.datasets / name).parent.mkdir(parents=True)
        (folders.datasets / name).touch()
    (folders.models / "whole").mkdir()
    (folders.models / "whole" / "config.json").touch()
    (folders.models / "empty").mkdir()
    assert list_data_files(folders, TEXT_SUFFIXES) == ["A.md", "b.TXT", "Set/"]
    assert list_models(folders) == ["whole"]
    nowhere = Folders(models=tmp_path / "x", datasets=tmp_path / "y")
    assert list_data_files(nowhere, TEXT_SUFFIXES) == list_models(nowhere) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_no_browser_could_show_is_left_out(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    Path(os.fsdecode(os.fsencode(folders.datasets) + b"/\xff.txt")).touch()
    assert list_data_files(folders, TEXT_SUFFIXES) == []


def test_writing_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old \u00e9")
    write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def fail() -> None:
        with replaced_atomically(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
