"""Several processes give what one gives, in the same order, and leave nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import add_dataset, make_folders, make_settings, make_tokenizer
from training import rows
from training.data import prepare
from training.encoding import Converted, Encoder
from training.formats import Conversation, Message, Text
from training.parallel_encoding import encode_in_processes, usable_processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")
TOKENIZER = make_tokenizer()


def batches(count: int = 7) -> Iterator[list[Converted]]:
    for number in range(count):
        turns = [Message(role="user", content=f"Q{number}"), Message(role="assistant", content=f"A{number}" * 9)]
        yield [Conversation(turns), Text(f"text {number}"), Conversation([Message(role="user", content="?")])]


def test_results_are_those_of_one_process_and_in_order() -> None:
    encoder = Encoder(TOKENIZER, "answers")
    alone = [[str(one) for one in batch] for batch in encoder.encode_all(batches())]
    together = [[str(one) for one in batch] for batch in encode_in_processes(encoder, batches(), 2)]
    assert together == alone
    assert len(alone) == 7 and "no turn is the assistant's" in alone[0][2]
    assert multiprocessing.active_children() == []


def test_reader_that_stops_leaves_no_process_behind() -> None:
    encoded = encode_in_processes(Encoder(TOKENIZER, "answers"), batches(50), 2)
    next(encoded)
    assert multiprocessing.active_children()
    encoded.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_killed_process_counts_as_memory_that_ran_out() -> None:
    encoded = encode_in_processes(Encoder(TOKENIZER, "answers"), batches(50), 2)
    next(encoded)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
    with pytest.raises(MemoryError, match="ended by the system"):
        list(encoded)


def test_programs_with_threads_do_not_fork() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        assert usable_processes() == 1
    finally:
        ended.set()
        thread.join()


def test_large_files_are_prepared_as_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = make_folders(tmp_path)
    add_dataset(folders, [{"question": f"Q{n}", "answer": "A" * (n % 90) or "."} for n in range(300)])
    settings = make_settings(cutoff_length=64, drop_duplicates=True)
    alone = prepare(settings, folders, TOKENIZER)
    monkeypatch.setattr(rows, "_LARGE", 0)
    monkeypatch.setattr(rows, "usable_processes", lambda: 2)
    monkeypatch.setattr(rows, "_BATCH", 32)
    folders_too = make_folders(tmp_path / "too")
    add_dataset(folders_too, [{"question": f"Q{n}", "answer": "A" * (n % 90) or "."} for n in range(300)])
    together = prepare(settings, folders_too, TOKENIZER)
    assert [alone.records[n] for n in range(300)] == [together.records[n] for n in range(300)]
    assert alone.sources == together.sources
    assert alone.train.lengths == together.train.lengths
