"""A LoRA folder from elsewhere is allowed nothing because its settings say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training.begun_here import forget, remember, was_begun_here
from training.errors import UserError
from training.paths import Folders
from training.run_state import State, Status
from training.runs import Run
from training.supervisor import Supervisor


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = make_folders(tmp_path)
    add_base(folders)
    add_dataset(folders)
    return folders


def copied(folders: Folders, status: Status, **settings: object) -> Run:
    """A run folder as somebody else may have made it."""
    run = Run(folders.loras / "theirs")
    run.folder.mkdir()
    run.write_settings(make_settings(name="theirs", **settings))
    run.write_state(State(status=status))
    return run


def test_list_is_kept_beside_the_runs(folders: Folders) -> None:
    run = Run(folders.loras / "mine")
    assert not was_begun_here(run.folder)
    remember(run.folder)
    remember(run.folder)
    assert was_begun_here(run.folder) and not was_begun_here(folders.loras / "other")
    forget(run.folder)
    assert not was_begun_here(run.folder)


@pytest.mark.parametrize("content", ["{", "{}", "3", ""])
def test_damaged_list_allows_nothing(folders: Folders, content: str) -> None:
    (folders.loras / ".begun-here.json").write_text(content)
    assert not was_begun_here(folders.loras / "mine")
    remember(folders.loras / "mine")
    assert was_begun_here(folders.loras / "mine")


def test_copied_run_is_not_started_because_it_says_that_it_waits(folders: Folders) -> None:
    run = copied(folders, Status.QUEUED)
    Supervisor(folders).look()
    assert run.state().status is Status.STOPPED and "not in the queue" in run.state().cause
    assert not run.log_file.exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"trust_remote_code": True}, "nobody has allowed here"),
        ({"dataset": "/etc/hosts.json"}, "leads out of|no file or folder"),
        ({"base_model": "../elsewhere"}, "Base model"),
    ],
)
def test_copied_run_does_not_go_on_with_what_it_allows_itself(
    folders: Folders, settings: dict[str, object], says: str
) -> None:
    run = copied(folders, Status.STOPPED, **settings)
    with pytest.raises(UserError, match=says):
        Supervisor(folders).go_on(run)
    assert run.state().status is Status.STOPPED and not run.log_file.exists()
