"""Reading data files: what is accepted, and what is said of a file that is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.dataset_files import check_rows, read_rows, read_text
from training.errors import UserError


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", '[{"a": "é"}, {"a": 2}]'),
        ("windows.json", b'\xef\xbb\xbf[{"a": "\xc3\xa9"},\r\n {"a": 2}]'),
        ("wrapped.json", '{"version": 1, "data": [{"a": "é"}, {"a": 2}]}'),
        ("lines.jsonl", '{"a": "é"}\n{"a": 2}'),
        ("LINES.JSONL", '\n{"a": "é"}\r\n\r\n{"a": 2}\n\n'),
    ],
)
def test_rows(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert read_rows(written(tmp_path, name, content)) == [{"a": "é"}, {"a": 2}]


def test_line_separators_inside_text_do_not_end_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"a": "x\u2028y\u0085z"}\n')
    assert read_rows(path) == [{"a": "x\u2028y\u0085z"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", "a.json is empty"),
        ("a.json", " \n", "a.json is empty"),
        ("a.json", b"\xef\xbb\xbf", "a.json is empty"),
        ("a.json", "[]", "a.json holds no rows"),
        ("a.json", '[{"a": 1},\n {"a": ', "a.json is not valid JSON: Expecting value at line 2, column 8"),
        ("a.json", "question,answer\n1,2", "a.json is not valid JSON: Expecting value at line 1, column 1"),
        ("a.json", '{"a": 1}', "a.json holds an object; a dataset is a list of rows"),
        ("a.json", '{"a": [], "b": []}', "a.json holds an object"),
        ("a.json", "7", "a.json holds a number"),
        ("a.json", "null", r"a.json holds nothing \(null\)"),
        ("a.json", '[{"a": 1}, ["b"]]', "a.json, row 2: it is a list and not an object"),
        ("a.json", '["text"]', "a.json, row 1: it is text"),
        ("a.json", "[" * 100_000, "a.json is nested too deeply"),
        ("a.json", '{"a":' * 100_000, "a.json is nested too deeply"),
        ("a.json", f'[{{"a": {"9" * 5000}}}]', "a.json holds a number too long"),
        ("a.json", b"\xff\xfe[\x00", r"a.json is not UTF-8 text \(byte 1\)"),
        ("a.json", b'[{"a": "caf\xe9"}]', r"a.json is not UTF-8 text \(byte 12\)"),
        ("a.jsonl", '{"a": 1}\n\n{"a": }', "a.jsonl, line 3 is not valid JSON: Expecting value at column 7"),
        ("a.jsonl", '{"a": 1} {"a": 2}', "a.jsonl, line 1 is not valid JSON: Extra data"),
        ("a.jsonl", '{"a": 1}\n' + "[" * 100_000, "a.jsonl, line 2 is nested too deeply"),
        ("a.jsonl", f'{{"a": {"9" * 5000}}}', "a.jsonl, line 1 holds a number too long"),
        ("a.jsonl", '{"a": 1}\n3', "a.jsonl, row 2: it is a number"),
    ],
)
def test_broken_file_is_told_in_words(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        read_rows(written(tmp_path, name, content))


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path)


def test_text_keeps_its_characters(tmp_path: Path) -> None:
    assert read_text(written(tmp_path, "a.txt", b"\xef\xbb\xbf one\r\ntwo \n")) == " one\ntwo \n"


def test_check_finds_the_format_or_says_what_is_wrong(tmp_path: Path) -> None:
    good = written(tmp_path, "a.json", '[{"question": "", "answer": "A"}, {"question": "Q", "answer": "A"}]')
    assert check_rows(good, "auto").name == "question-answer"
    with pytest.raises(UserError, match=r"No row of a.json can be read as alpaca; row 1: 'instruction' is missing"):
        check_rows(good, "alpaca")
    with pytest.raises(UserError, match=r"^b.json: No row has the keys"):
        check_rows(written(tmp_path, "b.json", '[{"frage": 1}]'), "auto")
