"""A tick sends what has changed since the last one, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from tests.tiny import make_folders, make_settings
from training.events import Note
from training.runs import Run, Status, create_run
from ui.monitor import Histories
from ui.monitor_panel import LATEST, MonitorPanel, Shown


@pytest.fixture
def panel(tmp_path: Path) -> MonitorPanel:
    folders = make_folders(tmp_path)
    with gr.Blocks() as page:
        panel = MonitorPanel(folders, Histories())
        panel.wire(page, gr.Button(), gr.Dropdown())
    return panel


def _run(panel: MonitorPanel, name: str, status: Status) -> Run:
    run = create_run(panel._folders, make_settings(name=name))
    run.set_state(status)
    return run


def _tick(panel: MonitorPanel, choice: str, shown: Shown) -> tuple[dict[Any, Any], Shown]:
    updates = panel.refresh(choice, shown)
    return (updates, updates[panel._shown]) if panel._shown in updates else ({}, shown)


def test_first_look_without_a_run_says_what_to_do(panel: MonitorPanel) -> None:
    updates, shown = _tick(panel, LATEST, Shown())
    assert "Start LoRA Training" in updates[panel.status]
    _run(panel, "first", Status.TRAINING)
    updates, _ = _tick(panel, LATEST, shown)
    assert "first" in updates[panel.status]


def test_unchanged_run_sends_nothing_and_a_new_event_only_what_it_changes(panel: MonitorPanel) -> None:
    run = _run(panel, "first", Status.TRAINING)
    _, shown = _tick(panel, LATEST, Shown())
    assert _tick(panel, LATEST, shown) == ({}, shown)
    run.append(Note(text="Something happened."))
    updates, _ = _tick(panel, LATEST, shown)
    assert "Something happened." in updates[panel.status]
    assert panel.log not in updates and panel.receipt not in updates


def test_start_is_free_again_when_a_run_ends_that_is_not_on_display(panel: MonitorPanel) -> None:
    old = _run(panel, "old", Status.DONE)
    running = _run(panel, "running", Status.TRAINING)
    updates, shown = _tick(panel, old.name, Shown())
    assert updates[panel._start]["interactive"] is False
    running.set_state(Status.DONE)
    updates, _ = _tick(panel, old.name, shown)
    assert updates[panel._start]["interactive"] is True


def test_latest_is_the_run_that_trains_and_a_deleted_choice_falls_back_to_it(panel: MonitorPanel) -> None:
    running = _run(panel, "running", Status.TRAINING)
    newer = _run(panel, "newer", Status.DONE)
    assert panel.shown_run_name(LATEST) == "running"
    _, shown = _tick(panel, newer.name, Shown())
    newer.folder.rename(newer.folder.with_name(".gone"))
    updates, _ = _tick(panel, newer.name, shown)
    assert updates[panel.run_choice]["value"] == LATEST
    running.set_state(Status.STOPPED)
    assert panel.shown_run_name(LATEST) == "running"
