"""What is offered to a run that memory ran out for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training.paths import Folders
from training.remedies import Remedy, remedies
from training.run_state import Status
from training.run_store import create_run


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = make_folders(tmp_path)
    add_base(folders)
    add_dataset(folders)
    return folders


def offered(folders: Folders, **changes: Any) -> list[Remedy]:
    run = create_run(folders, make_settings(batch_size=256, **changes))
    run.set_state(Status.FAILED)
    return remedies(run, folders)


def test_order_is_that_of_the_gain(folders: Folders) -> None:
    found = offered(folders, micro_batch_size=256, cutoff_length=512)
    assert {"Gradient checkpointing", "Micro-batch size 1", "Cutoff length 256"} <= {r.label for r in found}
    assert [r.saves for r in found] == sorted((r.saves for r in found), reverse=True)
    assert found[0].label == "Micro-batch size 1" and found[0].saves > 2**28


def test_only_what_leaves_the_learnt_alone_goes_on(folders: Folders) -> None:
    goes_on = {r.label: r.continues for r in offered(folders, micro_batch_size=256, cutoff_length=512)}
    assert goes_on["Gradient checkpointing"] and goes_on["Micro-batch size 1"] and not goes_on["Cutoff length 256"]


def test_what_is_done_already_or_does_not_fit_the_method_is_not_offered(folders: Folders) -> None:
    labels = {r.label for r in offered(folders, micro_batch_size=256, method="prefix tuning", cutoff_length=512)}
    assert "Micro-batch size 1" in labels and "Gradient checkpointing" not in labels
    labels = {r.label for r in offered(folders, name="b", micro_batch_size=1, gradient_checkpointing=True)}
    assert not labels & {"Gradient checkpointing", "Micro-batch size 1"}


def test_base_model_that_is_gone_leaves_nothing_to_reckon_with(folders: Folders) -> None:
    assert offered(folders, base_model="org/elsewhere") == []
