"""Which format reads a file: the chosen one, the assigned columns, a format file, or the one that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import add_dataset, make_folders
from training.data_files import FileError
from training.dataset_format import dataset_format
from training.errors import UserError
from training.formats import AUTO, COLUMNS, Columns, Conversation, Text, save_columns
from training.paths import Folders

ROWS: list[dict[str, Any]] = [{"question": "Q", "answer": "A"}]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return make_folders(tmp_path)


def test_auto_takes_what_fits_and_a_name_is_obeyed(folders: Folders) -> None:
    path = add_dataset(folders, ROWS)
    assert dataset_format(path, ROWS, AUTO, folders).name == "question-answer"
    assert dataset_format(path, ROWS, "alpaca", folders).name == "alpaca"


def test_assigned_columns_are_taken_by_auto_and_by_their_name_only(folders: Folders) -> None:
    path = add_dataset(folders, ROWS)
    save_columns(path, Columns(question="answer", answer="question"))
    for name in (AUTO, COLUMNS):
        converted = dataset_format(path, ROWS, name, folders).convert(ROWS[0])
        assert isinstance(converted, Conversation) and converted.messages[0]["content"] == "A"
    assert dataset_format(path, ROWS, "question-answer", folders).name == "question-answer"


def test_columns_that_are_not_assigned(folders: Folders) -> None:
    path = add_dataset(folders, ROWS)
    with pytest.raises(UserError, match=r"columns of pairs.json are not assigned: do that on the Datasets tab"):
        dataset_format(path, ROWS, COLUMNS, folders)


def test_format_file(folders: Folders) -> None:
    path = add_dataset(folders, ROWS)
    (folders.formats / "mine.json").write_text('{"question,answer": "%question% -> %answer%"}')
    converted = dataset_format(path, ROWS, "mine.json", folders).convert(ROWS[0])
    assert isinstance(converted, Text | Conversation)
    with pytest.raises(UserError, match=r"none\.json"):
        dataset_format(path, ROWS, "none.json", folders)


def test_nothing_fits_names_the_file_once(folders: Folders) -> None:
    path = add_dataset(folders, ROWS)
    with pytest.raises(UserError, match=r"^pairs\.json: No row has the columns") as caught:
        dataset_format(path, [{"frage": 1}], AUTO, folders)
    assert str(caught.value).count("pairs.json") == 1


def test_damaged_file_says_itself_what_is_wrong(folders: Folders) -> None:
    def rows() -> Any:
        yield ROWS[0]
        raise FileError("pairs.json has a broken line 2.")

    with pytest.raises(FileError, match=r"^pairs\.json has a broken line 2\.$"):
        dataset_format(add_dataset(folders, ROWS), rows(), AUTO, folders)
