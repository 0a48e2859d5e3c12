"""What becomes of runs, in a real browser: stopped, saved, cancelled, queued, deleted, extended, killed, found."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Page, expect

from tests.server import Server, running_server
from training.parsing import parse
from training.paths import Folders
from training.run_queue import RunQueue
from training.run_state import Status
from training.runs import Run, list_runs
from training.supervisor import active_run

if TYPE_CHECKING:
    from tests.conftest import Visit

pytestmark = pytest.mark.browser

SECOND = 1000  # milliseconds
PREPARED = 120 * SECOND  # importing torch and loading the starter, on a busy machine
TRAINED = 300 * SECOND
LONG = "2000"  # epochs that no test waits for


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends what a test has left in training or in the queue."""
    yield
    if "server" in request.fixturenames:
        end_all(request.getfixturevalue("server").folders)


def end_all(folders: Folders) -> None:
    queue = RunQueue(folders)
    for run in queue.runs():
        queue.remove(run.name)
    deadline = time.monotonic() + 60
    while (run := active_run(folders)) and time.monotonic() < deadline:
        run.request_cancel()
        time.sleep(0.2)
    assert active_run(folders) is None


def fill(page: Page, **values: str) -> None:
    """Type values into the form's boxes, opening the accordion that hides some of them."""
    if "save_every" in values and not page.locator("#setting-save_every input").is_visible():
        page.locator("#advanced-box > button").click()
    for name, value in values.items():
        box = page.locator(f"#setting-{name} input").first
        box.fill(value)
        box.blur()
        expect(box).to_have_value(value)


def start(page: Page, says: str, **values: str) -> None:
    fill(page, **values)
    page.locator("#start").click()
    expect(page.locator("#form-message")).to_contain_text(says, timeout=30 * SECOND)


def status(page: Page) -> Any:
    return page.locator("#monitor-status")


def expect_training(page: Page, name: str) -> None:
    expect(status(page).locator(".graft-run")).to_have_text(name, timeout=PREPARED)
    expect(status(page).locator("strong")).to_have_text("Training", timeout=PREPARED)
    expect(status(page)).to_contain_text("time left", timeout=PREPARED)


def choose_run(page: Page, label: str) -> None:
    page.locator("#monitor-run input").click()
    page.locator("#monitor-run").get_by_role("option", name=label, exact=True).click()


def make_finished(folders: Folders, name: str) -> Run:
    """A finished run as the page sees one, without the training."""
    run = Run(folders.loras / name)
    (run.folder / "checkpoint-7").mkdir(parents=True)
    run.write_settings(parse({"name": name, "dataset": "car_warranty.json"}))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (run.folder / file).write_text("{}")
    run.set_state(Status.DONE)
    return run


def test_save_now_cancel_stop_and_continue(server: Server, page: Page) -> None:
    start(page, "has started", name="long", epochs=LONG, save_every="0", save_minutes="0")
    expect_training(page, "long")
    save, checkpoints = page.locator("#monitor-save"), page.locator("#monitor-checkpoints")
    expect(checkpoints).not_to_contain_text("checkpoint-")
    save.click()
    expect(checkpoints).to_contain_text("checkpoint-", timeout=PREPARED)
    expect(save).to_have_text("Save now")
    expect(save).to_be_enabled()
    run = Run(server.folders.loras / "long")
    saved = run.checkpoints()[-1].step

    page.locator("#monitor-cancel").click()
    question = page.locator("#monitor-ask-cancel")
    expect(question).to_contain_text(f"What was learnt since step {saved:,} is lost; checkpoints stay.")
    page.locator("#monitor-ask-cancel-no").click()
    expect(question).to_be_hidden()
    assert run.state().status.active

    page.locator("#monitor-stop").click()
    expect(status(page)).to_contain_text("Stopped and saved", timeout=PREPARED)
    stopped = run.checkpoints()[-1].step
    assert stopped > saved
    expect(page.locator("#monitor-chat")).to_be_visible()

    page.locator("#monitor-continue").click()
    expect_training(page, "long")
    page.locator("#monitor-cancel").click()
    page.locator("#monitor-ask-cancel-yes").click()
    expect(status(page)).to_contain_text("It was cancelled; what was not saved is lost.", timeout=PREPARED)
    assert run.checkpoints()[-1].step == stopped


