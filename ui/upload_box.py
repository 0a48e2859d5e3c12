"""Takes files from the reader's computer, and asks before one replaces another."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from training.errors import UserError
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders, free_path
from training.uploads import NameTaken, OnConflict, store_uploads
from ui.events import QUIET
from ui.messages import news_html, problems_html

FORMATS = "formats/"  # what the name of a stored format file begins with
_FOLDER = "uploaded-folder"
OnStored = Callable[[list[str]], dict[Component, Any]]


class UploadBox:
    """Upload controls with the question about names that are taken. Call `wire` once, inside the page."""

    def __init__(self, folders: Folders, elem_id: str) -> None:
        self._folders = folders
        self._id = elem_id
        self._sources: list[tuple[Component, bool]] = []

    def button(self, label: str) -> None:
        """Place a button that takes one file or several."""
        self._add(gr.UploadButton(label, file_count="multiple", **self._look()), is_folder=False)

    def folder_button(self, label: str) -> None:
        """Place a button that takes a whole folder."""
        self._add(gr.UploadButton(label, file_count="directory", **self._look("-folder")), is_folder=True)

    def drop_zone(self, label: str) -> None:
        """Place a zone to drop files on."""
        zone = gr.File(label=label, file_count="multiple", height=130, elem_id=f"{self._id}-zone")
        self._add(zone, is_folder=False)

    def question(self) -> None:
        """Place what asks whether a file may be replaced."""
        with gr.Column(visible=False, elem_id=f"{self._id}-question", elem_classes="graft-question") as self._question:
            self._asked = gr.HTML()
            with gr.Row(elem_classes="graft-actions"):
                self._replace = gr.Button("Replace", size="sm", min_width=80, elem_id=f"{self._id}-replace")
                self._keep = gr.Button("Keep both", size="sm", min_width=80, elem_id=f"{self._id}-keep")
                self._cancel = gr.Button("Cancel", size="sm", min_width=80, elem_id=f"{self._id}-cancel")

    def wire(self, message: Component, on_stored: OnStored, outputs: set[Component]) -> gr.State:
        """Store what is uploaded and show the updates that `on_stored` gives for the names; says it in `message`.

        Returns a state that changes when data were stored; a format file alone is nothing to look at.
        """
        pending, stored = gr.State(([], False)), gr.State(0)
        shown = {
            message,
            pending,
            stored,
            self._question,
            self._asked,
            *(source for source, _ in self._sources),
            *outputs,
        }

        def store(files: list[str], is_folder: bool, count: int, on_conflict: OnConflict) -> dict[Component, Any]:
            closed = {self._question: gr.update(visible=False)}
            closed |= {source: gr.update(value=None) for source, _ in self._sources if isinstance(source, gr.File)}
            try:
                # A folder of its own for each, or the files of an earlier one would be trained too.
                folder = free_path(self._folders.datasets / _FOLDER).name if is_folder else ""
                usable = _usable(files, is_folder=is_folder)
                names = store_uploads(self._folders, usable, on_conflict=on_conflict, folder=folder)
            except NameTaken as taken:
                asked = f'<p class="graft-ask">{escape(str(taken))}</p>'
                return closed | {
                    self._question: gr.update(visible=True),
                    self._asked: asked,
                    pending: (files, is_folder),
                }
            except UserError as error:
                return closed | {message: problems_html(str(error).splitlines())}
            changed = {stored: count + 1} if first_kind(names) else {}
            return closed | {message: news_html(_said(names))} | changed | on_stored(names)

        for source, is_folder in self._sources:
            source.upload(
                lambda files, count, is_folder=is_folder: store(_paths(files), is_folder, count, "ask"),
                [source, stored],
                shown,
                api_visibility="private",
            )
        choices: tuple[tuple[gr.Button, OnConflict], ...] = ((self._replace, "replace"), (self._keep, "keep both"))
        for button, choice in choices:
            button.click(
                lambda waiting, count, choice=choice: store(waiting[0], waiting[1], count, choice),
                [pending, stored],
                shown,
                **QUIET,
            )
        self._cancel.click(lambda: gr.update(visible=False), None, self._question, **QUIET)
        return stored

    def _add(self, source: Component, *, is_folder: bool) -> None:
        self._sources.append((source, is_folder))

    def _look(self, ending: str = "") -> dict[str, Any]:
        # Any kind of file can be picked: a wrong one gets a sentence of ours, where Gradio would only show its own.
        return {"size": "sm", "min_width": 0, "elem_id": self._id + ending, "elem_classes": "graft-upload"}


def _paths(files: str | list[str] | None) -> list[str]:
    return [files] if isinstance(files, str) else files or []


def first_kind(names: list[str]) -> list[str]:
    """Of what was stored, the data to choose: all of the first one's kind, because a training is on one kind."""
    data = [name for name in names if not name.startswith(FORMATS)]
    return [name for name in data if _is_text(name) == _is_text(data[0])]


def _is_text(name: str) -> bool:
    return name.endswith(TEXT_SUFFIXES)


def _said(names: list[str]) -> list[str]:
    """Where the files are, and which are chosen."""
    data, chosen = [name for name in names if not name.startswith(FORMATS)], first_kind(names)
    formats = [name for name in names if name.startswith(FORMATS)]
    said = [f"{_are(data)} stored in datasets/{' and chosen' if chosen == data else ''}."] if data else []
    if chosen != data:
        said.append(f"{_are(chosen)} chosen, for a training is on rows or on text.")
    return [*said, f"{_are(formats)} stored."] if formats else said


def _are(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _usable(files: list[str], *, is_folder: bool) -> list[Path]:
    """The files to store. What else lies in a folder is passed over; of single files a wrong one is worth a word."""
    paths = [Path(file) for file in files]
    if not is_folder:
        return paths
    known = (*DATASET_SUFFIXES, *TEXT_SUFFIXES)
    usable = [path for path in paths if path.suffix.lower() in known and not path.name.startswith(".")]
    if not usable:
        raise UserError(f"The folder holds no data files: they end in one of {', '.join(known)}.")
    return usable
