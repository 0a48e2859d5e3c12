"""A tick sends what has changed since the last one, and each state of a run offers what makes sense in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from tests.pages import fire
from tests.tiny import make_folders, make_settings
from training import supervisor as supervisors
from training.errors import UserError
from training.events import CheckpointSaved, Note, Step
from training.remedies import Remedy
from training.run_state import Reason, Status
from training.run_store import create_run
from training.runs import Run, find_run
from training.supervisor import Supervisor
from ui import failure_box, lookout
from ui.failure_box import FailureBox
from ui.lookout import LATEST
from ui.monitor_panel import MonitorPanel, Shown


class Opened:
    """A page with the panel alone."""

    def __init__(self, root: Path) -> None:
        self.folders = make_folders(root)
        self.supervisor = Supervisor(self.folders)
        with gr.Blocks() as self.page:
            self.panel = MonitorPanel(self.folders, self.supervisor)
            self.start, self.copy_from = gr.Button(), gr.Dropdown()
            self.panel.wire(self.page, self.start, self.copy_from, gr.Dropdown())

    def add(self, name: str, status: Status, *, reason: Reason | None = None, cause: str = "") -> Run:
        run = create_run(self.folders, make_settings(name=name))
        self.supervisor.queue.add(run)
        run.set_state(status, cause, reason)
        return run

    def tick(self, choice: str = LATEST, shown: Shown | None = None, method: str = "LoRA") -> tuple[Any, Shown]:
        shown = shown or Shown()
        updates = self.panel.refresh(choice, shown, method)
        return (updates, updates[self.panel._shown]) if self.panel._shown in updates else ({}, shown)

    def offered(self, choice: str) -> list[str]:
        """The labels of the buttons under a run."""
        updates, _ = self.tick(choice)
        buttons = self.panel.actions.outputs[:10]
        return [updates[b].get("value", b.value) for b in buttons if updates[b].get("visible")]

    def click(self, button: gr.Button, name: str) -> Any:
        """What a click does to the run of this name, as the function that has its name for an input."""
        panel = self.panel
        found = [
            f
            for f in self.page.fns.values()
            if (button._id, "click") in f.targets and f.fn and f.inputs and f.inputs[0] is panel.name
        ]
        assert len(found) == 1 and found[0].fn
        return found[0].fn(name)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    monkeypatch.setattr(lookout, "_FRESH", 0.0)
    return Opened(tmp_path)


def give_checkpoint(run: Run, step: int = 5) -> None:
    (run.folder / f"checkpoint-{step}").mkdir()


def give_result(run: Run) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (run.folder / name).write_text("{}")


# What a tick sends


def test_first_look_without_a_run_says_what_to_do(opened: Opened) -> None:
    updates, shown = opened.tick()
    assert "Start LoRA Training" in updates[opened.panel.status]
    opened.add("first", Status.TRAINING)
    updates, _ = opened.tick(LATEST, shown)
    assert "first" in updates[opened.panel.status]


def test_unchanged_run_sends_nothing_and_a_new_event_only_what_it_changes(opened: Opened) -> None:
    panel, run = opened.panel, opened.add("first", Status.TRAINING)
    _, shown = opened.tick()
    assert opened.tick(LATEST, shown) == ({}, shown)
    run.append(Note(text="Something happened."))
    updates, _ = opened.tick(LATEST, shown)
    assert "Something happened." in updates[panel.status]
    assert not {panel.log, panel.receipt, panel.actions.stop} & set(updates)


def step(number: int) -> Step:
    return Step(step=number, epoch=1, loss=2.0, learning_rate=1e-4, grad_norm=1, tokens=9, seconds=0.1, memory=2**30)


def test_a_step_sends_what_it_changes_and_nothing_else(opened: Opened) -> None:
    panel, run = opened.panel, opened.add("first", Status.TRAINING)
    for number in range(1, 51):
        run.append(step(number))
    updates, shown = opened.tick()
    assert len(updates[panel.chart]["body"]["training"]["step"]) == 50
    run.append(step(51))
    updates = panel.tick(LATEST, shown, "LoRA")
    assert set(updates) == {panel.status, panel.chart, panel._shown}
    assert "body" not in updates[panel.chart] and updates[panel.chart]["end"]["training"]["step"] == [51]
    shown = updates[panel._shown]
    assert panel.tick(LATEST, shown, "LoRA") == gr.skip()
    run.append(CheckpointSaved(step=51, loss=2.0, evaluation_loss=None))
    give_checkpoint(run, 51)
    updates = panel.tick(LATEST, shown, "LoRA")
    assert "checkpoint-51" in updates[panel.checkpoints]
    assert updates[panel.chart]["end"]["checkpoints"]["step"] == [51]


def test_a_tick_leaves_what_stands_around_to_a_refresh(opened: Opened) -> None:
    panel, run = opened.panel, opened.add("first", Status.TRAINING)
    _, shown = opened.tick()
    run.set_state(Status.DONE)
    updates = panel.tick(LATEST, shown, "LoRA")
    assert updates[panel._due].active and opened.start not in updates
    assert set(updates) <= {*panel._moving, panel._due}
    shown = updates[panel._shown]
    assert panel._due in panel.tick(LATEST, shown, "LoRA"), "again, should the answer be lost"
    updates = fire(opened.page, panel._due, "tick", LATEST, shown, "LoRA")
    assert updates[opened.start] == "Start LoRA Training" and panel.actions.delete in updates
    assert updates[panel._due].active is False
    assert panel.tick(LATEST, updates[panel._shown], "LoRA") == gr.skip()


def test_all_pages_share_what_is_drawn(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "_FRESH", 3600.0)
    opened.add("first", Status.TRAINING)
    opened.panel.lookout.forget()
    panel = opened.panel
    pages = [opened.tick()[0] for _ in range(3)]
    for part in (panel.status, panel.checkpoints):
        assert pages[0][part] is pages[1][part] is pages[2][part]
    for part in ("body", "end"):
        assert pages[0][panel.chart][part] is pages[1][panel.chart][part] is pages[2][panel.chart][part]


def test_start_adds_to_the_queue_while_something_trains_and_is_never_disabled(opened: Opened) -> None:
    run = opened.add("running", Status.TRAINING)
    updates, shown = opened.tick()
    assert updates[opened.start] == "Add to the queue"
    run.set_state(Status.DONE)
    assert opened.tick(LATEST, shown)[0][opened.start] == "Start LoRA Training"
    assert opened.tick(LATEST, shown, "full fine-tuning")[0][opened.start] == "Start Training"


def test_a_deleted_choice_falls_back_to_the_latest(opened: Opened) -> None:
    opened.add("running", Status.TRAINING)
    newer = opened.add("newer", Status.DONE)
    _, shown = opened.tick(newer.name)
    newer.folder.rename(newer.folder.with_name(".gone"))
    updates, _ = opened.tick(newer.name, shown)
    assert updates[opened.panel.run_choice]["value"] == LATEST


def test_the_log_opens_for_a_failure_and_shows_its_last_lines(opened: Opened) -> None:
    run = opened.add("first", Status.TRAINING)
    run.log_file.write_text("\n".join(f"line {n}." for n in range(40)))
    updates, shown = opened.tick()
    assert opened.panel._log_box not in updates and updates[opened.panel.log].startswith("line 10.")
    run.set_state(Status.FAILED, "It broke.", Reason.CRASHED)
    updates, _ = opened.tick(LATEST, shown)
    assert updates[opened.panel._log_box]["open"] is True
    assert updates[opened.panel.log].splitlines()[0] == "line 30."


# What each state offers


@pytest.mark.parametrize(
    ("status", "reason", "has", "labels"),
    [
        (Status.PREPARING, None, "", ["Stop and save", "Cancel"]),
        (Status.TRAINING, None, "", ["Stop and save", "Save now", "Cancel"]),
        (Status.QUEUED, None, "", ["Take out of the queue"]),
        (Status.STOPPED, None, "", ["Start again", "Delete"]),
        (Status.STOPPED, None, "checkpoint", ["Continue", "Delete"]),
        (Status.STOPPED, None, "checkpoint result", ["Chat with it", "Continue", "Delete"]),
        (Status.STOPPED, Reason.DIVERGED, "checkpoint", ["Delete"]),  # it would break again: another offer stands above
        (Status.FAILED, Reason.CRASHED, "checkpoint", ["Continue", "Delete"]),
        (Status.FAILED, Reason.CRASHED, "result", ["Chat with it", "Delete"]),
        (Status.DONE, None, "checkpoint result", ["Chat with it", "Extend", "Delete"]),
        (Status.DONE, None, "result", ["Chat with it", "Delete"]),
    ],
)
def test_each_state_offers_what_makes_sense(
    opened: Opened, status: Status, reason: Reason | None, has: str, labels: list[str]
) -> None:
    run = opened.add("first", status, reason=reason)
    if "checkpoint" in has:
        give_checkpoint(run)
    if "result" in has:
        give_result(run)
    assert opened.offered("first") == labels


def test_an_adapter_from_elsewhere_can_be_talked_to_and_deleted(opened: Opened) -> None:
    run = Run(opened.folders.loras / "foreign")
    run.folder.mkdir()
    give_result(run)
    assert opened.offered("foreign") == ["Chat with it", "Delete"]


def test_requests_are_shown_until_they_are_answered(opened: Opened) -> None:
    run, actions = opened.add("first", Status.TRAINING), opened.panel.actions
    opened.click(actions.save, "first")
    updates, _ = opened.tick()
    assert updates[actions.save]["value"] == "Saving after this step" and not updates[actions.save]["interactive"]
    run.save_answered()
    updates, _ = opened.tick()
    assert updates[actions.save]["value"] == "Save now" and updates[actions.save]["interactive"]
    opened.click(actions.stop, "first")
    assert opened.offered("first") == ["Stop and save", "Cancel"]
    assert opened.tick()[0][actions.stop]["interactive"] is False


def test_cancelling_asks_and_says_what_is_lost(opened: Opened) -> None:
    run, actions = opened.add("first", Status.TRAINING), opened.panel.actions
    asked = " ".join(map(str, opened.click(actions.cancel, "first").values()))
    assert "Nothing of it was saved yet" in asked and not run.cancel_requested()
    give_checkpoint(run, 1200)
    asked = " ".join(map(str, opened.click(actions.cancel, "first").values()))
    assert "What was learnt since step 1,200 is lost; checkpoints stay." in asked
    opened.click(actions._ask_cancel.yes, "first")
    assert run.cancel_requested()


def test_a_question_goes_away_with_what_it_was_about(opened: Opened) -> None:
    actions, run = opened.panel.actions, opened.add("first", Status.TRAINING)
    _, shown = opened.tick()
    run.request_save()
    updates, shown = opened.tick(LATEST, shown)
    assert actions._ask_cancel.box not in updates, "it is still being trained, so the question stays"
    run.set_state(Status.DONE)
    updates, _ = opened.tick(LATEST, shown)
    assert updates[actions._ask_cancel.box]["visible"] is False


def test_the_queue_is_changed_from_the_page(opened: Opened) -> None:
    opened.add("running", Status.TRAINING)
    for name in ("a", "b", "c"):
        opened.add(name, Status.QUEUED)
    actions = opened.panel.actions
    assert opened.offered("b") == ["Move up", "Move down", "Take out of the queue"]
    updates, _ = opened.tick("a")
    assert not updates[actions.up]["interactive"] and updates[actions.down]["interactive"]
    opened.click(actions.up, "c")
    opened.click(actions.down, "a")
    assert [run.name for run in opened.supervisor.queue.runs()] == ["c", "a", "b"]
    opened.click(actions.take_out, "a")
    updates, _ = opened.tick()
    assert "<li>c</li><li>b</li>" in updates[opened.panel.queue]
    assert opened.offered("a") == ["Start again", "Delete"]


def test_what_cannot_be_done_is_said_in_a_sentence(opened: Opened) -> None:
    actions = opened.panel.actions
    for button in (actions.stop, actions.up, actions.go_on, actions._ask_delete.yes, actions.cancel):
        with pytest.raises(gr.Error, match="'&lt;b&gt;gone'"):
            opened.click(button, "<b>gone")


def test_a_folder_that_cannot_be_written_is_said(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.add("first", Status.TRAINING)

    def refuse(_: Run) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "request_stop", refuse)
    with pytest.raises(gr.Error, match="cannot be written"):
        opened.click(opened.panel.actions.stop, "first")


def test_extending_goes_on_with_more(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(Supervisor, "go_on", lambda _, run, **changes: asked.append({"run": run.name} | changes))
    run = opened.add("first", Status.DONE)
    run.receipt_file.write_text(json.dumps({"steps_per_epoch": 2}))
    for amount, unit in ((2, "epochs"), (3, "steps")):
        fire(opened.page, opened.panel.actions._extend, "click", "first", amount, unit)
    assert asked == [{"run": "first", "epochs": 4.0}, {"run": "first", "epochs": 3.5}]
    with pytest.raises(gr.Error, match="more than 0"):
        fire(opened.page, opened.panel.actions._extend, "click", "first", None, "epochs")


# Deleting


def test_delete_undo_and_the_trash(opened: Opened) -> None:
    panel, trash = opened.panel, opened.panel._trash
    for name in ("a", "b"):
        give_result(opened.add(name, Status.DONE))
        opened.click(panel.actions._ask_delete.yes, name)
    updates, _ = opened.tick()
    assert updates[trash._row]["visible"] and "is in the trash, and 1 more." in updates[trash._text]
    fire(opened.page, trash._undo, "click", updates[trash._last])
    assert len(list(opened.folders.loras.glob("[ab]"))) == 1
    with pytest.raises(gr.Error, match="not in the trash any more"):
        fire(opened.page, trash._undo, "click", updates[trash._last])
    updates, _ = opened.tick()
    assert updates[trash._text].endswith("is in the trash.</span>")
    assert "for good" in str(fire(opened.page, trash._empty, "click"))
    trash._empty_it()
    updates, _ = opened.tick()
    assert trash._row not in updates, "a page that has shown nothing of a trash has nothing to hide"


def test_undo_says_so_when_the_name_is_taken(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda text, **_: said.append(text))
    give_result(opened.add("a", Status.DONE))
    opened.click(opened.panel.actions._ask_delete.yes, "a")
    give_result(opened.add("a", Status.DONE))
    updates, _ = opened.tick()
    trash = opened.panel._trash
    fire(opened.page, trash._undo, "click", updates[trash._last])
    assert said == ["The name 'a' is taken by now, so it came back as 'a-2'."]


# Failures


@pytest.fixture
def remedied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that remedies were looked for."""
    asked: list[str] = []

    def remedies(run: Run, _: Any) -> list[Remedy]:
        asked.append(run.name)
        return [
            Remedy("Gradient checkpointing", 2_100_000_000, {"gradient_checkpointing": True}, True),
            Remedy("Cutoff length 256", 300_000_000, {"cutoff_length": 256}, False),
        ]

    monkeypatch.setattr(failure_box, "remedies", remedies)
    return asked


