"""Records come back from the disk as they were written, and make the examples that are trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import make_examples
from training import prepared
from training.prepared import IGNORED, Example, Record, Records, RecordWriter

FULL = Record(
    file=1,
    row=7,
    text="Q is it?\0 \U0001f469",
    input_ids=[5, 6, 7, 8],
    trained=[(1, 2), (3, 4)],
    kept=4,
    reason="why",
    character=9,
    held_out=True,
)


def stored(folder: Path, *records: Record) -> Records:
    with RecordWriter(folder / "records.arrow") as writer:
        for record in records:
            writer.add(record)
    return Records.open(folder / "records.arrow")


def test_trained_tokens_leave_out_what_nothing_predicts() -> None:
    assert Example([1, 2, 3], [1, IGNORED, 3], "").trained_tokens == 1
    assert Example([1], [1], "").trained_tokens == 0
    assert Record(0, 1, input_ids=[1, 2, 3], trained=[(0, 1), (2, 3)], kept=3).trained_tokens == 1
    assert Record(0, 1, input_ids=[1], trained=[(0, 1)], kept=1).trained_tokens == 0


def test_only_what_is_kept_is_trained() -> None:
    assert replace(FULL, kept=3).trained_tokens == 1
    assert replace(FULL, kept=0).trained_tokens == 0


spans = (
    st.lists(st.integers(0, 30), max_size=6, unique=True)
    .map(sorted)
    .map(lambda borders: list(zip(borders[::2], borders[1::2], strict=False)))
)
records = st.builds(
    Record,
    file=st.integers(0, 9),
    row=st.integers(1, 2**40),
    text=st.text(max_size=20),
    input_ids=st.lists(st.integers(0, 2**31 - 1), min_size=30, max_size=40),
    trained=spans,
    kept=st.integers(0, 30),
    reason=st.text(max_size=9),
    character=st.integers(0, 2**40),
    held_out=st.booleans(),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(records, max_size=8))
def test_records_come_back_as_they_were(written: list[Record]) -> None:
    with TemporaryDirectory() as folder:
        found = stored(Path(folder), *written)
        assert [found[n] for n in range(len(found))] == written
        assert found.column("kept").tolist() == [r.kept for r in written]
        assert found.column("trained_tokens").tolist() == [r.trained_tokens for r in written]
        assert found.column("digest").tolist() == [r.digest for r in written]
        assert found.lengths().tolist() == [len(r.input_ids) for r in written]
        assert found.texts().to_pylist() == [r.text for r in written]
        assert found.reasons().to_pylist() == [r.reason for r in written]
        examples = make_examples(Path(folder) / "more", written)
        used = [r for r in written if r.kept]
        assert examples.lengths == [r.kept for r in used]
        assert examples.trained_tokens == [r.trained_tokens for r in used] == [e.trained_tokens for e in examples]
        for example, record in zip(examples, used, strict=True):
            assert example.input_ids == list(record.input_ids)[: record.kept]
            trained = {n for start, end in record.trained for n in range(start, end)}
            assert example.labels == [i if n in trained else IGNORED for n, i in enumerate(example.input_ids)]


def test_many_records_reach_the_disk_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_ROWS_A_BATCH", 4)
    found = stored(tmp_path, *(Record(0, n, input_ids=[n, n], kept=2) for n in range(11)))
    assert found.column("row").tolist() == list(range(11))
    assert [list(found[n].input_ids) for n in (0, 3, 4, 10)] == [[0, 0], [3, 3], [4, 4], [10, 10]]


def test_records_of_nothing(tmp_path: Path) -> None:
    found = stored(tmp_path)
    assert len(found) == 0 and found.column("kept").tolist() == [] and found.lengths().tolist() == []


def test_digest_tells_tokens_and_masks_apart() -> None:
    assert FULL.digest == replace(FULL, row=1, file=0, text="", kept=0, reason="", character=0).digest
    assert FULL.digest != replace(FULL, input_ids=[5, 6, 7, 9]).digest
    assert FULL.digest != replace(FULL, trained=[(1, 3)]).digest
    # As the encoder gives them and as they come back from the disk.
    assert FULL.digest == replace(FULL, input_ids=np.array(FULL.input_ids)).digest


def test_examples_are_a_sequence_that_says_where_each_comes_from(tmp_path: Path) -> None:
    rows = [Record(0, n, input_ids=[n, n + 1], trained=[(0, 2)], kept=0 if n == 2 else 2) for n in range(1, 5)]
    examples = make_examples(tmp_path, [*rows, Record(0, 2, input_ids=[8, 9], kept=2, character=12_345)])
    assert len(examples) == 4
    assert [e.source for e in examples] == ["row 1", "row 3", "row 4", "document 2, character 12,345"]
    assert [e.input_ids[0] for e in examples[1:3]] == [3, 4] and examples[-1].input_ids == [8, 9]
    with pytest.raises(IndexError):
        examples[4]
