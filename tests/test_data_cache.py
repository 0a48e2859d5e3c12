"""What was prepared is not prepared again, and nothing else is ever taken for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHATML, add_dataset, make_folders, make_settings, make_tokenizer
from training import data_cache
from training.data import PreparedData, prepare, set_template
from training.data_cache import cached
from training.encoding import Encoder
from training.errors import UserError
from training.formats import Columns, save_columns
from training.paths import DATASET_SUFFIXES, Folders, data_files, list_data_files
from training.prepared import Record, RecordWriter
from training.rows import LeftOut, Source
from training.settings import Settings

ROWS = [{"question": f"Q{n}", "answer": f"A{n}"} for n in range(6)]
TEXT = "\n\n\n".join(f"This is the text of document {n}." for n in range(6))
FORMAT = '{"question,answer": "%question% -> %answer%"}'


class Made(Exception):  # noqa: N818 - no error
    """Something is prepared."""


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = make_folders(tmp_path)
    add_dataset(folders, ROWS)
    (folders.datasets / "book.txt").write_text(TEXT)
    (folders.formats / "mine.json").write_text(FORMAT)
    return folders


def rows_settings(**changes: Any) -> Settings:
    return make_settings(**({"dataset": ["pairs.json"], "drop_duplicates": False} | changes))


def text_settings(**changes: Any) -> Settings:
    values = {"dataset": [], "raw_text": ["book.txt"], "cutoff_length": 64, "overlap_length": 8}
    return make_settings(**(values | changes))


def forbid_preparing(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: Any, **__: Any) -> Any:
        raise Made

    monkeypatch.setattr(Encoder, "encode_all", made)
    monkeypatch.setattr("training.data.make_chunks", made)


def content_of(data: PreparedData) -> tuple[Any, ...]:
    return [data.records[n] for n in range(len(data.records))], list(data.train), list(data.evaluation), data.sources


@pytest.mark.parametrize("make", [rows_settings, text_settings])
def test_second_start_prepares_nothing(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Settings]
) -> None:
    first = content_of(prepare(make(), folders, make_tokenizer()))
    forbid_preparing(monkeypatch)
    assert content_of(prepare(make(), folders, make_tokenizer())) == first
    # What has no part in it changes nothing: an earlier start with another name or rate is as good.
    other = make(name="other", learning_rate=1e-5, epochs=9, batch_size=2, precision="4-bit")
    assert content_of(prepare(other, folders, make_tokenizer())) == first


def test_rows_are_held_out_from_what_was_prepared_before(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(rows_settings(), folders, make_tokenizer())
    forbid_preparing(monkeypatch)
    assert len(prepare(rows_settings(held_out_share=0.5, seed=1), folders, make_tokenizer()).evaluation) == 3


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (rows_settings, {"cutoff_length": 500}),
        (rows_settings, {"train_on": "everything"}),
        (rows_settings, {"train_on": "last answer"}),
        (rows_settings, {"too_long": "cut its end"}),
        (rows_settings, {"drop_duplicates": True}),
        (rows_settings, {"data_format": "question-answer"}),
        (rows_settings, {"data_format": "mine.json"}),
        (text_settings, {"cutoff_length": 63}),
        (text_settings, {"overlap_length": 9}),
        (text_settings, {"prefer_line_cut": 5}),
        (text_settings, {"hard_cut_string": "of"}),
        (text_settings, {"minimum_length": 3}),
        (text_settings, {"held_out_share": 0.4}),
        (text_settings, {"held_out_share": 0}),
        (text_settings, {"seed": 9}),
    ],
)
def test_any_setting_of_the_data_makes_it_anew(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Settings], changes: dict[str, Any]
) -> None:
    prepare(make(), folders, make_tokenizer())
    forbid_preparing(monkeypatch)
    with pytest.raises(Made):
        prepare(make(**changes), folders, make_tokenizer())


def change_file(folders: Folders, _: PreTrainedTokenizerFast) -> None:
    add_dataset(folders, [*ROWS[:-1], {"question": "Q5", "answer": "A6"}])


def rename_file(folders: Folders, _: PreTrainedTokenizerFast) -> None:
    """The reasons and sources name the file."""
    (folders.datasets / "pairs.json").rename(folders.datasets / "new.json")


def assign_columns(folders: Folders, _: PreTrainedTokenizerFast) -> None:
    save_columns(folders.datasets / "pairs.json", Columns(question="answer", answer="question"))


def change_template(_: Folders, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML.replace("user", "User") + " "


def add_token(_: Folders, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens([AddedToken("Q1")])


def change_end(_: Folders, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = "<|eot|>"


@pytest.mark.parametrize("change", [change_file, rename_file, assign_columns, change_template, add_token, change_end])
def test_any_change_beside_the_settings_makes_it_anew(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, change: Callable[[Folders, PreTrainedTokenizerFast], None]
) -> None:
    prepare(rows_settings(), folders, make_tokenizer())
    tokenizer = make_tokenizer()
    change(folders, tokenizer)
    forbid_preparing(monkeypatch)
    name = "new.json" if change is rename_file else "pairs.json"
    with pytest.raises(Made):
        prepare(rows_settings(dataset=[name]), folders, tokenizer)


def test_change_of_the_format_file_makes_it_anew(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = rows_settings(data_format="mine.json")
    tokenizer = make_tokenizer()
    prepare(settings, folders, tokenizer)  # without its template, so that only the file's content is another
    (folders.formats / "mine.json").write_text(FORMAT.replace("->", "=>"))
    forbid_preparing(monkeypatch)
    with pytest.raises(Made):
        prepare(settings, folders, tokenizer)


def test_change_of_the_code_makes_it_anew(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(rows_settings(), folders, make_tokenizer())
    monkeypatch.setattr(data_cache, "_code_key", lambda: "newer")
    forbid_preparing(monkeypatch)
    with pytest.raises(Made):
        prepare(rows_settings(), folders, make_tokenizer())


def test_order_of_the_files_is_part_of_it(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    add_dataset(folders, ROWS, "b.json")
    prepare(rows_settings(dataset=["pairs.json", "b.json"]), folders, make_tokenizer())
    forbid_preparing(monkeypatch)
    with pytest.raises(Made):
        prepare(rows_settings(dataset=["b.json", "pairs.json"]), folders, make_tokenizer())


def test_named_template_is_another_than_the_own(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(rows_settings(), folders, make_tokenizer())
    tokenizer = make_tokenizer()
    set_template(tokenizer, rows_settings(chat_template="alpaca"), folders)
    forbid_preparing(monkeypatch)
    with pytest.raises(Made):
        prepare(rows_settings(chat_template="alpaca"), folders, tokenizer)


# Damage and interruptions


def prepared_folders(folders: Folders) -> list[Path]:
    return sorted(p for p in (folders.datasets / ".prepared").iterdir())


@pytest.mark.parametrize("file", ["records.arrow", "sources.json"])
@pytest.mark.parametrize("damage", ["removed", "empty", "cut", "nonsense"])
def test_damaged_data_is_made_anew(folders: Folders, file: str, damage: str) -> None:
    first = content_of(prepare(rows_settings(), folders, make_tokenizer()))
    (folder,) = prepared_folders(folders)
    path = folder / file
    match damage:
        case "removed":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case _:
            path.write_bytes(b'{"nonsense": [1, 2, 3]}' * 99)
    assert content_of(prepare(rows_settings(), folders, make_tokenizer())) == first
    assert prepared_folders(folders) == [folder]


@pytest.mark.parametrize(
    "content", ["[1]", "{}", "7", '{"records": 6}', '{"records": 6, "sources": [{}]}', '{"records": 5, "sources": []}']
)
def test_sources_of_another_shape_are_made_anew(folders: Folders, content: str) -> None:
    first = content_of(prepare(rows_settings(), folders, make_tokenizer()))
    (prepared_folders(folders)[0] / "sources.json").write_text(content)
    assert content_of(prepare(rows_settings(), folders, make_tokenizer())) == first


def test_records_that_break_off_between_two_batches_are_made_anew(
    folders: Folders,
) -> None:
    """As a computer that goes down leaves them: what is there reads well, and some of it is missing."""
    first = content_of(prepare(rows_settings(), folders, make_tokenizer()))
    (folder,) = prepared_folders(folders)
    with RecordWriter(folder / "records.arrow") as writer:
        writer.add(Record(0, 1, "text", [1, 2], [(0, 2)], 2))
    assert content_of(prepare(rows_settings(), folders, make_tokenizer())) == first


@pytest.mark.parametrize("error", [Made(), KeyboardInterrupt(), UserError("no")])
def test_preparation_that_is_ended_leaves_nothing(folders: Folders, error: BaseException) -> None:
    add_dataset(folders, ROWS * 200)

    def end(_: int) -> None:
        raise error

    with pytest.raises(type(error)):
        prepare(rows_settings(), folders, make_tokenizer(), end)
    assert prepared_folders(folders) == []
    assert len(prepare(rows_settings(), folders, make_tokenizer()).train)


def test_bad_row_in_the_middle_of_a_file_leaves_nothing(folders: Folders) -> None:
    path = folders.datasets / "pairs.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(UserError):
        prepare(rows_settings(), folders, make_tokenizer())
    assert not (folders.datasets / ".prepared").exists() or prepared_folders(folders) == []


# The store itself


def write_one(number: int) -> Callable[[RecordWriter], list[Source]]:
    def write(writer: RecordWriter) -> list[Source]:
        writer.add(Record(0, number, "text", [1, 2], [(0, 2)], 2))
        return [Source("a.json", "", "", "text", 1, cut=[LeftOut(1, "why")], empty_answers=[3])]

    return write


def test_longest_unused_are_forgotten(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_cache, "_KEPT", 2)
    for number, key in enumerate(("one", "two")):
        cached(folders, key, write_one(number))
        os.utime(folders.datasets / ".prepared" / key, (number, number))
    (folders.datasets / ".prepared" / "x.partial").mkdir()  # of another program at work
    cached(folders, "one", write_one(9))  # used again: the other is the oldest now
    cached(folders, "three", write_one(3))
    assert [p.name for p in prepared_folders(folders)] == ["one", "three", "x.partial"]


def test_newest_stays_where_the_clock_tells_nothing(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_cache, "_KEPT", 1)
    monkeypatch.setattr(data_cache, "_used_at", lambda folder: 1.0)
    for number, key in enumerate(("b", "c", "a")):
        records, _ = cached(folders, key, write_one(number))
        assert records[0].row == number
        assert [p.name for p in prepared_folders(folders)] == [key]


def test_same_data_made_twice_at_once(folders: Folders) -> None:
    """Another program was as fast: its data is taken, and this one's leaves no trace."""

    def write(writer: RecordWriter) -> list[Source]:
        cached(folders, "key", write_one(1))
        return write_one(2)(writer)

    records, sources = cached(folders, "key", write)
    assert records[0].row == 1 and sources[0].cut == [LeftOut(1, "why")] and sources[0].empty_answers == [3]
    assert [p.name for p in prepared_folders(folders)] == ["key"]


def test_prepared_data_is_no_data_of_the_user(folders: Folders) -> None:
    """Its folder is hidden: a folder of the user's files does not show or train it."""
    prepare(rows_settings(), folders, make_tokenizer())
    assert list_data_files(folders, DATASET_SUFFIXES) == ["pairs.json"]
    assert [p.name for p in data_files(folders, [str(folders.datasets)], DATASET_SUFFIXES)] == ["pairs.json"]
