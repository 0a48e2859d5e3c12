"""The Datasets tab in a real browser: from a file with strange columns to the tokens, the cutoff and a training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.server import Server
from training.run_state import Status
from training.runs import Run

if TYPE_CHECKING:
    from tests.conftest import Visit

pytestmark = pytest.mark.browser

SECOND = 1000  # milliseconds
CHECKED = 90 * SECOND  # the first check imports torch
TRAINED = 300 * SECOND
SCRIPT = "<img src=x onerror=\"document.title='caught'\"><script>document.title='caught'</script> &amp; <b>bold</b>"


def _open(page: Page) -> None:
    page.get_by_role("tab", name="Datasets").click()


def _upload(page: Page, *files: Path) -> None:
    page.locator("#data-upload-zone input[type=file]").set_input_files(files)


def _choose(page: Page, box: str, option: str) -> None:
    page.locator(f"#{box} input").click()
    page.locator(f"#{box}").get_by_role("option", name=option, exact=True).click()


def _tokens(page: Page, kind: str) -> str:
    """The text of all tokens of a kind, without the signs for new lines."""
    return "".join(page.locator(f"#data-example .data-tokens .token.{kind}").all_inner_texts()).replace("↵", "")


def _fact(page: Page, name: str) -> Locator:
    return page.locator(f"#data-summary .graft-facts div:has(span:text-is('{name}')) b")


def _write_csv(path: Path) -> None:
    """Rows with columns of other names; the 17th is long, the 20th is the 19th again, the 21st has no answer."""
    lines = [
        f'{n};"What is {n} and {n}?";"It is {n + n}. {SCRIPT.replace(chr(34), chr(34) * 2)}"' for n in range(1, 20)
    ]
    lines[16] = '17;"Tell me much.";"' + "The sea is wide and deep. " * 90 + '"'
    lines += ["20" + lines[18].removeprefix("19"), '21;"And then?";""']
    path.write_text("nr;ask;reply\n" + "\n".join(lines) + "\n", encoding="cp1252")


def test_from_a_strange_file_to_a_training(server: Server, page: Page, tmp_path: Path) -> None:
    """Upload, wrong columns mended, tokens seen, row 17 found, the cutoff raised from the histogram, a training."""
    file = tmp_path / "my questions.csv"
    _write_csv(file)
    _open(page)
    _upload(page, file)
    expect(page.locator("#data-summary")).to_contain_text("No row has the columns of a known format", timeout=CHECKED)
    expect(page.locator("#data-summary")).to_contain_text("'ask', 'reply'")

    _choose(page, "column-question", "reply")  # the wrong way round
    _choose(page, "column-answer", "ask")
    page.locator("#columns-assign").click()
    expect(page.locator("#data-example .token.trained").first).to_be_visible(timeout=CHECKED)
    assert "What is 1 and 1?" in _tokens(page, "trained")
    _choose(page, "column-question", "ask")
    _choose(page, "column-answer", "reply")
    page.locator("#columns-assign").click()
    trained = "[...document.querySelectorAll('.data-tokens .token.trained')].map((token) => token.innerText).join('')"
    page.wait_for_function(f"{trained}.startsWith('It is 2.')", timeout=CHECKED)
    # All of it is text: nothing of what stands in the file has run, and no element was made of it.
    assert _tokens(page, "trained") == f"It is 2. {SCRIPT}<|im_end|>"
    assert "What is 1 and 1?" in _tokens(page, "context")
    assert page.title() == "Graft"
    assert page.locator("#data-example img, #data-example script, #data-example .data-tokens b").count() == 0
    expect(_fact(page, "rows read")).to_have_text("21")
    expect(_fact(page, "duplicates")).to_have_text("1")
    expect(_fact(page, "empty answers")).to_have_text("1")
    expect(_fact(page, "dropped")).to_have_text("2")

    page.locator("#data-row input").fill("17")
    page.locator("#data-row input").press("Enter")
    expect(page.locator("#data-example")).to_contain_text("row 17 of my questions.csv")
    expect(page.locator("#data-example")).to_contain_text("dropped: longer than the cutoff of 512 tokens")
    assert _tokens(page, "cut").startswith(("The", " ", "sea", "is", "wide", "and", "deep", "."))
    page.locator("#data-search input, #data-search textarea").first.fill("what is 5 AND")
    page.keyboard.press("Enter")
    expect(page.locator("#data-example")).to_contain_text("row 5 of my questions.csv")

    page.locator("#data-lengths button[data-cutoff='1024']").click()
    expect(_fact(page, "dropped")).to_have_text("1", timeout=CHECKED)
    page.locator("#data-drop-duplicates").click()
    expect(_fact(page, "dropped")).to_have_text("2", timeout=CHECKED)
    page.locator("#data-left-out-box > button").click()
    expect(page.locator("#data-left-out")).to_contain_text("the same as row 19 of my questions.csv")
    page.locator("#data-left-out button[data-row='21']").click()
    expect(page.locator("#data-example")).to_contain_text("row 21 of my questions.csv")
    with page.expect_download() as download:
        page.locator("#data-download").click()
    assert "my questions.csv,21,dropped" in download.value.path().read_text(encoding="utf-8-sig")

    page.locator("#data-train").click()
    expect(page.locator("#setting-cutoff_length input")).to_have_value("1024")
    expect(page.locator("#setting-dataset .token")).to_contain_text("my questions.csv")
    page.locator("#setting-name input, #setting-name textarea").first.fill("strange")
    page.locator("#setting-epochs input, #setting-epochs textarea").first.fill("1")
    page.locator("#setting-epochs input, #setting-epochs textarea").first.blur()
    page.locator("#start").click()
    expect(page.locator("#form-message")).to_contain_text("has started", timeout=30 * SECOND)
    expect(page.locator("#monitor-status")).to_contain_text("Done", timeout=TRAINED)
    run = Run(server.folders.loras / "strange")
    assert run.state().status is Status.DONE
    receipt = json.loads(run.receipt_file.read_text())
    assert receipt["train_examples"] + receipt["evaluation_examples"] == 19
    assert receipt["data"][0]["format"] == "columns"


def test_check_button_leads_to_the_tokens_of_what_the_form_holds(page: Page) -> None:
    page.locator("#check").click()
    expect(page.locator("#data-example .token.trained").first).to_be_visible(timeout=CHECKED)
    expect(page.locator("#data-summary")).to_contain_text("car_warranty.json (alpaca, UTF-8)")
    expect(page.locator("#data-file input")).to_have_value("car_warranty.json")
    expect(_fact(page, "rows read")).to_have_text("54")
    expect(_fact(page, "steps in all")).to_have_text("105")
    assert "extended warranty" in _tokens(page, "trained")
    assert _tokens(page, "trained").endswith("<|im_end|>")
    assert _tokens(page, "context").startswith("<|im_start|>user")
    page.locator("#data-next").click()
    expect(page.locator("#data-example")).to_contain_text("row 2 of")
    page.locator("#data-previous").click()
    expect(page.locator("#data-example")).to_contain_text("row 1 of")
    page.locator("#data-previous").click()  # there is none before: it stays
    expect(page.locator("#data-example")).to_contain_text("row 1 of")
    _choose(page, "data-which", "dropped")
    expect(page.locator("#data-example")).to_contain_text("There are none that are dropped")
    _choose(page, "data-which", "held out")
    expect(page.locator("#data-example")).to_contain_text("held out for evaluation")


def test_same_name_asks_before_it_replaces(server: Server, page: Page, tmp_path: Path) -> None:
    def write(answer: str) -> None:
        (tmp_path / "twice.jsonl").write_text(json.dumps({"question": "Who?", "answer": answer}) + "\n" * 2)

    stored = server.folders.datasets / "twice.jsonl"
    _open(page)
    write("first")
    _upload(page, tmp_path / "twice.jsonl")
    expect(page.locator("#data-example")).to_contain_text("first", timeout=CHECKED)
    write("second")
    _upload(page, tmp_path / "twice.jsonl")
    question = page.locator("#data-upload-question")
    expect(question).to_contain_text("'twice.jsonl'", timeout=30 * SECOND)
    assert "first" in stored.read_text()
    page.locator("#data-upload-keep").click()
    expect(page.locator("#data-example")).to_contain_text("second", timeout=CHECKED)
    expect(question).to_be_hidden()
    assert "first" in stored.read_text()
    assert "second" in stored.with_name("twice-2.jsonl").read_text()
    write("third")
    _upload(page, tmp_path / "twice.jsonl")
    page.locator("#data-upload-replace").click()
    expect(page.locator("#data-example")).to_contain_text("third", timeout=CHECKED)
    assert "third" in stored.read_text()


def test_raw_text_is_shown_chunk_by_chunk_at_800_pixels(server: Server, visit: Callable[..., Visit]) -> None:
    seen = visit(server.url, viewport={"width": 800, "height": 1000})
    page = seen.page
    expect(page.locator("#start")).to_be_enabled(timeout=60 * SECOND)
    _open(page)
    _choose(page, "data-file", "lighthouse_keeper.txt")
    expect(page.locator("#data-summary")).to_contain_text("lighthouse_keeper.txt (raw text, UTF-8)", timeout=CHECKED)
    page.locator("#data-next").click()
    expect(page.locator("#data-example")).to_contain_text("from character")
    assert _tokens(page, "trained")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 800
    page.get_by_role("tab", name="Training").click()
    expect(page.locator("#setting-raw_text .token")).to_contain_text("lighthouse_keeper.txt")
    seen.assert_clean()


def test_broken_files_are_sentences_and_the_page_goes_on(page: Page, tmp_path: Path) -> None:
    _open(page)
    for name, content, says in (
        ("cut.json", b'[{"question": "a", "answer', "cut.json"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n" + bytes(200), "picture.txt"),
        ("empty.csv", b"", "empty.csv is empty"),
        ("program.exe", b"MZ", "program.exe"),
    ):
        (tmp_path / name).write_bytes(content)
        _upload(page, tmp_path / name)
        expect(page.locator("#data-upload-message [role=alert]")).to_contain_text(says, timeout=30 * SECOND)
    page.locator("#data-check-button").click()
    expect(page.locator("#data-example .token.trained").first).to_be_visible(timeout=CHECKED)