def look_into(box: FailureBox, updates: dict[Any, Any]) -> dict[Any, Any]:
    """What the timer brings that these updates set off."""
    assert updates[box._due].active
    return box._look_into(updates[box._failure])


def test_memory_that_ran_out_offers_remedies_looked_for_once(opened: Opened, remedied: list[str]) -> None:
    box = opened.panel.failure
    opened.add("first", Status.FAILED, reason=Reason.MEMORY)
    updates, _ = opened.tick()
    assert updates[box._box]["visible"] and "Looking for" in updates[box._about] and remedied == []
    for _ in range(2):  # two pages
        shown = look_into(box, updates)
    assert remedied == ["first"]
    labels = [shown[button]["value"] for button in box.remedies if button in shown]
    assert labels == [
        "Gradient checkpointing: about 2.1 GB less",
        "Cutoff length 256: about 300 MB less (a new training)",
    ]


def test_remedies_of_a_run_that_is_gone_are_a_sentence(opened: Opened) -> None:
    box, run = opened.panel.failure, opened.add("first", Status.FAILED, reason=Reason.MEMORY)
    updates, _ = opened.tick()
    run.folder.rename(run.folder.with_name(".gone"))
    shown = look_into(box, updates)
    assert "There is no LoRA called" in shown[box._about]


