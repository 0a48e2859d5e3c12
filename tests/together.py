"""Several processes train one run: started by torchrun with the folder of a test, they do what that test looks at."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.tiny import folders_in
from training import processes
from training.events import Event, Step
from training.paths import Folders
from training.pipeline import train_run
from training.run_here import run_here
from training.run_state import Status
from training.run_store import continue_run
from training.runs import Run
from training.trainer import Trainer


def main() -> None:
    """Train the runs that the test has made: plain, whole, broken and continued, and one that is short of memory."""
    folders = folders_in(Path(sys.argv[1]))
    with processes.joined():
        for name in ("plain", "whole"):
            assert train_run(run_here(folders.loras / name), folders)
        _break_and_continue(folders)
        _run_out_of_memory(folders)


def _break_and_continue(folders: Folders) -> None:
    run, append = run_here(folders.loras / "broken"), Run.append

    def stop_after_three(run: Run, event: Event) -> None:
        append(run, event)
        if isinstance(event, Step) and event.step == 3:
            run.request_stop()

    with patch.object(Run, "append", stop_after_three):
        assert not train_run(run, folders)
    torch.manual_seed(12345 + processes.rank())
    if processes.is_first():
        run.set_state(Status.STOPPED)
        continue_run(run, run.settings())
    processes.gathered(None)
    assert train_run(run, folders)


def _run_out_of_memory(folders: Folders) -> None:
    loss_sum = Trainer._loss_sum

    def short(trainer: Trainer, examples: Any) -> torch.Tensor:
        if processes.rank() == 1 and trainer.progress.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss_sum(trainer, examples)

    told = ""
    try:
        with patch.object(Trainer, "_loss_sum", short):
            train_run(run_here(folders.loras / "short"), folders)
    except (RuntimeError, MemoryError) as error:
        told = f"{type(error).__name__}: {error}"
    if processes.is_first():
        (folders.loras / "told.json").write_text(json.dumps(told))
    processes.gathered(None)


if __name__ == "__main__":
    main()
