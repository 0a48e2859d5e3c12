"""The Datasets tab: the files, and what a training with the form's settings would make of them, token by token."""

from __future__ import annotations

import tempfile
import uuid
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.components import Component

from training.dataset_format import column_names
from training.errors import UserError
from training.formats import Columns, load_columns, parse_columns, save_columns
from training.libraries import load_libraries
from training.parsing import parse
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders, data_files, list_data_files
from training.settings import Settings
from training.token_view import Show
from ui.data_view import example_html, left_out_html, left_out_label, lengths_html, summary_html
from ui.disk_choice import DiskChoice
from ui.events import QUIET
from ui.messages import problems_html
from ui.training_tab import DATASET, RAW_TEXT, TrainingTab
from ui.upload_box import UploadBox

if TYPE_CHECKING:
    from training.data_check import DataCheck

STYLE = Path(__file__).parent / "static" / "data.css"  # the page gives it to `launch`
_ROLES = {  # of a column: what it is called on the page
    "question": "Question",
    "extra": "Added to the question",
    "answer": "Answer",
    "system": "System prompt",
    "text": "Text alone",
    "conversation": "Conversation (a list of turns)",
}
_CLICKS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-cutoff], button[data-row]');
  if (button) trigger('click', {
    cutoff: Number(button.dataset.cutoff || 0),
    row: Number(button.dataset.row || 0),
    file: Number(button.dataset.file || 0),
  });
});
"""
_ABOUT_FILE = "The one chosen here is the one that the Training tab trains on."
_NOTHING_YET = (
    '<p class="graft-quiet">Choose a file, or upload yours: here you will see what the model reads of it.</p>'
)


class DatasetsTab:
    """The tab's components and the events between them; it checks what the training form holds."""

    def __init__(self, folders: Folders, training: TrainingTab) -> None:
        self._folders = folders
        self._training = training
        self._downloads = tempfile.TemporaryDirectory(prefix="graft-")  # gone with the program
        self._check_state = gr.State(None)
        self._number = gr.State(0)  # of the record that is shown
        with gr.Row(elem_id="datasets-row"):
            with gr.Column(scale=3, min_width=300):
                self._build_files()
            with gr.Column(scale=8, min_width=380, elem_id="data-check"):
                self._build_check()

    def _build_files(self) -> None:
        self._file = DiskChoice(
            choices=self._file_names(),
            value=None,
            label="Data file",
            info=_ABOUT_FILE,
            elem_id="data-file",
        )
        self._upload = UploadBox(self._folders, "data-upload")
        self._upload.drop_zone("Upload files")
        self._upload.question()
        self._upload_message = gr.HTML(elem_id="data-upload-message")
        gr.HTML(f'<p class="graft-quiet">Rows: {" ".join(DATASET_SUFFIXES)}. Text: {" ".join(TEXT_SUFFIXES)}.</p>')
        self._upload.folder_button("Upload a folder")
        with gr.Accordion("Columns", open=False, elem_id="columns-box") as self._columns_box:
            gr.HTML(
                '<p class="graft-quiet">For a file whose columns have other names: say which is what. It is remembered '
                "beside the file.</p>"
            )
            self._columns = {
                role: gr.Dropdown(choices=[], label=label, allow_custom_value=True, elem_id=f"column-{role}")
                for role, label in _ROLES.items()
            }
            with gr.Row():
                self._assign = gr.Button("Use these columns", size="sm", min_width=80, elem_id="columns-assign")
                self._unassign = gr.Button("Forget them", size="sm", min_width=80, elem_id="columns-forget")

    def _build_check(self) -> None:
        with gr.Row(elem_classes="graft-actions"):
            self.check = gr.Button("Check data", scale=1, elem_id="data-check-button")
            self.train = gr.Button("Train on this", variant="primary", scale=2, visible=False, elem_id="data-train")
        self._summary = gr.HTML(_NOTHING_YET, elem_id="data-summary")
        with gr.Row(elem_classes="graft-actions"):
            self._drop_copies = gr.Button(
                "Drop the duplicates", size="sm", visible=False, elem_id="data-drop-duplicates"
            )
            self._fit_all = gr.Button(
                "Raise the cutoff to fit all", size="sm", visible=False, elem_id="data-raise-cutoff"
            )
        with gr.Column(visible=False) as self._details:
            self._lengths = gr.HTML(js_on_load=_CLICKS, elem_id="data-lengths")
            with gr.Row(elem_id="data-paging"):
                self._back = gr.Button("Previous", size="md", scale=1, min_width=90, elem_id="data-previous")
                self._forth = gr.Button("Next", size="md", scale=1, min_width=90, elem_id="data-next")
                self._row = gr.Number(label="Row", precision=0, scale=1, min_width=90, elem_id="data-row")
                self._search = gr.Textbox(
                    label="Search", placeholder="then Enter", max_lines=1, scale=2, min_width=140, elem_id="data-search"
                )
                self._which = gr.Dropdown(
                    [str(kind) for kind in Show],
                    value=str(Show.ALL),
                    label="Show",
                    scale=1,
                    min_width=110,
                    elem_id="data-which",
                )
            self._example = gr.HTML(elem_id="data-example")
            with gr.Accordion("Rows left out", open=False, elem_id="data-left-out-box") as self._left_out_box:
                self._left_out = gr.HTML(js_on_load=_CLICKS, elem_id="data-left-out")
                self._download = gr.DownloadButton("Download the list", size="sm", elem_id="data-download")

    def wire(self, page: gr.Blocks) -> None:
        """Connect the tab; call once, inside the page, after the training tab was wired."""
        training = self._training
        self._checked = {
            self._check_state,
            self._number,
            self._file,
            self._summary,
            self.train,
            self._search,
            self._drop_copies,
            self._fit_all,
            self._details,
            self._lengths,
            self._example,
            self._row,
            self._which,
            self._left_out_box,
            self._left_out,
            self._download,
            self._columns_box,
            *self._columns.values(),
        }
        # Gradio asks for the values when an event fires, so the form's newest are checked.
        self._inputs = [training.kind, *training.form.components]
        page.load(lambda: gr.update(choices=self._file_names()), None, self._file, **QUIET)
        self.check_on(self.check.click)
        chosen = self._file.input(self._choose, self._file, {training.kind, *self._data_controls()}, **QUIET)
        self.check_on(chosen.then)
        outputs = {self._file, training.kind, *training.form.choice_controls}
        stored = self._upload.wire(self._upload_message, self._uploaded, outputs)
        self.check_on(stored.change)
        self._wire_fixes()
        self._wire_paging()
        for button, save in ((self._assign, self._save_columns), (self._unassign, self._forget_columns)):
            saved = button.click(save, [self._file, *self._columns.values()], self._summary, **QUIET)
            self.check_on(saved.success)

    def show_chosen_on(self, event: Any) -> None:
        """Show in the box for the file, when `event` fires, which one the form holds."""

        def shown(kind: str, *values: Any) -> Any:
            given = self._training.data_values(kind, values)
            return self._file_box(given[DATASET] or given[RAW_TEXT])

        event(shown, self._inputs, self._file, **QUIET)

    def _file_box(self, names: list[str]) -> Any:
        several = len(names) > 1
        info = f"The Training tab has {len(names)} files: {escape(', '.join(names))}." if several else _ABOUT_FILE
        return gr.update(choices=self._file_names(), value=names[0] if len(names) == 1 else None, info=info)

    def check_on(self, event: Any) -> Any:
        """Check what the form holds when `event` fires; returns the event that follows the check."""
        return event(
            self._check,
            self._inputs,
            self._checked,
            show_progress_on=self._summary,
            api_visibility="private",
            concurrency_limit=2,
        )

    def _wire_fixes(self) -> None:
        controls = self._training.form.controls
        duplicates, cutoff = controls["drop_duplicates"], controls["cutoff_length"]
        self.check_on(self._drop_copies.click(lambda: True, None, duplicates, **QUIET).then)
        fitted = self._fit_all.click(lambda check: check.report.fitting_cutoff, self._check_state, cutoff, **QUIET)
        self.check_on(fitted.then)
        self.check_on(self._lengths.click(self._clicked_cutoff, None, cutoff, **QUIET).success)

    def _wire_paging(self) -> None:
        shown = [self._number, self._row, self._example]
        for button, step in ((self._back, -1), (self._forth, 1)):
            button.click(
                lambda check, number, which, step=step: self._page(check, number, which, step),
                [self._check_state, self._number, self._which],
                shown,
                **QUIET,
            )
        self._which.input(
            lambda check, which: self._page(check, -1, which, 1), [self._check_state, self._which], shown, **QUIET
        )
        self._row.submit(self._go_to, [self._check_state, self._number, self._row], shown, **QUIET)
        self._search.submit(self._find, [self._check_state, self._number, self._search], shown, **QUIET)
        self._left_out.click(self._clicked_row, self._check_state, shown, **QUIET)

    def _file_names(self) -> list[str]:
        return list_data_files(self._folders, DATASET_SUFFIXES + TEXT_SUFFIXES)

    def _data_controls(self) -> list[Component]:
        return [self._training.form.controls[name] for name in (DATASET, RAW_TEXT)]

    def _choose(self, name: str | None) -> dict[Component, Any]:
        return self._training.choose_data([name] if name else [])

    def _uploaded(self, names: list[str]) -> dict[Component, Any]:
        return self._training.uploaded(names) | {self._file: gr.update(choices=self._file_names())}

    def _check(self, kind: str, *values: Any, progress: gr.Progress = gr.Progress()) -> dict[Component, Any]:  # noqa: B008
        given = self._training.data_values(kind, values)
        names = given[DATASET] or given[RAW_TEXT]
        file = self._file_box(names)
        try:
            settings = parse(given)
            check = self._prepare(settings, progress)
        except UserError as error:
            return self._failed(str(error), given[DATASET]) | {self._file: file}
        return self._found(check) | self._columns_of(names if not settings.raw_text else []) | {self._file: file}

    def _prepare(self, settings: Settings, progress: gr.Progress) -> DataCheck:
        if not settings.dataset and not settings.raw_text:
            raise UserError("No data file is chosen: pick one or upload yours.")
        progress(None, desc="Reading the data")
        # Here, because it takes torch seconds to be imported.
        load_libraries()
        from training.data_check import check_data

        done = 0

        def count(records: int) -> None:
            nonlocal done
            done += records
            progress(None, desc=f"{done:,} {'chunks' if settings.raw_text else 'rows'}")

        return check_data(settings, self._folders, count)

    def _found(self, check: DataCheck) -> dict[Component, Any]:
        report = check.report
        number, row, example = self._page(check, -1, Show.ALL, 1)
        left_out = check.left_out_csv()
        fits = report.is_raw_text or report.fitting_cutoff <= report.cutoff
        return {
            self._check_state: check,
            self._number: number,
            self._example: example,
            self._which: str(Show.ALL),
            self._summary: summary_html(check),
            self.train: gr.update(visible=not report.problem),
            self._search: "",
            self._row: gr.update(value=row, label="Document" if report.is_raw_text else "Row"),
            self._details: gr.update(visible=True),
            self._lengths: lengths_html(report),
            self._drop_copies: gr.update(
                visible=bool(report.duplicates and not check.settings.drop_duplicates and not report.is_raw_text),
                value=f"Drop the duplicates ({report.duplicates:,})",
            ),
            self._fit_all: gr.update(visible=not fits, value=f"Raise the cutoff to {report.fitting_cutoff:,}"),
            self._left_out_box: gr.update(
                visible=not report.is_raw_text or report.dropped > 0,
                label=left_out_label(report),
            ),
            self._left_out: left_out_html(report),
            self._download: gr.update(value=self._download_file(left_out), visible=left_out.count("\n") > 1),
        }

    def _failed(self, problem: str, dataset: list[str]) -> dict[Component, Any]:
        """What is shown when nothing could be prepared; the columns, in case that they are what is wrong."""
        hidden = gr.update(visible=False)
        return {
            self._check_state: None,
            self._summary: problems_html(problem.splitlines()),
            self.train: hidden,
            self._details: hidden,
            self._drop_copies: hidden,
            self._fit_all: hidden,
        } | self._columns_of(dataset, is_wrong=True)

    def _columns_of(self, dataset: list[str], *, is_wrong: bool = False) -> dict[Component, Any]:
        """The boxes for the columns of the chosen file, filled with what was assigned; none for several files."""
        try:
            files = data_files(self._folders, dataset, DATASET_SUFFIXES) if len(dataset) == 1 else []
            names = column_names(files[0]) if len(files) == 1 else []
        except UserError:
            names = []
        try:
            assigned = (load_columns(files[0]) if names else None) or Columns.model_construct()
        except UserError:
            assigned = Columns.model_construct()  # the check has said that the file is damaged
        opened = {"open": True} if is_wrong and names else {}  # it is never closed: columns may be put right again
        return {self._columns_box: gr.update(visible=bool(names), **opened)} | {
            box: gr.update(choices=["", *names], value=getattr(assigned, role) or "")
            for role, box in self._columns.items()
        }

    def _save_columns(self, name: str | None, *values: str) -> str:
        """Remember the assignment; the success of this event starts a check."""
        try:
            save_columns(self._one_file(name), parse_columns(dict(zip(self._columns, values, strict=True))))
        except UserError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from None
        return ""

    def _forget_columns(self, name: str | None, *_: str) -> str:
        try:
            save_columns(self._one_file(name), None)
        except UserError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from None
        return ""

    def _one_file(self, name: str | None) -> Path:
        return data_files(self._folders, [name] if name else [], DATASET_SUFFIXES)[0]

    def _page(self, check: DataCheck | None, number: int, which: str, step: int) -> tuple[Any, Any, Any]:
        """The next record of a kind, or the one before; at either end the same one stays."""
        if check is None:
            return (gr.skip(),) * 3
        numbers = check.numbers(Show(which))
        beyond = numbers[numbers > number][:1] if step > 0 else numbers[numbers < number][-1:]
        if len(beyond):
            return self._shown(check, int(beyond[0]))
        if number in numbers:
            return self._shown(check, number)
        if len(numbers):
            return self._shown(check, int(numbers[-1 if step > 0 else 0]))
        none = "There is nothing to show." if which == Show.ALL else f"There are none that are {which}."
        return 0, None, f'<p class="graft-quiet">{none}</p>'

    def _go_to(self, check: DataCheck | None, number: int, row: float | None) -> tuple[Any, Any, Any]:
        if check is None or row is None:
            return (gr.skip(),) * 3
        is_empty = len(check.numbers(Show.ALL)) == 0  # a text without a document
        found = None if is_empty else check.row(int(row), check.show(number).record.file)
        if found is None:
            raise gr.Error(f"There is no row {int(row):,}.", print_exception=False)
        return self._shown(check, found)

    def _find(self, check: DataCheck | None, number: int, text: str) -> tuple[Any, Any, Any]:
        if check is None or not text:
            return (gr.skip(),) * 3
        found = check.search(text, number)
        if found is None:
            raise gr.Error(f"Nothing has '{escape(text)}' in it.", print_exception=False)
        return self._shown(check, found)

    # Any, because Gradio looks for the event by resolving the types of all arguments.
    def _clicked_row(self, check: Any, event: gr.EventData) -> tuple[Any, Any, Any]:
        found = check.row(int(event.row), int(event.file)) if check else None
        return (gr.skip(),) * 3 if check is None or found is None else self._shown(check, found)

    def _shown(self, check: DataCheck, number: int) -> tuple[int, int, str]:
        shown = check.show(number)
        return number, shown.record.row, example_html(shown)

    @staticmethod
    def _clicked_cutoff(event: gr.EventData) -> int:
        return int(event.cutoff)

    def _download_file(self, text: str) -> str:
        path = Path(self._downloads.name) / uuid.uuid4().hex / "left-out.csv"
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8-sig")  # the mark, by which spreadsheets know it is UTF-8
        return str(path)
