"""Which format reads a file: the chosen one, the assigned columns, a format file, or the one that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import add_dataset, make_folders
from training import dataset_format as module
from training.data_files import FileError
from training.dataset_format import check_rows, dataset_format
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
    (folders.formats.parent / "outside.json").write_text('{"question,answer": "%question% -> %answer%"}')
    for name in ("none.json", "../outside.json", str(folders.formats.parent / "outside.json")):
        with pytest.raises(UserError, match=r"^There is no format file '.*' in .*formats: upload it or choose"):
            dataset_format(path, ROWS, name, folders)


@pytest.mark.parametrize(
    ("columns", "gone"),
    [
        (Columns(question="question", answer="reply"), "'reply'"),
        (Columns(question="frage", answer="reply"), "'frage', 'reply'"),
        (Columns(question="question", answer="answer", system="persona"), "'persona'"),
    ],
)
def test_assigned_columns_that_are_gone(folders: Folders, columns: Columns, gone: str) -> None:
    path = add_dataset(folders, ROWS)
    save_columns(path, columns)
    for name in (AUTO, COLUMNS):
        with pytest.raises(UserError, match=rf"^The columns assigned to pairs\.json are not .* any more \({gone}\): "):
            dataset_format(path, ROWS, name, folders)
    assert dataset_format(path, ROWS, "question-answer", folders)


def test_a_column_of_few_rows_is_not_gone(folders: Folders) -> None:
    path = add_dataset(folders, ROWS)
    save_columns(path, Columns(question="question", answer="answer", system="persona"))
    assert dataset_format(path, [*ROWS, {"persona": "P"}], AUTO, folders).name == COLUMNS


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


# Before a training starts


def test_check_takes_a_dataset_of_which_one_row_can_be_read(folders: Folders) -> None:
    rows = [{"question": "", "answer": "A"}, *ROWS]
    check_rows(add_dataset(folders, rows), AUTO, folders)
    check_rows(add_dataset(folders, [{"instruction": "I"}] * 3 + [{"instruction": "I", "output": "O"}]), AUTO, folders)


@pytest.mark.parametrize(
    ("rows", "name", "says"),
    [
        ([{"frage": 1}], AUTO, r"^pairs\.json: No row has the columns of a known format"),
        (ROWS, "alpaca", r"^No row of pairs\.json can be read as alpaca; row 1: 'instruction' is missing or empty\.$"),
        ([{"question": "Q", "answer": ""}], AUTO, r"^No row of pairs\.json .* row 1: 'answer' is missing or empty\.$"),
        ([{}, 2], "alpaca", r"^pairs\.json, row 2: it is a number"),
        (ROWS, "nosuch", r"^There is no data format 'nosuch'"),
    ],
)
def test_check_says_what_is_wrong(folders: Folders, rows: list[Any], name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_rows(add_dataset(folders, rows), name, folders)


@pytest.mark.parametrize(
    "first", [{"frage": 1}, {"instruction": "I", "output": ""}], ids=["no format", "another format"]
)
def test_what_the_first_rows_leave_open_is_not_refused(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, first: dict[str, Any]
) -> None:
    monkeypatch.setattr(module, "_FIRST_ROWS", 3)
    path = add_dataset(folders, [first] * 3 + ROWS * 9)
    check_rows(path, AUTO, folders)
    with pytest.raises(UserError):
        check_rows(add_dataset(folders, [first] * 3, "short.json"), AUTO, folders)
    with pytest.raises(UserError, match="No row"):
        check_rows(add_dataset(folders, [{"frage": 1}] * 9), "alpaca", folders)


def test_columns_that_the_first_rows_lack_are_not_refused(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_ROWS", 3)
    path = add_dataset(folders, ROWS * 5)
    save_columns(path, Columns(question="question", answer="answer", system="persona"))
    check_rows(path, AUTO, folders)
    add_dataset(folders, ROWS * 3)
    with pytest.raises(UserError, match="not in the file any more"):
        check_rows(path, AUTO, folders)
