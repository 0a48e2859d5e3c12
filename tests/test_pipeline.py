"""From a file to the adapter: what the check shows, training trains, and what was trained, chat asks for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.tiny import (
    KINDS,
    add_base,
    add_dataset,
    make_folders,
    make_settings,
    make_tokenizer,
    make_tokenizer_like,
    text_of,
)
from training.data import prepare, set_template
from training.data_check import check_data
from training.generation import _encode
from training.paths import PROJECT, Folders
from training.pipeline import train_run
from training.prepared import IGNORED
from training.run_store import create_run
from training.runs import Run

FORMAT_FILE = "user-assistant.json"
ANSWERS = ["the ant", "Yes 😀", " an", "\nan", "  the"]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = make_folders(tmp_path)
    shutil.copy(PROJECT / "formats" / FORMAT_FILE, made.formats)
    add_base(made)
    return made


def trained(folders: Folders, **changes: Any) -> Run:
    run = create_run(folders, make_settings(**({"epochs": 1} | changes)))
    assert train_run(run, folders)
    return run


def saved_template(run: Run) -> str:
    return str(AutoTokenizer.from_pretrained(str(run.folder)).chat_template)


@pytest.mark.parametrize("kind", ["bytes", *KINDS])
def test_format_file_trains_the_answer_to_what_chat_will_ask(folders: Folders, kind: str) -> None:
    tokenizer = make_tokenizer() if kind == "bytes" else make_tokenizer_like(kind)
    add_dataset(folders, [{"instruction": "the hen?", "output": answer} for answer in ANSWERS])
    settings = make_settings(data_format=FORMAT_FILE, held_out_share=0)
    assert FORMAT_FILE in set_template(tokenizer, settings, folders)
    prompt = _encode(tokenizer, [{"role": "user", "content": "the hen?"}])
    starts = kind in ("llama", "gemma")  # these begin every text with their start token
    assert (prompt[0] == tokenizer.bos_token_id) is starts
    assert text_of(tokenizer, prompt[starts:]) == "User: the hen?\nAssistant: "
    data = prepare(settings, folders, tokenizer)
    assert len(data.train) == len(ANSWERS)
    for example, answer in zip(data.train, ANSWERS, strict=True):
        first = next(place for place, label in enumerate(example.labels) if label != IGNORED)
        assert example.input_ids[:first] == prompt
        assert example.labels[first:] == example.input_ids[first:]
        # Of the whole, since some decoders take a space from the beginning of what they are given.
        whole = text_of(tokenizer, example.input_ids)
        assert whole.removeprefix(text_of(tokenizer, prompt)) == f"{answer}{tokenizer.eos_token}"


def test_format_file_is_the_template_of_the_saved_adapter(folders: Folders) -> None:
    add_dataset(folders, [{"instruction": f"Q{n}", "input": "", "output": "yes"} for n in range(8)])
    run = trained(folders, data_format=FORMAT_FILE)
    assert "Assistant: " in saved_template(run)
    assert json.loads(run.receipt_file.read_text())["data"][0]["format"] == FORMAT_FILE


def test_named_template_is_saved_with_the_adapter(folders: Folders) -> None:
    add_dataset(folders)
    run = trained(folders, chat_template="zephyr")
    assert saved_template(run) == (PROJECT / "templates" / "zephyr.jinja").read_text()
    checkpoint = AutoTokenizer.from_pretrained(str(run.folder))
    text = checkpoint.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|user|>\nHi<|im_end|>\n"


def test_what_the_check_counts_is_what_is_trained(folders: Folders) -> None:
    rows = [{"question": f"Q{n}", "answer": "yes" if n % 5 else ""} for n in range(30)]
    add_dataset(folders, [*rows, {"question": "Q1", "answer": "long " * 200}])
    settings = make_settings(epochs=1, batch_size=3, warmup=0.4)
    report = check_data(settings, folders).report
    receipt = json.loads(trained(folders, batch_size=3, warmup=0.4).receipt_file.read_text())
    told = {
        "train_examples": report.train_examples,
        "evaluation_examples": report.held_out_examples,
        "steps_per_epoch": report.steps_per_epoch,
        "total_steps": report.total_steps,
        "warmup_steps": report.warmup_steps,
        "tokens_per_epoch": report.tokens,
        "trained_tokens_per_epoch": report.trained_tokens,
    }
    assert told == {name: receipt[name] for name in told}
    assert (report.rows_read, report.dropped, report.empty_answers) == (31, 7, 6)
    assert report.total_steps == 7 and report.warmup_steps == 3
