"""The Datasets tab's logic: a check of what the form holds, its problems, the columns, and the way through the rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from tests.pages import fire
from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training.data_check import DataCheck
from training.formats import Columns, columns_file, load_columns, save_columns
from training.paths import Folders
from training.supervisor import Supervisor
from training.token_view import Show
from ui.datasets_tab import DatasetsTab
from ui.training_tab import DATASET, RAW_TEXT, TrainingTab

NASTY = "<img src=x onerror=alert(1)>"
COLUMNS = ["question", "extra", "answer", "system", "text", "conversation"]
SKIPPED = (gr.skip(),) * 3


class Bench:
    """The tab over folders with a tiny base model."""

    def __init__(self, root: Path) -> None:
        self.folders: Folders = make_folders(root)
        add_base(self.folders)
        with gr.Blocks() as self.page:
            self.training = TrainingTab(self.folders, Supervisor(self.folders))
            self.tab = DatasetsTab(self.folders, self.training)
            self.training.wire(self.page)
            self.tab.wire(self.page)

    def form(self, values: dict[str, Any], **changes: Any) -> list[Any]:
        """The form's values with these in it, as the browser sends them."""
        shown = self.training.form.fill(values | changes)
        return [shown[control]["value"] for control in self.training.form.components]

    def check(self, kind: str = DATASET, **changes: Any) -> dict[Any, Any]:
        return self.check_values(kind, make_settings(**changes).model_dump(mode="json"))

    def check_values(self, kind: str, values: dict[str, Any], **changes: Any) -> dict[Any, Any]:
        return self.tab._check(kind, *self.form(values, **changes))

    def checked(self, **changes: Any) -> DataCheck:
        found = self.check(**changes)[self.tab._check_state]
        assert isinstance(found, DataCheck)
        return found

    def columns(self, updates: dict[Any, Any]) -> dict[str, str]:
        """What is assigned to each role, as the boxes show it."""
        return {role: updates[box]["value"] for role, box in self.tab._columns.items() if updates[box]["value"]}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    add_dataset(bench.folders)
    return bench


def failed(bench: Bench, updates: dict[Any, Any]) -> str:
    """The problems that are shown, and nothing else is."""
    tab = bench.tab
    assert updates[tab._check_state] is None
    assert not any(updates[box]["visible"] for box in (tab._details, tab._drop_copies, tab._fit_all))
    assert 'role="alert"' in updates[tab._summary]
    return str(updates[tab._summary])


def row_of(bench: Bench, shown: tuple[Any, Any, Any]) -> int:
    """The row that stands in its box, which is that of the example; the number is that of its record."""
    number, row, html = shown
    assert f"row {row:,} of" in html and number == row - 1
    return int(row)


# A check


def test_found_data_is_shown_from_its_first_record(bench: Bench) -> None:
    updates, tab = bench.check(), bench.tab
    assert updates[tab._details]["visible"] and isinstance(updates[tab._check_state], DataCheck)
    assert "pairs.json (question-answer, UTF-8)" in updates[tab._summary]
    assert row_of(bench, (updates[tab._number], updates[tab._row]["value"], updates[tab._example])) == 1
    assert updates[tab._which] == "all"
    assert "data-histogram" in updates[tab._lengths] and "used whole" in updates[tab._left_out]
    assert updates[tab._file]["value"] == "pairs.json" and updates[tab._file]["choices"] == ["pairs.json"]
    assert set(updates) == tab._checked, "every part of the tab is told, so that nothing old stays"


def test_no_file(bench: Bench) -> None:
    assert "No data file is chosen" in failed(bench, bench.check(dataset=[]))
    assert "No data file is chosen" in failed(bench, bench.check(RAW_TEXT, dataset=["pairs.json"]))


def test_wrong_settings_are_all_told_and_the_file_stays_chosen(bench: Bench) -> None:
    values = make_settings().model_dump(mode="json")
    updates = bench.check_values(DATASET, values, cutoff_length=None, epochs="many", name=f"a{NASTY}")
    html = failed(bench, updates)
    assert html.count("<li>") == 3 and "Epochs: " in html and "<img" not in html
    assert updates[bench.tab._file]["value"] == "pairs.json"


def test_file_that_is_gone(bench: Bench) -> None:
    html = failed(bench, bench.check(dataset=[f"{NASTY}.json"]))
    assert "There is no file or folder" in html and "<img" not in html


