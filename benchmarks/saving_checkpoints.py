"""What saving checkpoints costs a training: seconds a step beside those of one that saves none.

In turns within one run: no checkpoints, checkpoints written beside the training, and checkpoints that it waits for, as
it did before there was a thread for them. Base model and rows are those that ship.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from unittest.mock import patch

from training import checkpoints
from training.events import Event, Step
from training.parsing import parse
from training.paths import Folders
from training.pipeline import train_run
from training.run_state import Status
from training.run_store import create_run
from training.runs import EventReader, Run

_NOT_COUNTED = 3  # steps at the beginning, in which memory is taken for the first time
_WAYS = ("none", "beside", "waited for")


def main() -> None:
    """Train in turns and print the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving_checkpoints", description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="of each training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save-every", type=int, default=1, help="steps")
    parser.add_argument("--batch-size", type=int, default=4)
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = {way: [] for way in _WAYS if way != "none"}
    with tempfile.TemporaryDirectory() as folder:
        folders = Folders(loras=Path(folder) / "loras")
        folders.make()
        for number in range(arguments.rounds):
            seconds = {way: _seconds_a_step(folders, way, arguments) for way in _WAYS}
            for way in ratios:
                ratios[way].append(seconds[way] / seconds["none"])
            told = ", ".join(f"{way} {1000 * taken:.1f} ms" for way, taken in seconds.items())
            print(f"round {number + 1}: {told} a step")
    for way, found in ratios.items():
        print(
            f"checkpoints {way}: {statistics.median(found):.3f} times the time a step takes without ({min(found):.3f} "
            f"to {max(found):.3f})"
        )


def _seconds_a_step(folders: Folders, way: str, arguments: argparse.Namespace) -> float:
    """From the end of one step to that of the next, saving included, in the mean over the training."""
    values = {"name": "saved", "if_exists": "overwrite", "dataset": ["car_warranty.json"], "keep_last": 2}
    values |= {"batch_size": arguments.batch_size, "micro_batch_size": arguments.batch_size, "held_out_share": 0}
    every = 0 if way == "none" else arguments.save_every
    values |= {"save_every": every, "save_minutes": 0, "evaluate_every": 0, "epochs": 100}
    run = _Stopping(create_run(folders, parse(values)).folder, arguments.steps)
    with patch.object(checkpoints, "may_be_copied", lambda *_: way == "beside"):
        train_run(run, folders)
    run.set_state(Status.DONE)
    moments = [e.time for e in EventReader(run).read_new() if isinstance(e, Step)][_NOT_COUNTED:]
    return (moments[-1] - moments[0]) / (len(moments) - 1)


class _Stopping(Run):
    """A run that asks for its own end after so many steps."""

    def __init__(self, folder: Path, steps: int) -> None:
        super().__init__(folder)
        self._steps = steps

    def append(self, event: Event) -> None:
        super().append(event)
        if isinstance(event, Step) and event.step >= self._steps:
            self.request_stop()


if __name__ == "__main__":
    main()
