"""What was deleted, in a line, with the way back: it stays there through reloads for as long as the trash holds it."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from training.errors import UserError
from training.paths import Folders
from training.run_store import Trashed, empty_trash, restore_run, trashed_runs
from ui.events import QUIET
from ui.lookout import Lookout
from ui.question import Question
from ui.run_actions import refusal


class TrashBox:
    """The line about the trash and its buttons; nothing is in view while it is empty."""

    def __init__(self, folders: Folders, lookout: Lookout) -> None:
        self._folders = folders
        self._lookout = lookout
        self._last = gr.State("")  # the folder that Undo brings back
        with gr.Row(visible=False, elem_id="trash", elem_classes="graft-actions") as self._row:
            self._text = gr.HTML(padding=False, elem_id="trash-text")
            self._undo = gr.Button("Undo", size="sm", min_width=70, scale=0, elem_id="trash-undo")
            self._empty = gr.Button("Empty the trash ...", size="sm", min_width=140, scale=0, elem_id="trash-empty")
        self._ask = Question("Delete for good", "Keep them", "trash-ask")

    def wire(self, look_after: Callable[..., None]) -> None:
        """Connect the buttons; `look_after` shows what an event has changed."""
        look_after(self._undo.click(self._bring_back, self._last, None, **QUIET))
        self._empty.click(self._about_emptying, None, self._ask.outputs, **QUIET)
        look_after(self._ask.yes.click(self._empty_it, None, None, **QUIET))

    @property
    def outputs(self) -> list[Any]:
        """The components that `updates` updates."""
        return [self._last, self._row, self._text, *self._ask.outputs]

    def updates(self, trash: tuple[Trashed, ...]) -> dict[Any, Any]:
        """Updates that show what is in the trash, the run deleted last first."""
        return self._ask.hidden() | {
            self._last: trash[0].folder.name if trash else "",
            self._row: gr.update(visible=bool(trash)),
            self._text: trash_html(trash),
        }

    def _bring_back(self, folder_name: str) -> None:
        trashed = next((one for one in trashed_runs(self._folders) if one.folder.name == folder_name), None)
        try:
            if trashed is None:
                raise UserError("It is not in the trash any more.")
            run = restore_run(self._folders, trashed)
            if run.name != trashed.name:
                said = f"The name '{trashed.name}' is taken by now, so it came back as '{run.name}'."
                gr.Info(escape(said, quote=False), title="Brought back")  # Gradio reads it as HTML
        except UserError as error:
            raise refusal("Not brought back", str(error)) from error
        except OSError as error:
            raise refusal("Not brought back", f"The folder cannot be moved ({error.strerror}).") from error
        finally:
            self._lookout.forget()

    def _about_emptying(self) -> dict[Any, Any]:
        count = len(trashed_runs(self._folders))
        what = "the LoRA" if count == 1 else f"the {count} LoRAs"
        return self._ask.asked(f"Delete {what} in the trash for good? There is no way back from that.")

    def _empty_it(self) -> None:
        try:
            empty_trash(self._folders)
        except OSError as error:
            raise refusal("Not emptied", f"A file in the trash cannot be deleted ({error.strerror}).") from error
        finally:
            self._lookout.forget()


def trash_html(trash: tuple[Trashed, ...]) -> str:
    """What is in the trash, in a sentence."""
    if not trash:
        return ""
    more = f", and {len(trash) - 1} more" if len(trash) > 1 else ""
    return f"<span role=\"status\">'{escape(trash[0].name)}' is in the trash{more}.</span>"