def test_only_the_chosen_kind_of_data_is_checked(bench: Bench) -> None:
    (bench.folders.datasets / "book.txt").write_text("Once upon a time. " * 50)
    values = make_settings(overlap_length=0, cutoff_length=64).model_dump(mode="json")
    both = values | {"dataset": ["pairs.json"], "raw_text": ["book.txt"]}
    assert "pairs.json (question-answer" in bench.check_values(DATASET, both)[bench.tab._summary]
    updates = bench.check_values(RAW_TEXT, both)
    assert "book.txt (raw text, UTF-8)" in updates[bench.tab._summary]
    assert updates[bench.tab._file]["value"] == "book.txt"
    assert updates[bench.tab._columns_box]["visible"] is False
    assert updates[bench.tab._left_out_box]["visible"] is False, "no document is dropped"
    assert updates[bench.tab._drop_copies]["visible"] is updates[bench.tab._fit_all]["visible"] is False


def test_text_without_a_document_is_shown_as_nothing(bench: Bench) -> None:
    (bench.folders.datasets / "blank.txt").write_text("---\n---")
    found = bench.check(RAW_TEXT, dataset=[], raw_text=["blank.txt"], hard_cut_string="---")
    assert "Nothing is left to train on." in found[bench.tab._summary]
    assert "There is nothing to show." in found[bench.tab._example]
    with pytest.raises(gr.Error, match="There is no row 1"):
        bench.tab._go_to(found[bench.tab._check_state], 0, 1)


# Columns


def add_strange(bench: Bench, name: str = "strange.json") -> Path:
    return add_dataset(bench.folders, [{"ask": "Q", NASTY: "A", "nr": n} for n in range(9)], name)


def test_unknown_columns_open_the_box_with_their_names(bench: Bench) -> None:
    add_strange(bench)
    updates = bench.check(dataset=["strange.json"])
    html = failed(bench, updates)
    assert "No row has the columns of a known format" in html and "<img" not in html
    assert updates[bench.tab._columns_box] == gr.update(visible=True, open=True)
    for role in COLUMNS:
        assert updates[bench.tab._columns[role]] == gr.update(choices=["", "ask", NASTY, "nr"], value="")


def test_assigned_columns_are_used_and_shown_and_can_be_forgotten(bench: Bench) -> None:
    path = add_strange(bench)
    values = [{"question": "ask", "answer": NASTY}.get(role, "") for role in COLUMNS]
    bench.tab._save_columns("strange.json", *values)
    assert load_columns(path) == Columns(question="ask", answer=NASTY)
    updates = bench.check(dataset=["strange.json"])
    assert "strange.json (columns, UTF-8)" in updates[bench.tab._summary]
    assert bench.columns(updates) == {"question": "ask", "answer": NASTY}
    assert updates[bench.tab._columns_box] == gr.update(visible=True), "it is neither opened nor closed"
    bench.tab._forget_columns("strange.json", *values)
    assert load_columns(path) is None
    assert bench.columns(bench.check(dataset=["strange.json"])) == {}


def test_columns_that_do_not_go_together_are_not_kept(bench: Bench) -> None:
    path = add_strange(bench)
    with pytest.raises(gr.Error, match="Assign both a question and an answer"):
        bench.tab._save_columns("strange.json", "ask", *[""] * 5)
    assert load_columns(path) is None
    for name, says in ((None, "No data file is chosen"), ("", "No data file is chosen"), ("gone.json", "There is no")):
        with pytest.raises(gr.Error, match=says):
            bench.tab._save_columns(name, "ask", "", "nr", "", "", "")
        with pytest.raises(gr.Error, match=says):
            bench.tab._forget_columns(name)


def test_what_a_notice_says_is_text(bench: Bench) -> None:
    """Gradio takes it for HTML."""
    with pytest.raises(gr.Error) as caught:
        bench.tab._save_columns(f"{NASTY}.json", "ask", "", "nr", "", "", "")
    assert "<img" not in caught.value.message and "&lt;img" in caught.value.message
    with pytest.raises(gr.Error) as caught:
        bench.tab._find(bench.checked(), 0, NASTY)
    assert "<img" not in caught.value.message and "&lt;img" in caught.value.message


def test_damaged_columns_can_be_assigned_again(bench: Bench) -> None:
    path = add_strange(bench)
    columns_file(path).write_text('{"question": ')
    updates = bench.check(dataset=["strange.json"])
    assert "assign them again" in failed(bench, updates)
    assert updates[bench.tab._columns_box] == gr.update(visible=True, open=True)
    assert bench.columns(updates) == {}
    bench.tab._save_columns("strange.json", "ask", "", NASTY, "", "", "")
    assert bench.check(dataset=["strange.json"])[bench.tab._check_state] is not None