def test_without_a_remedy_that_is_said(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_box, "remedies", lambda *_: [])
    opened.add("first", Status.FAILED, reason=Reason.MEMORY)
    box = opened.panel.failure
    shown = look_into(box, opened.tick()[0])
    assert "choose a smaller base model" in shown[box._about]


def test_unknown_errors_have_a_report_and_others_have_none(opened: Opened) -> None:
    box = opened.panel.failure
    run = opened.add("first", Status.FAILED, reason=Reason.UNKNOWN, cause="It broke.")
    updates, _ = opened.tick()
    assert updates[box._report_box]["visible"] and not updates[box._box]["visible"]
    shown = look_into(box, updates)
    assert "It broke." in shown[box._report]
    run.set_state(Status.FAILED, "No such file.", Reason.REFUSED)
    updates, _ = opened.tick()
    assert not updates[box._due].active
    assert not updates[box._report_box]["visible"] and not updates[box._box]["visible"]


def test_a_loss_that_broke_offers_a_lower_rate(opened: Opened) -> None:
    run, box = opened.add("first", Status.STOPPED, reason=Reason.DIVERGED), opened.panel.failure
    assert not opened.tick()[0][box.slower]["visible"], "there is nothing to go on from"
    give_checkpoint(run)
    assert opened.tick()[0][box.slower]["visible"]
    run.write_settings(make_settings(name="first", learning_rate=1e-3))
    assert failure_box.halved_rate("first", opened.folders) == {"learning_rate": 5e-4}


def test_a_run_that_goes_on_shows_no_failure(opened: Opened) -> None:
    run, box = opened.add("first", Status.FAILED, reason=Reason.MEMORY), opened.panel.failure
    _, shown = opened.tick()
    run.set_state(Status.TRAINING)
    updates, _ = opened.tick(LATEST, shown)
    assert not updates[box._box]["visible"] and updates[opened.panel._log_box]["open"] is False


def test_going_on_with_the_button(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real supervisor puts the run in the queue, from where it is started; here nothing is started."""
    looks: list[int] = []
    monkeypatch.setattr(supervisors.Supervisor, "look", lambda _: looks.append(1))
    give_checkpoint(opened.add("first", Status.STOPPED))
    opened.click(opened.panel.actions.go_on, "first")
    assert find_run(opened.folders, "first").state().status is Status.QUEUED and looks
    refused: Callable[..., None] = lambda *_: (_ for _ in ()).throw(UserError("No."))  # noqa: E731
    monkeypatch.setattr(Supervisor, "go_on", refused)
    with pytest.raises(gr.Error, match=r"No\."):
        opened.click(opened.panel.actions.go_on, "first")
