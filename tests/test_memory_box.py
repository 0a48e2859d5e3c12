"""What the memory box says of a check, and what it offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from tests.pages import fire
from tests.tiny import add_base, make_folders, make_settings
from training.memory_checks import CheckProgress, CheckState, Report, Tried
from training.run_state import Status
from training.run_store import create_run
from ui.memory_box import MemoryBox, better_size, check_html, found_text

GB = 2**30
NOTHING = Report(asked=4, free=GB, tried=[Tried(micro_batch_size=1, fits=False)])


def report(*peaks: float, asked: int = 4, failed: int | None = None, **more: Any) -> Report:
    """A report in which 1, 2, 4 ... need these gigabytes."""
    tried = [Tried(micro_batch_size=2**n, fits=True, peak=int(peak * GB)) for n, peak in enumerate(peaks)]
    if failed:
        tried.append(Tried(micro_batch_size=failed, fits=False))
    values: dict[str, Any] = {
        "asked": asked,
        "most": 16,
        "free": int(7.3 * GB),
        "tried": tried,
        "timed_at": tried[0].micro_batch_size,
        "tokens_per_second": 1420.4,
        "total_seconds": 1530,
        "on_gpu": True,
        "longest": 1431,
    }
    return Report(**values | more)


def progress(found: Report, state: CheckState = "done", message: str = "") -> CheckProgress:
    return CheckProgress(make_settings(), found, state, message)


FREE = "the 7.3 GB that are free on the GPU"
SPEED = "; 1,420 tokens a second; about 26 minutes in all"


@pytest.mark.parametrize(
    ("found", "text", "offered"),
    [
        (
            report(1, 2, 3.04, 5.1, failed=16),
            f"Micro-batch 4 needs 3.0 GB of {FREE}{SPEED}. The largest micro-batch that fits is 8 (5.1 GB); "
            "16 does not fit.",
            8,
        ),
        (
            report(1, 2, 3, 4, 5),
            f"Micro-batch 4 needs 3.0 GB of {FREE}{SPEED}. The whole batch of 16 fits at once, too (5.0 GB).",
            16,
        ),
        (
            report(1, 2, 3, failed=8),
            f"Micro-batch 4 needs 3.0 GB of {FREE}{SPEED}. Micro-batch 8 does not fit.",
            None,
        ),
        (report(1, 2, 3, most=4), f"Micro-batch 4 needs 3.0 GB of {FREE}{SPEED}.", None),
        (
            report(1, 2, failed=4),
            f"Micro-batch 4 does not fit in {FREE}. The largest that fits is 2 (2.0 GB){SPEED}.",
            2,
        ),
        (
            report(1, failed=2, asked=4, timed_at=None, on_gpu=False),
            "Micro-batch 4 does not fit in the 7.3 GB that are free in main memory. "
            "The largest that fits is 1 (1.0 GB).",
            1,
        ),
        (
            NOTHING,
            "Not even one example at a time fits in the 1.0 GB that are free in main memory: lower the cutoff length, "
            "set gradient checkpointing to always or load the model in 4-bit.",
            None,
        ),
        (
            NOTHING.model_copy(update={"gradient_checkpointing": True}),
            "Not even one example at a time fits in the 1.0 GB that are free in main memory: lower the cutoff length "
            "or load the model in 4-bit.",
            None,
        ),
    ],
)
def test_what_was_found(found: Report, text: str, offered: int | None) -> None:
    assert found_text(found) == text
    assert better_size(progress(found)) == offered
    assert better_size(progress(found, "running")) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (5, "less than a minute"),
        (70, "about a minute"),
        (150, "about 2 minutes"),
        (5000, "about 83 minutes"),
        (9000, "about 2 hours"),
    ],
)
def test_time_is_no_more_exact_than_it_is(seconds: float, words: str) -> None:
    assert f"; {words} in all" in found_text(report(1, 2, 3, most=4, total_seconds=seconds))


def test_levels() -> None:
    assert "graft-note-info" in check_html(progress(report(1, 2, 3)))
    assert "graft-note-warning" in check_html(progress(report(1, failed=2)))
    assert "graft-note-error" in check_html(progress(NOTHING))


def test_progress_failure_and_the_users_text() -> None:
    going = check_html(progress(report(1, 2, doing="micro-batch <4>"), "running"))
    assert "Checking memory: 1 needs 1.0 GB; 2 needs 2.0 GB; micro-batch &lt;4&gt; ..." in going
    failed = check_html(progress(Report(), "failed", "<b>"))
    assert "&lt;b&gt;" in failed and 'role="alert"' in failed
    assert "was cancelled" in check_html(progress(Report(), "cancelled", "It was cancelled."))
    settings = make_settings().model_copy(update={"base_model": "<i>"})
    shown = check_html(CheckProgress(settings, report(1, 2, 3), "done"))
    assert "Measured with &lt;i&gt; in 32-bit, LoRA, and examples of up to 1,431 tokens." in shown


def test_what_cannot_be_checked_is_told(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    with gr.Blocks() as page:
        name, size = gr.Textbox(), gr.Number()
        box = MemoryBox(folders)
        box.build_result()
        box.build_button()
        values = make_settings().model_dump(mode="json")
        box.wire(page, [name], lambda base: values | {"base_model": base, "name": ""}, size)

    def said(base: str) -> str:
        updates = fire(page, box.start, "click", base)
        return " ".join(str(update.get("value", "")) for update in updates.values())

    assert "Base model: choose one." in said("")
    assert "there is no folder &#x27;&lt;b&gt;&#x27;" in said("<b>")
    assert "not on this computer yet" in said("org/model")
    add_base(folders)
    run = create_run(folders, make_settings())
    run.set_state(Status.TRAINING)
    assert "&#x27;test&#x27; is being trained and uses the memory" in said("tiny")
    run.set_state(Status.DONE)
