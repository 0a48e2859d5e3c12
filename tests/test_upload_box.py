"""What is uploaded is stored and chosen; a name that is taken is asked about; what is wrong is a sentence."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.components import Component

from tests.pages import fire
from tests.tiny import make_folders
from training.paths import Folders
from training.supervisor import Supervisor
from ui.training_tab import TrainingTab
from ui.upload_box import UploadBox

ROWS = json.dumps([{"question": "a", "answer": "b"}])
FORMAT = json.dumps({"instruction,output": "User: %instruction%\nAssistant: %output%"})


class Bench:
    """A box with a button, a folder button and a zone, the files it is given, and the names that it said it stored."""

    def __init__(self, root: Path) -> None:
        self.folders = make_folders(root)
        self.stored: list[list[str]] = []
        self._uploads = root / "uploads"
        with gr.Blocks() as self.page:
            self.message, self.chosen = gr.HTML(), gr.Textbox()
            self.box = UploadBox(self.folders, "box")
            self.box.button("Upload")
            self.box.folder_button("Upload a folder")
            self.box.drop_zone("Drop")
            self.box.question()
            self.count = self.box.wire(self.message, self._chosen, {self.chosen})
        self.button, self.folder_button, self.zone = (source for source, _ in self.box._sources)

    def _chosen(self, names: list[str]) -> dict[Component, Any]:
        self.stored.append(names)
        return {self.chosen: " ".join(names)}

    def file(self, name: str, text: str | bytes = ROWS) -> str:
        path = self._uploads / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    def upload(self, *files: str, source: Component | None = None, count: int = 0) -> dict[Any, Any]:
        return dict(fire(self.page, source or self.button, "upload", list(files), count))

    def answer(self, button: gr.Button, asked: dict[Any, Any]) -> dict[Any, Any]:
        """Click what stands under the question, which remembers the files in a state."""
        (files,) = [value for value in asked.values() if isinstance(value, tuple)]
        return dict(fire(self.page, button, "click", files, 0))

    def names(self) -> list[str]:
        root = self.folders.datasets
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())

    def text(self, name: str) -> str:
        return (self.folders.datasets / name).read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def is_asked(bench: Bench, updates: dict[Any, Any]) -> bool:
    return bool(updates[bench.box._question]["visible"])


def test_files_are_stored_told_and_chosen(bench: Bench) -> None:
    updates = bench.upload(bench.file("a.json"), bench.file("b.txt", "Once."), count=3)
    assert bench.names() == ["a.json", "b.txt"] and bench.stored == [["a.json", "b.txt"]]
    assert "a.json, b.txt are stored in datasets/." in updates[bench.message]
    assert updates[bench.count] == 4, "which starts a check"
    assert updates[bench.chosen] == "a.json b.txt"
    assert not is_asked(bench, updates)
    assert "b.txt is stored" in bench.upload(bench.file("b.txt", "Once."))[bench.message]


def test_a_single_file_comes_as_a_name_alone(bench: Bench) -> None:
    fire(bench.page, bench.button, "upload", bench.file("a.json"), 0)
    assert bench.names() == ["a.json"]
    assert bench.stored == [["a.json"]]


def test_the_zone_is_emptied_for_the_next_files(bench: Bench) -> None:
    updates = bench.upload(bench.file("a.json"), source=bench.zone)
    assert updates[bench.zone]["value"] is None
    assert bench.zone in bench.upload(bench.file("b.exe"), source=bench.zone), "also after a file of no use"


def test_a_file_of_no_use_is_a_sentence_and_nothing_is_stored(bench: Bench) -> None:
    updates = bench.upload(bench.file("a.json"), bench.file("b.json", '[{"a": "<b>'))
    assert "b.json" in updates[bench.message] and 'role="alert"' in updates[bench.message]
    assert bench.names() == [] and bench.stored == [] and bench.count not in updates
    updates = bench.upload(bench.file("program.exe", b"MZ"))
    assert "program.exe is of no kind that can be trained on" in updates[bench.message]


def test_file_names_are_text(bench: Bench) -> None:
    name = "<img src=x>&.exe"
    assert escape(name) in bench.upload(bench.file(name))[bench.message]
    assert "<img" not in bench.upload(bench.file("<img src=x>.json"))[bench.message]


# A name that is taken


@pytest.fixture
def asked(bench: Bench) -> dict[Any, Any]:
    """The question that a second file of a name brings."""
    bench.upload(bench.file("a.txt", "first"))
    bench.stored.clear()
    updates = bench.upload(bench.file("a.txt", "second"), bench.file("b.txt", "new"))
    assert is_asked(bench, updates) and escape("'a.txt'") in updates[bench.box._asked]
    assert bench.names() == ["a.txt"] and bench.text("a.txt") == "first" and bench.stored == []
    return updates


def test_replace(bench: Bench, asked: dict[Any, Any]) -> None:
    updates = bench.answer(bench.box._replace, asked)
    assert (bench.text("a.txt"), bench.text("b.txt")) == ("second", "new")
    assert not is_asked(bench, updates) and bench.stored == [["a.txt", "b.txt"]]
    assert updates[bench.count] == 1


def test_keep_both(bench: Bench, asked: dict[Any, Any]) -> None:
    updates = bench.answer(bench.box._keep, asked)
    assert (bench.text("a.txt"), bench.text("a-2.txt"), bench.text("b.txt")) == ("first", "second", "new")
    assert not is_asked(bench, updates) and bench.stored == [["a-2.txt", "b.txt"]], "the new one is chosen"


def test_cancel(bench: Bench, asked: dict[Any, Any]) -> None:
    assert fire(bench.page, bench.box._cancel, "click")["visible"] is False
    assert bench.names() == ["a.txt"] and bench.text("a.txt") == "first" and bench.stored == []


def test_a_folder_is_asked_about_and_answered_as_a_folder(bench: Bench) -> None:
    """Its data have a place of their own, but a format file may meet another."""
    bench.upload(bench.file("mine.json", FORMAT))
    other = bench.file("f/mine.json", FORMAT.replace("User", "Human"))
    asked = bench.upload(other, bench.file("f/a.txt", "first"), source=bench.folder_button)
    assert is_asked(bench, asked) and bench.names() == []
    bench.answer(bench.box._replace, asked)
    assert bench.names() == ["uploaded-folder/a.txt"]
    assert "Human" in (bench.folders.formats / "mine.json").read_text()


# Folders


def test_what_else_lies_in_a_folder_is_passed_over(bench: Bench) -> None:
    files = [bench.file(f"f/{name}") for name in ("a.json", "B.JSON", ".hidden.json", "logo.png", "README")]
    bench.upload(*files, source=bench.folder_button)
    assert bench.names() == ["uploaded-folder/B.json", "uploaded-folder/a.json"]
    assert bench.stored == [["uploaded-folder/"]]


def test_each_folder_has_a_place_of_its_own(bench: Bench) -> None:
    for text in ("first", "second", "third"):
        updates = bench.upload(bench.file("f/a.txt", text), source=bench.folder_button)
        assert not is_asked(bench, updates)
    assert bench.stored == [["uploaded-folder/"], ["uploaded-folder-2/"], ["uploaded-folder-3/"]]
    assert bench.text("uploaded-folder/a.txt") == "first" and bench.text("uploaded-folder-2/a.txt") == "second"


def test_files_of_one_name_in_a_folder_get_numbers(bench: Bench) -> None:
    files = [bench.file(f"f/{place}/a.txt", place) for place in ("x", "y", "z")]
    bench.upload(*files, bench.file("f/again/a.txt", "y"), source=bench.folder_button)
    folder = "uploaded-folder"
    assert bench.names() == [f"{folder}/a-2.txt", f"{folder}/a-3.txt", f"{folder}/a.txt"]
    assert [bench.text(f"{folder}/a{number}.txt") for number in ("", "-2", "-3")] == ["x", "y", "z"]


def test_a_folder_without_data_files_is_a_sentence(bench: Bench) -> None:
    updates = bench.upload(bench.file("f/logo.png"), source=bench.folder_button)
    assert "The folder holds no data files" in updates[bench.message] and bench.names() == []


# The training form


def uploaded(folders: Folders, *names: str) -> dict[str, Any]:
    """What the training form makes of stored files: by control, what is chosen."""
    with gr.Blocks() as page:
        tab = TrainingTab(folders, Supervisor(folders))
        tab.wire(page)
    updates = tab.uploaded(list(names))
    controls = {control: name for name, control in tab.form.controls.items()} | {tab.kind: "kind"}
    return {controls[control]: update["value"] for control, update in updates.items() if "value" in update}


def test_a_format_file_becomes_the_data_format(bench: Bench) -> None:
    updates = bench.upload(bench.file("mine.json", FORMAT))
    assert bench.names() == [] and (bench.folders.formats / "mine.json").read_text() == FORMAT
    assert bench.stored == [["formats/mine.json"]]
    assert "formats/mine.json is stored." in updates[bench.message], "it is no data that could be chosen"
    assert bench.count not in updates, "nor checked"
    assert uploaded(bench.folders, "formats/mine.json") == {"data_format": "mine.json"}
    both = uploaded(bench.folders, "formats/mine.json", "a.json")
    assert both == {"data_format": "mine.json", "kind": "dataset", "dataset": ["a.json"]}


def test_what_is_chosen_is_told(bench: Bench) -> None:
    said = bench.upload(bench.file("a.json"), bench.file("b.txt", "Once."), bench.file("c.csv", "a,b\n1,2\n"))
    assert "a.json, b.txt, c.csv are stored in datasets/." in said[bench.message]
    assert "a.json, c.csv are chosen, for a training is on rows or on text." in said[bench.message]
    said = bench.upload(bench.file("mine.json", FORMAT), bench.file("d.txt", "Once."), count=1)
    assert "d.txt is stored in datasets/ and chosen." in said[bench.message]
    assert "formats/mine.json is stored." in said[bench.message] and said[bench.count] == 2


def test_uploaded_files_of_the_first_kind_are_chosen(bench: Bench) -> None:
    assert uploaded(bench.folders, "a.json", "b.csv", "c.txt") == {"kind": "dataset", "dataset": ["a.json", "b.csv"]}
    assert uploaded(bench.folders, "a.txt", "b.json", "c.pdf") == {"kind": "raw_text", "raw_text": ["a.txt", "c.pdf"]}


def test_an_uploaded_folder_is_chosen_by_what_lies_in_it(bench: Bench) -> None:
    bench.upload(bench.file("f/a.txt", "Once."), source=bench.folder_button)
    assert uploaded(bench.folders, "uploaded-folder/") == {"kind": "raw_text", "raw_text": ["uploaded-folder/"]}
    bench.upload(bench.file("f/a.json"), source=bench.folder_button)
    assert uploaded(bench.folders, "uploaded-folder-2/") == {"kind": "dataset", "dataset": ["uploaded-folder-2/"]}


@pytest.mark.parametrize("name", ["v1.0", "x.txt", "x.json"])
def test_a_folder_with_a_dot_is_chosen_by_what_lies_in_it(bench: Bench, name: str) -> None:
    (bench.folders.datasets / name).mkdir()
    (bench.folders.datasets / name / "a.txt").write_text("Once.")
    assert uploaded(bench.folders, f"{name}/") == {"kind": "raw_text", "raw_text": [f"{name}/"]}
    (bench.folders.datasets / name / "a.json").write_text(ROWS)
    assert uploaded(bench.folders, f"{name}/") == {"kind": "dataset", "dataset": [f"{name}/"]}
