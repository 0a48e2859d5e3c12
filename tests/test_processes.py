"""One run in two processes: it learns what it learns in one, is told once, and goes on exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import add_base, add_dataset, make_folders, make_settings
from training import processes
from training.checkpoint_files import why_damaged
from training.events import CheckpointSaved, Evaluation, Note, Started, Step
from training.paths import PROJECT, Folders
from training.pipeline import train_run
from training.post_mortem import cause_of
from training.run_here import is_first_process, run_here
from training.run_state import Reason, Status
from training.run_store import create_run
from training.runs import ADAPTER_WEIGHTS, EventReader, Run
from training.training_thread import end_process_tree

DROPOUT = {"lora_dropout": 0.2, "scheduler": "reduce_lr_on_plateau", "result": "best evaluation"}
CHANGES: dict[str, dict[str, Any]] = {"plain": {}, "whole": DROPOUT, "broken": DROPOUT, "short": {}}


def new_run(folders: Folders, name: str, **changes: Any) -> Run:
    values = {"name": name, "epochs": 3, "batch_size": 3, "micro_batch_size": 1, "lora_dropout": 0, "save_minutes": 0}
    return create_run(folders, make_settings(**(values | {"evaluate_every": 1, "save_every": 2} | changes)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Folders in which two processes have trained together."""
    made = make_folders(tmp_path_factory.mktemp("together"))
    add_base(made)
    # Three are held out; of the rest an epoch has a batch of three and one of one, for which one process has nothing.
    add_dataset(made, [{"question": f"Q{n}", "answer": "yes" + "!" * n} for n in range(7)])
    for name, changes in CHANGES.items():
        new_run(made, name, held_out_share=0.4, **changes)
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    log = made.loras.parent / "log"
    with log.open("wb") as log_file:
        process = psutil.Popen(
            [*program, "-m", "tests.together", str(made.loras.parent)],
            cwd=PROJECT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log_file,
            stderr=subprocess.STDOUT,
        )
    try:
        exit_code = process.wait(timeout=300)
    finally:
        end_process_tree(process)  # one that waits for the other would stay for ever
    assert exit_code == 0, log.read_text()[-4000:]
    return made


def events(run: Run, kind: type[Any]) -> list[Any]:
    return [e for e in EventReader(run).read_new() if isinstance(e, kind)]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return dict(load_file(run.folder / ADAPTER_WEIGHTS))


def test_two_learn_what_one_learns(folders: Folders) -> None:
    one, two = new_run(folders, "one", held_out_share=0.4), Run(folders.loras / "plain")
    assert train_run(one, folders)
    for kind in (Step, Evaluation):
        ours, theirs = events(one, kind), events(two, kind)
        assert [e.step for e in ours] == [e.step for e in theirs]
        assert [e.loss for e in theirs] == pytest.approx([e.loss for e in ours], rel=1e-5)
    assert [e.grad_norm for e in events(two, Step)] == pytest.approx([e.grad_norm for e in events(one, Step)], rel=1e-4)
    expected = weights(one)
    for name, weight in weights(two).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-4)


def test_only_the_first_says_and_saves(folders: Folders) -> None:
    run = Run(folders.loras / "plain")
    assert len(events(run, Started)) == 1
    assert [e.step for e in events(run, Step)] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events(run, CheckpointSaved)] == [2, 4, 6] == [c.step for c in run.checkpoints()]
    assert len({note.text for note in events(run, Note)}) == len(events(run, Note))
    assert all(why_damaged(c.folder) == "" for c in run.checkpoints())
    assert json.loads(run.receipt_file.read_text())["processes"] == 2


def test_two_go_on_as_if_nothing_had_been(folders: Folders) -> None:
    whole, broken = Run(folders.loras / "whole"), Run(folders.loras / "broken")
    assert [e.from_step for e in events(broken, Started)] == [0, 3]
    first, second = ({e.step: (e.loss, e.learning_rate) for e in events(run, Step)} for run in (whole, broken))
    assert first == second
    assert (whole.folder / ADAPTER_WEIGHTS).read_bytes() == (broken.folder / ADAPTER_WEIGHTS).read_bytes()


def test_memory_of_one_that_runs_out_is_told_by_the_first(folders: Folders) -> None:
    told = json.loads((folders.loras / "told.json").read_text())
    assert told == "MemoryError: CUDA out of memory."
    assert cause_of(MemoryError(told)).reason is Reason.MEMORY
    assert [e.step for e in events(Run(folders.loras / "short"), Step)] == [1, 2]


def test_processes_beside_the_first_write_nothing(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    folder = folders.loras / "whole"
    run, before = run_here(folder), {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert not is_first_process()
    run.append(Note(text="from the second"))
    run.set_state(Status.FAILED, "of the second")
    run.write_settings(make_settings())
    run.save_answered()
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_one_process_alone_does_all_itself() -> None:
    assert (processes.count(), processes.rank(), processes.is_first()) == (1, 0, True)
    assert list(processes.share([1, 2, 3])) == [1, 2, 3]
    assert processes.gathered(5) == [5] and processes.from_first(6) == 6 and processes.total(1.5) == 1.5
    assert processes.first_then_others(lambda: "once") == "once"
    with pytest.raises(ValueError, match="mine"):
        processes.together(lambda: int("mine"))
