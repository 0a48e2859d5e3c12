"""List boxes over the disk: an entry that left the list while a page held it is no error of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from training.errors import UserError
from training.paths import Folders
from training.supervisor import Supervisor
from ui.chat_log import FINAL, step_of
from ui.disk_choice import DiskChoice
from ui.page import build_page


@pytest.mark.parametrize(
    ("held", "taken"), [("gone", "gone"), ("here", "here"), (None, None), (["here"], None), (7, None)]
)
def test_what_a_page_holds_is_handed_on_though_it_left_the_list(held: Any, taken: Any) -> None:
    assert DiskChoice(["here"]).preprocess(held) == taken


def test_it_is_a_dropdown_to_the_page_and_writes_no_file_beside_itself() -> None:
    assert DiskChoice(["here"]).get_block_name() == "dropdown"
    assert not (Path(__file__).parent.parent / "ui" / "disk_choice.pyi").exists()


def test_each_list_over_the_disk_is_one(tmp_path: Path) -> None:
    folders = Folders(datasets=tmp_path, loras=tmp_path)
    page = build_page(folders, Supervisor(folders))
    lists = {block.elem_id: block for block in page.blocks.values() if isinstance(block, gr.Dropdown)}
    over_the_disk = {name for name, block in lists.items() if isinstance(block, DiskChoice)}
    assert over_the_disk == {
        "monitor-run",
        "copy-from",
        "chat-adapter",
        "chat-checkpoint",
        "learn-model",
        "learn-adapter",
        "learn-checkpoint",
        "data-file",
    }


def test_checkpoint_of_another_name_is_refused_in_a_sentence() -> None:
    assert step_of(FINAL) is None
    assert step_of("12") == 12
    with pytest.raises(UserError, match=r"no checkpoint called '\.\./\.\./x'"):
        step_of("../../x")