def test_several_files_have_no_columns_box(bench: Bench) -> None:
    add_strange(bench)
    save_columns(bench.folders.datasets / "strange.json", Columns(question="ask", answer="nr"))
    updates = bench.check(dataset=["pairs.json", "strange.json"])
    assert "pairs.json (question-answer, UTF-8), strange.json (columns, UTF-8)" in updates[bench.tab._summary]
    assert updates[bench.tab._file]["value"] is None
    assert updates[bench.tab._columns_box]["visible"] is False
    assert row_of(bench, bench.tab._go_to(updates[bench.tab._check_state], 0, 3)) == 3
    number, row, html = bench.tab._go_to(updates[bench.tab._check_state], 10, 3)
    assert (number, row) == (12, 3) and "row 3 of strange.json" in html, "of the file of which one is shown"


def test_a_folder_with_one_file_is_that_file(bench: Bench) -> None:
    (bench.folders.datasets / "box").mkdir()
    path = add_strange(bench, "box/only.json")
    updates = bench.check(dataset=["box/"])
    assert updates[bench.tab._columns_box] == gr.update(visible=True, open=True)
    assert updates[bench.tab._file]["value"] == "box/" and "box/" in updates[bench.tab._file]["choices"]
    bench.tab._save_columns("box/", "ask", "", "nr", "", "", "")
    assert load_columns(path) == Columns(question="ask", answer="nr")
    add_strange(bench, "box/other.json")
    assert bench.check(dataset=["box/"])[bench.tab._columns_box]["visible"] is False


# The way through the rows


def test_paging_stays_at_both_ends(bench: Bench) -> None:
    check, tab = bench.checked(), bench.tab
    assert [row_of(bench, tab._page(check, number, "all", 1)) for number in (0, 1, 8, 9)] == [2, 3, 10, 10]
    assert [row_of(bench, tab._page(check, number, "all", -1)) for number in (9, 1, 0)] == [9, 1, 1]
    assert tab._page(None, 0, "all", 1) == SKIPPED


def test_paging_through_one_kind(bench: Bench) -> None:
    rows = [{"question": f"Q{n}", "answer": "" if n in (2, 5) else "yes"} for n in range(9)]
    add_dataset(bench.folders, rows)
    check, tab = bench.checked(), bench.tab
    assert row_of(bench, tab._page(check, -1, "dropped", 1)) == 3
    assert row_of(bench, tab._page(check, 2, "dropped", 1)) == row_of(bench, tab._page(check, 5, "dropped", 1)) == 6
    assert row_of(bench, tab._page(check, 5, "dropped", -1)) == row_of(bench, tab._page(check, 2, "dropped", -1)) == 3
    # From a row of another kind, to which a search may have led.
    assert row_of(bench, tab._page(check, 8, "dropped", 1)) == 6
    assert row_of(bench, tab._page(check, 0, "dropped", -1)) == 3
    assert row_of(bench, tab._page(check, 4, "dropped", 1)) == 6
    number, row, html = tab._page(check, 4, "cut", 1)
    assert (number, row) == (0, None) and "There are none that are cut." in html
    held_out = check.numbers(Show.HELD_OUT)
    assert row_of(bench, tab._page(check, -1, "held out", 1)) == held_out[0] + 1


def test_every_kind_can_be_chosen(bench: Bench) -> None:
    check = bench.checked()
    assert [value for _, value in bench.tab._which.choices] == [str(kind) for kind in Show]
    for kind in Show:
        assert len(fire(bench.page, bench.tab._which, "input", check, str(kind))) == 3


def test_a_row_is_found_by_its_number(bench: Bench) -> None:
    check, tab = bench.checked(), bench.tab
    assert row_of(bench, tab._go_to(check, 0, 7)) == row_of(bench, tab._go_to(check, 9, 7.0)) == 7
    for row in (0, -1, 11, 1_000):
        with pytest.raises(gr.Error, match=f"There is no row {row:,}"):
            tab._go_to(check, 0, row)
    assert tab._go_to(check, 0, None) == tab._go_to(None, 0, 3) == SKIPPED


def test_a_text_is_found_behind_the_one_that_is_shown(bench: Bench) -> None:
    check, tab = bench.checked(), bench.tab
    assert row_of(bench, tab._find(check, 0, "WHAT IS 3")) == 4
    assert [row_of(bench, tab._find(check, number, "of course!!!!!!!!")) for number in (0, 8, 9)] == [9, 10, 9]
    with pytest.raises(gr.Error, match="Nothing has 'nowhere' in it"):
        tab._find(check, 0, "nowhere")
    assert tab._find(check, 0, "") == tab._find(None, 0, "a") == SKIPPED