def test_queue_is_reordered_and_shortened_from_the_page(server: Server, page: Page) -> None:
    start(page, "has started", name="a", epochs=LONG)
    expect(page.locator("#start")).to_have_text("Add to the queue")
    start(page, "'b' waits in the queue, place 1.", name="b")
    start(page, "'c' waits in the queue, place 2.", name="c")
    waiting = page.locator("#monitor-queue li")
    expect(waiting).to_have_text(["b", "c"])
    choose_run(page, "c (waits, place 2)")
    expect(status(page)).to_contain_text("Waits in the queue, place 2 of 2")
    expect(page.locator("#monitor-down")).to_be_disabled()
    page.locator("#monitor-up").click()
    expect(waiting).to_have_text(["c", "b"])
    expect(status(page)).to_contain_text("Waits in the queue, place 1 of 2")
    choose_run(page, "b (waits, place 2)")
    page.locator("#monitor-take-out").click()
    expect(waiting).to_have_text(["c"])
    expect(status(page)).to_contain_text("It was taken out of the queue.")
    expect(page.locator("#monitor-continue")).to_have_text("Start again")

    choose_run(page, "The latest")
    expect_training(page, "a")
    page.locator("#monitor-stop").click()
    expect_training(page, "c")
    expect(waiting).to_have_count(0)
    assert Run(server.folders.loras / "a").state().status is Status.STOPPED


def test_deleted_run_comes_back_even_after_a_reload(server: Server, page: Page) -> None:
    make_finished(server.folders, "another")  # which the monitor shows afterwards
    make_finished(server.folders, "precious")
    page.set_viewport_size({"width": 1440, "height": 600})
    choose_run(page, "precious")  # the latest may be one that a test before has just stopped
    expect(status(page).locator(".graft-run")).to_have_text("precious")
    page.locator("#monitor-delete").click()
    expect(page.locator("#monitor-ask-delete")).to_contain_text("Delete 'precious'?")
    page.locator("#monitor-ask-delete-yes").click()
    expect(page.locator("#trash-text")).to_have_text("'precious' is in the trash.")
    expect(page.locator("#trash-undo")).to_be_in_viewport()
    assert not (server.folders.loras / "precious").exists()
    page.reload()
    expect(page.locator("#trash-text")).to_have_text("'precious' is in the trash.", timeout=60 * SECOND)
    page.locator("#trash-undo").click()
    expect(page.locator("#trash")).to_be_hidden()
    assert Run(server.folders.loras / "precious").has_result()
    choose_run(page, "precious")
    expect(status(page)).to_contain_text("Done")


def test_start_on_a_narrow_page_shows_the_training(visit: Callable[..., Visit], tmp_path: Path, server: Server) -> None:
    """Before the first run the monitor stands below the form, and then above it."""
    folders = Folders(datasets=server.folders.datasets, loras=tmp_path / "loras")
    folders.loras.mkdir()
    with running_server(folders, tmp_path / "server.log") as alone:
        seen = visit(alone.url, viewport={"width": 800, "height": 1000})
        page = seen.page
        expect(page.locator("#start")).to_be_enabled(timeout=60 * SECOND)
        try:
            start(page, "has started", name="narrow", epochs=LONG)
            expect(status(page).locator(".graft-run")).to_have_text("narrow", timeout=PREPARED)
            expect(status(page)).to_be_in_viewport()
            expect(page.locator("#monitor-stop")).to_be_in_viewport()
        finally:
            end_all(folders)
        seen.assert_clean()


