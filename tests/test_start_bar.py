"""Starting from the form: what is said of it, the question about a taken name, and what a remedy does to the form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from tests.pages import fire
from tests.tiny import make_folders, make_settings
from training.remedies import Remedy
from training.run_state import Status
from training.run_store import create_run
from training.runs import Run, find_run, list_runs
from training.settings import Settings
from training.supervisor import Supervisor
from ui.name_box import ago
from ui.training_tab import DATASET, TrainingTab


class Quiet(Supervisor):
    """Makes and queues runs as the real one does, but neither looks at models and data nor starts anything."""

    def look(self) -> None:
        pass

    def _checked(self, settings: Settings) -> Settings:
        return settings


class Opened:
    """The Training tab in a page."""

    def __init__(self, root: Path) -> None:
        self.folders = make_folders(root)
        self.supervisor = Quiet(self.folders)
        with gr.Blocks() as self.page:
            self.tab = TrainingTab(self.folders, self.supervisor)
            self.tab.wire(self.page)
        self.bar = self.tab._start_bar
        self.box = self.bar._name_box

    def press(self, button: gr.Button, *, asked_about: str = "", **changes: Any) -> Any:
        """What a click on a button of the bar gives, with these settings in the form."""
        shown = self.tab.form.fill(make_settings(**changes).model_dump(mode="json"))
        values = [shown[control]["value"] for control in self.tab.form.components]
        return fire(self.page, button, "click", 0, asked_about, DATASET, *values)

    def names(self) -> list[str]:
        return sorted(run.name for run in list_runs(self.folders))


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path)


def finish(run: Run, *, steps: int = 105) -> None:
    (run.folder / f"checkpoint-{steps}").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (run.folder / name).write_text("{}")
    run.set_state(Status.DONE)


def test_start_says_what_became_of_it(opened: Opened) -> None:
    updates = opened.press(opened.bar.start, name="first")
    assert "&#x27;first&#x27; waits in the queue, place 1." in updates[opened.bar.message]
    updates = opened.press(opened.bar.start, name="second")
    assert "place 2." in updates[opened.bar.message]
    assert updates[opened.tab.monitor.starts] == 1


def test_wrong_settings_are_a_sentence_and_make_nothing(opened: Opened) -> None:
    shown = opened.press(opened.bar.start, name="")
    assert "Name: " in shown[opened.bar.message] and opened.names() == []


def test_a_taken_name_asks_and_makes_nothing(opened: Opened) -> None:
    finish(create_run(opened.folders, make_settings(name="my-lora")))
    shown = opened.press(opened.bar.start, name="my-lora")
    said = shown[opened.box._text]
    assert "&#x27;my-lora&#x27; is done, 105 steps, just now." in said and "loras/.replaced/" in said
    assert shown[opened.box._new]["value"] == "Save as my-lora-2"
    assert shown[opened.box._continue]["visible"] and shown[opened.box._overwrite]["visible"]
    assert opened.names() == ["my-lora"]


@pytest.mark.parametrize("status", [Status.QUEUED, Status.TRAINING])
def test_a_run_that_is_not_over_can_only_get_a_neighbour(opened: Opened, status: Status) -> None:
    create_run(opened.folders, make_settings(name="my-lora")).set_state(status)
    shown = opened.press(opened.bar.start, name="my-lora")
    assert not shown[opened.box._continue]["visible"] and not shown[opened.box._overwrite]["visible"]


def test_each_answer_does_what_it_says(opened: Opened) -> None:
    run = create_run(opened.folders, make_settings(name="a"))
    finish(run)
    new, go_on, overwrite = (button for button, _ in opened.box.answers)
    shown = opened.press(new, asked_about="a", name="a")
    assert opened.names() == ["a", "a-2"] and "The name &#x27;a&#x27; was taken." in shown[opened.bar.message]
    assert shown[opened.box._box]["visible"] is False
    shown = opened.press(go_on, asked_about="a", name="a", lora_rank=8)
    assert "begun with other settings (LoRA rank)" in shown[opened.bar.message]
    opened.press(go_on, asked_about="a", name="a", epochs=9)
    assert run.state().status is Status.QUEUED and run.settings().epochs == 9
    finish(Run(opened.folders.loras / "a-2"))
    opened.press(overwrite, asked_about="a-2", name="a-2")
    assert opened.names() == ["a", "a-2"] and not find_run(opened.folders, "a-2").has_result()
    assert len(list((opened.folders.loras / ".replaced").iterdir())) == 1


def test_an_answer_does_not_count_for_another_name(opened: Opened) -> None:
    """The name was changed after the question: what now has that name must not be overwritten unasked."""
    for name in ("a", "b"):
        finish(create_run(opened.folders, make_settings(name=name)))
    overwrite, _ = opened.box.answers[-1]
    shown = opened.press(overwrite, asked_about="a", name="b")
    assert shown[opened.box.asked_about] == "b" and find_run(opened.folders, "b").has_result()


def test_a_choice_in_the_form_is_not_asked_about(opened: Opened) -> None:
    finish(create_run(opened.folders, make_settings(name="a")))
    opened.press(opened.bar.start, name="a", if_exists="new version")
    assert opened.names() == ["a", "a-2"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "just now"), (60, "1 minute ago"), (7300, "2 hours ago"), (90_000, "1 day ago"), (-3, "just now")],
)
def test_ago(seconds: float, text: str) -> None:
    assert ago(seconds) == text


# What the monitor offers for a failure


def take(opened: Opened, remedy: Remedy) -> Any:
    button = opened.tab.monitor.failure.remedies[0]
    return fire(opened.page, button, "click", "a", 0, [remedy])


def test_a_remedy_goes_on_at_once(opened: Opened) -> None:
    run = create_run(opened.folders, make_settings(name="a"))
    (run.folder / "checkpoint-5").mkdir()
    run.set_state(Status.FAILED)
    shown = take(opened, Remedy("Gradient checkpointing", 1, {"gradient_checkpointing": "always"}, True))
    assert "goes on with Gradient checkpointing." in shown[opened.bar.message]
    assert run.state().status is Status.QUEUED and run.settings().gradient_checkpointing == "always"
    with pytest.raises(gr.Error, match="waits in the queue"):
        take(opened, Remedy("Gradient checkpointing", 1, {"gradient_checkpointing": "always"}, True))


def test_a_remedy_that_needs_a_new_training_fills_the_form(opened: Opened) -> None:
    create_run(opened.folders, make_settings(name="a", seed=7)).set_state(Status.FAILED)
    shown = take(opened, Remedy("Cutoff length 256", 1, {"cutoff_length": 256}, False))
    controls = opened.tab.form.controls
    values = {name: shown[controls[name]]["value"] for name in ("cutoff_length", "if_exists", "seed", "name")}
    assert values == {"cutoff_length": 256, "if_exists": "new version", "seed": 7, "name": "a"}
    assert "with Cutoff length 256: click Start." in shown[opened.bar.message]
    assert opened.names() == ["a"]


def test_half_the_learning_rate(opened: Opened) -> None:
    run = create_run(opened.folders, make_settings(name="a", learning_rate=1e-3))
    (run.folder / "checkpoint-5").mkdir()
    run.set_state(Status.STOPPED)
    fire(opened.page, opened.tab.monitor.failure.slower, "click", "a", 0)
    assert run.settings().learning_rate == 5e-4 and run.state().status is Status.QUEUED