def test_a_click_on_a_row_left_out_shows_it(bench: Bench) -> None:
    check, tab = bench.checked(), bench.tab
    event: Any = SimpleNamespace(row=4, file=0, cutoff=0)
    assert row_of(bench, tab._clicked_row(check, event)) == 4
    event.file = 1  # the evaluation file's rows are listed, but not paged through
    assert tab._clicked_row(check, event) == tab._clicked_row(None, event) == SKIPPED


# What can be mended with a click


def test_duplicates_can_be_dropped_and_the_cutoff_raised(bench: Bench) -> None:
    pair = {"question": "Q", "answer": "yes"}
    add_dataset(bench.folders, [pair, pair, pair, {"question": "Q", "answer": "long " * 40}])
    tab = bench.tab
    updates = bench.check(cutoff_length=100)
    assert updates[tab._drop_copies] == gr.update(visible=True, value="Drop the duplicates (2)")
    report = updates[tab._check_state].report
    raised = fire(bench.page, tab._fit_all, "click", updates[tab._check_state])
    assert raised % 16 == 0 and report.longest <= raised < report.longest + 16
    assert updates[tab._fit_all] == gr.update(visible=True, value=f"Raise the cutoff to {raised}")
    assert updates[tab._left_out_box] == gr.update(
        visible=True, label="Rows to look at: 1 dropped, 2 the same as another"
    )
    event: Any = SimpleNamespace(cutoff=raised)
    updates = bench.check(cutoff_length=tab._clicked_cutoff(event), drop_duplicates=True)
    assert updates[tab._fit_all]["visible"] is updates[tab._drop_copies]["visible"] is False
    assert fire(bench.page, tab._drop_copies, "click") is True


def test_list_of_what_is_left_out_can_be_downloaded(bench: Bench) -> None:
    assert bench.check()[bench.tab._download]["visible"] is False
    add_dataset(bench.folders, [{"question": "Ä", "answer": answer} for answer in ("", "yes", "yes")])
    download = bench.check()[bench.tab._download]
    assert download["visible"]
    path = Path(download["value"])
    assert path.name == "left-out.csv" and path.read_bytes().startswith(b"\xef\xbb\xbf"), "spreadsheets look for it"
    with path.open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file)) == [
            ["file", "row", "what", "reason"],
            ["pairs.json", "1", "dropped", "'answer' is missing or empty"],
            ["pairs.json", "3", "duplicate", "the same as row 2 of pairs.json"],
        ]
    assert Path(bench.check()[bench.tab._download]["value"]) != path, "an earlier one may be being read"


# The files


def test_chosen_file_is_what_the_training_form_trains_on(bench: Bench) -> None:
    controls, kind = bench.training.form.controls, bench.training.kind
    assert bench.tab._choose("a.json") == {kind: DATASET, controls[DATASET]: ["a.json"]}
    assert bench.tab._choose("a.pdf") == {kind: RAW_TEXT, controls[RAW_TEXT]: ["a.pdf"]}
    assert bench.tab._choose(None) == {kind: DATASET, controls[DATASET]: []}


def test_uploaded_files_are_offered_and_chosen(bench: Bench) -> None:
    add_dataset(bench.folders, name="new.json")
    updates = bench.tab._uploaded(["new.json"])
    assert updates[bench.tab._file]["choices"] == ["new.json", "pairs.json"]
    assert updates[bench.training.form.controls[DATASET]]["value"] == ["new.json"]


def test_several_chosen_files_are_named_as_text(bench: Bench) -> None:
    """Gradio takes what stands under a label for HTML."""
    info = bench.tab._file_box([f"{NASTY}.json", "b.json"])["info"]
    assert "2 files" in info and "b.json" in info and "<img" not in info


def test_html_in_the_data_is_text(bench: Bench) -> None:
    rows = [{"question": NASTY, "answer": f"{NASTY}{n}"} for n in range(5)]
    (bench.folders.datasets / "a & b.json").write_text(json.dumps(rows))
    updates = bench.check(dataset=["a & b.json"])
    shown = [value for value in updates.values() if isinstance(value, str)]
    assert len(shown) >= 4 and "<img" not in "".join(shown)
    assert "a &amp; b.json" in updates[bench.tab._summary]
