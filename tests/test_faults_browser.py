"""What a user sees of scarcity, in a real browser: a disk that is full, memory that runs out, and what helps then."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from playwright.sync_api import Page, expect

from tests.server import Server, running_server
from tests.test_faults import MIB, small_disk
from tests.test_faults import fill as fill_disk
from tests.test_runs_browser import LONG, PREPARED, TRAINED, end_all, expect_training, start, status
from training.model_facts import size_text
from training.paths import Folders
from training.remedies import remedies
from training.run_state import Status
from training.runs import Run
from training.settings import ALWAYS, Settings

if TYPE_CHECKING:
    from tests.conftest import Visit

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(sys.platform != "linux", reason="the faults are made by Linux's means"),
]


@contextmanager
def scarce_server(root: Path) -> Iterator[Server]:
    """The page over folders below `root`; what still trains at the end is ended."""
    folders = Folders(datasets=root / "datasets", loras=root / "loras")
    folders.make()
    shutil.copy(Folders.datasets / "car_warranty.json", folders.datasets)
    with running_server(folders, root / "server.log") as server:
        try:
            yield server
        finally:
            end_all(folders)


@pytest.fixture
def scarce(tmp_path: Path) -> Iterator[Server]:
    """A page of this test's own."""
    with scarce_server(tmp_path) as server:
        yield server


def wait_for_checkpoint(page: Page) -> None:
    expect(page.locator("#monitor-checkpoints")).to_contain_text("checkpoint-", timeout=PREPARED)


def starve(run: Run) -> None:
    """Let the worker's next wish for memory fail: it may not even keep what it has."""
    pid = run.state().pid
    assert pid
    worker = psutil.Process(pid)
    worker.rlimit(psutil.RLIMIT_AS, (worker.memory_info().vms - 300 * MIB, -1))


@pytest.mark.parametrize("leave", [0, 4 * MIB])
def test_full_disk_is_said_and_waited_for(visit: Callable[..., Visit], tmp_path: Path, leave: int) -> None:
    """With nothing left the worker cannot even write that it waits; with a little it can, and cannot save."""
    with small_disk(tmp_path / "loras", 260 * MIB) as disk, scarce_server(tmp_path) as server:
        seen = visit(server.url, viewport={"width": 1440, "height": 1000})
        page = seen.page
        start(page, "has started", name="thirsty", epochs="5", save_every="3")
        wait_for_checkpoint(page)
        filler = fill_disk(disk, leave)
        expect(status(page).locator("strong")).to_have_text("Waiting", timeout=PREPARED)
        expect(status(page).locator(".graft-waiting .graft-dot")).to_have_css("background-color", "rgb(245, 158, 11)")
        warning = status(page).locator(".graft-note-warning")
        expect(warning).to_contain_text("The disk is full")
        expect(warning).to_contain_text("goes on as soon as there is room")
        expect(page.locator("#monitor-stop")).to_be_enabled()
        run = Run(server.folders.loras / "thirsty")
        assert run.state().is_alive()
        filler.unlink()
        expect(status(page).locator("strong")).to_have_text("Done", timeout=TRAINED)
        expect(status(page)).to_contain_text("35 / 35")
        assert run.state().status is Status.DONE and run.has_result()
        seen.assert_clean()


def test_memory_that_runs_out_is_recovered_from_before_the_readers_eyes(
    scarce: Server, visit: Callable[..., Visit]
) -> None:
    seen = visit(scarce.url, viewport={"width": 1440, "height": 1000})
    page = seen.page
    start(page, "has started", name="hungry", epochs=LONG, save_every="3")
    wait_for_checkpoint(page)
    run = Run(scarce.folders.loras / "hungry")
    first_pid = run.state().pid
    starve(run)
    told = "Memory ran out with a micro-batch size of 4: the training goes on from its last checkpoint with 2."
    note = status(page).locator(".graft-note-warning")
    expect(note).to_contain_text(told, timeout=PREPARED)
    expect_training(page, "hungry")
    assert run.state().pid != first_pid and run.settings().micro_batch_size == 2
    trained = run.checkpoints()[-1].step
    page.locator("#monitor-stop").click()
    expect(status(page)).to_contain_text("Stopped and saved", timeout=PREPARED)
    expect(note).to_contain_text(told)
    assert run.checkpoints()[-1].step > trained and run.has_result()
    seen.assert_clean()


def test_memory_that_runs_out_for_good_offers_what_would_make_it_fit(
    scarce: Server, visit: Callable[..., Visit]
) -> None:
    seen = visit(scarce.url, viewport={"width": 1440, "height": 1000})
    page = seen.page
    page.locator("#advanced-box > button").click()
    page.locator("#setting-retry_smaller input").uncheck()
    start(page, "has started", name="starved", epochs=LONG, save_every="3")
    wait_for_checkpoint(page)
    run = Run(scarce.folders.loras / "starved")
    starve(run)
    expect(status(page).locator("strong")).to_have_text("Failed", timeout=PREPARED)
    expect(status(page).locator(".graft-note-error")).to_contain_text("Memory ran out.")
    expect(page.locator("#monitor-remedies-about")).to_have_text(
        "What would make it fit, the largest gain first:", timeout=PREPARED
    )
    found = remedies(run, scarce.folders)
    assert found == sorted(found, key=lambda remedy: -remedy.saves) and found[-1].saves > 0
    offered = page.locator("#monitor-remedies button:visible")
    expect(offered).to_have_count(len(found))
    for button, remedy in zip(offered.all(), found, strict=True):
        expect(button).to_contain_text(f"{remedy.label}: about {size_text(remedy.saves)} less")
    offered.filter(has_text="Gradient checkpointing").click()
    expect(page.locator("#form-message")).to_contain_text("'starved' goes on with Gradient checkpointing.")
    expect_training(page, "starved")
    expect(page.locator("#monitor-remedies")).to_be_hidden()
    assert run.settings().gradient_checkpointing == ALWAYS != Settings.model_fields["gradient_checkpointing"].default
    seen.assert_clean()
