"""What is offered to a run that memory ran out for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training.paths import Folders
from training.remedies import Remedy, remedies, was_on
from training.run_state import Status
from training.run_store import create_run
from training.settings import ALWAYS


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    folders = make_folders(tmp_path)
    add_base(folders)
    add_dataset(folders)
    return folders


def offered(folders: Folders, receipt: str | None = None, **changes: Any) -> list[Remedy]:
    run = create_run(folders, make_settings(batch_size=256, **changes))
    if receipt is not None:
        run.receipt_file.write_text(receipt)
    run.set_state(Status.FAILED)
    return remedies(run, folders)


def test_order_is_that_of_the_gain(folders: Folders) -> None:
    found = offered(folders, micro_batch_size=256, cutoff_length=512)
    assert {"Gradient checkpointing", "Micro-batch size 1", "Cutoff length 256"} <= {r.label for r in found}
    assert [r.saves for r in found] == sorted((r.saves for r in found), reverse=True)
    assert found[0].label == "Micro-batch size 1" and found[0].saves > 2**28


def test_only_what_leaves_the_learnt_alone_goes_on(folders: Folders) -> None:
    found = offered(folders, micro_batch_size=256, cutoff_length=512)
    goes_on, changes = {r.label: r.continues for r in found}, {r.label: r.changes for r in found}
    assert changes["Gradient checkpointing"] == {"gradient_checkpointing": ALWAYS}
    assert goes_on["Gradient checkpointing"] and goes_on["Micro-batch size 1"] and not goes_on["Cutoff length 256"]


def test_what_is_done_already_or_does_not_fit_the_method_is_not_offered(folders: Folders) -> None:
    labels = {r.label for r in offered(folders, micro_batch_size=256, method="prefix tuning", cutoff_length=512)}
    assert "Micro-batch size 1" in labels and "Gradient checkpointing" not in labels
    labels = {r.label for r in offered(folders, name="b", micro_batch_size=1, gradient_checkpointing=ALWAYS)}
    assert not labels & {"Gradient checkpointing", "Micro-batch size 1"}


@pytest.mark.parametrize("receipt", ["{}", "[]", "{", '{"gradient_checkpointing": false}'])
def test_receipt_that_tells_nothing_of_it_means_off(folders: Folders, receipt: str) -> None:
    run = create_run(folders, make_settings())
    assert not was_on(run)
    run.receipt_file.write_text(receipt)
    assert not was_on(run)


def test_checkpointing_that_memory_had_asked_for_is_not_offered_again(folders: Folders) -> None:
    """And what else would help is told of a training with it."""
    with_it = offered(folders, '{"gradient_checkpointing": true}', micro_batch_size=256)
    assert "Gradient checkpointing" not in {r.label for r in with_it}
    without = {r.label: r.saves for r in offered(folders, name="b", micro_batch_size=256)}
    assert {r.label: r.saves for r in with_it}["Micro-batch size 1"] < without["Micro-batch size 1"]


def test_base_model_that_is_gone_leaves_nothing_to_reckon_with(folders: Folders) -> None:
    assert offered(folders, base_model="org/elsewhere") == []