def test_name_in_use_asks_what_becomes_of_the_old_one(server: Server, page: Page) -> None:
    make_finished(server.folders, "taken")
    fill(page, name="taken", epochs=LONG)
    page.locator("#start").click()
    question = page.locator("#name-box")
    expect(question).to_contain_text("'taken' is done, 7 steps, just now.", timeout=30 * SECOND)
    page.locator("#name-not-now").click()
    expect(question).to_be_hidden()
    assert not active_run(server.folders)
    page.locator("#start").click()
    expect(page.locator("#name-new")).to_have_text("Save as taken-2")
    page.locator("#name-new").click()
    expect(page.locator("#form-message")).to_contain_text("Training 'taken-2' has started.", timeout=30 * SECOND)
    expect(question).to_be_hidden()
    fill(page, name="other")
    fill(page, name="taken")
    page.locator("#start").click()
    page.locator("#name-overwrite").click()
    expect(page.locator("#form-message")).to_contain_text("'taken' waits in the queue", timeout=30 * SECOND)
    assert not Run(server.folders.loras / "taken").has_result()
    assert [p.name.startswith("taken-") for p in (server.folders.loras / ".replaced").iterdir()] == [True]


def test_finished_run_is_extended(server: Server, page: Page) -> None:
    start(page, "has started", name="short", epochs="1")
    expect(status(page)).to_contain_text("Done", timeout=TRAINED)
    run = Run(server.folders.loras / "short")
    before = run.checkpoints()[-1].step
    page.locator("#monitor-extend").click()
    page.locator("#monitor-amount input").fill("2")
    page.locator("#monitor-unit input").click()
    page.get_by_role("option", name="steps", exact=True).click()
    page.locator("#monitor-extend-go").click()
    expect(status(page)).to_contain_text(f"{before + 2} / {before + 2}", timeout=TRAINED)
    expect(status(page)).to_contain_text("Done", timeout=TRAINED)
    assert run.checkpoints()[-1].step == before + 2


def test_worker_that_is_killed_is_said_to_be_and_the_run_goes_on(server: Server, page: Page) -> None:
    start(page, "has started", name="victim", epochs=LONG, save_every="2")
    expect(page.locator("#monitor-checkpoints")).to_contain_text("checkpoint-", timeout=PREPARED)
    run = Run(server.folders.loras / "victim")
    pid = run.state().pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    expect(status(page)).to_contain_text("Failed", timeout=PREPARED)
    expect(status(page)).to_contain_text("was killed by the system or by another program")
    expect(page.locator("#monitor-log")).to_be_visible()
    saved = run.checkpoints()[-1].step
    page.locator("#monitor-continue").click()
    expect_training(page, "victim")
    page.locator("#monitor-stop").click()
    expect(status(page)).to_contain_text("Stopped and saved", timeout=PREPARED)
    assert run.checkpoints()[-1].step >= saved


def test_run_outlives_the_server_and_the_next_one_shows_it(visit: Callable[..., Visit], tmp_path: Path) -> None:
    """kill -9 while it trains: the next server finds the worker by its process, shows it, and sees it end."""
    folders = Folders(datasets=tmp_path / "datasets", loras=tmp_path / "loras")
    folders.make()
    shutil.copy(Folders.datasets / "car_warranty.json", folders.datasets)
    with running_server(folders, tmp_path / "first.log") as first:
        page = visit(first.url, viewport={"width": 1440, "height": 1000}).page
        start(page, "has started", name="survivor", epochs="12", save_every="5")
        start(page, "'next' waits in the queue, place 1.", name="next", epochs="1")
        expect(page.locator("#monitor-checkpoints")).to_contain_text("checkpoint-5", timeout=PREPARED)
        run = Run(folders.loras / "survivor")
        pid = run.state().pid
        first.process.kill()
        first.process.wait()
    assert run.state().status.active and run.state().pid == pid
    with running_server(folders, tmp_path / "second.log") as second:
        seen = visit(second.url, viewport={"width": 1440, "height": 1000})
        expect(status(seen.page).locator(".graft-run")).to_have_text("survivor", timeout=60 * SECOND)
        expect(status(seen.page)).to_contain_text("Training")
        expect(seen.page.locator("#monitor-stop")).to_be_enabled()
        expect(seen.page.locator("#monitor-queue li")).to_have_text(["next"])
        assert run.state().pid == pid
        expect(status(seen.page).locator(".graft-run")).to_have_text("next", timeout=TRAINED)
        expect(status(seen.page)).to_contain_text("Done", timeout=TRAINED)
        assert [other.state().status for other in list_runs(folders)] == [Status.DONE, Status.DONE]
        seen.assert_clean()
        end_all(folders)
