"""Names that may become files, data files found by name, and writing whole files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import make_folders
from training.errors import UserError
from training.paths import (
    MAX_NAME_LENGTH,
    TEXT_SUFFIXES,
    Folders,
    data_file,
    list_data_files,
    list_models,
    replaced_atomically,
    safe_name,
    write_atomically,
)


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


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        Folders(models=tmp_path / "file" / "models").make()


def test_data_file_by_name_or_path(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    inside, outside = folders.datasets / "a.json", tmp_path / "b.json"
    inside.touch()
    outside.touch()
    assert data_file(folders, "a.json") == inside.resolve()
    assert data_file(folders, str(outside)) == outside.resolve()


@pytest.mark.parametrize("name", ["", "  ", "none.json", "..", ".", "x" * 5000, "a\0b"])
def test_no_such_data_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        data_file(make_folders(tmp_path), name)


def test_lists(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    for name in ("b.TXT", "A.md", ".hidden.txt", "c.json"):
        (folders.datasets / name).touch()
    (folders.datasets / "folder.txt").mkdir()
    (folders.models / "whole").mkdir()
    (folders.models / "whole" / "config.json").touch()
    (folders.models / "empty").mkdir()
    assert list_data_files(folders, TEXT_SUFFIXES) == ["A.md", "b.TXT"]
    assert list_models(folders) == ["whole"]
    nowhere = Folders(models=tmp_path / "x", datasets=tmp_path / "y")
    assert list_data_files(nowhere, TEXT_SUFFIXES) == list_models(nowhere) == []


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
