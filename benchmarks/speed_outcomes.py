"""A row of the speed table: its process, and what its rounds took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.speed_cases import Options
from benchmarks.speed_job import Job, Request, Step
from benchmarks.speed_rows import GRAFT
from training.allocator import training_environment
from training.paths import PROJECT

_SAFE = 1.25  # times a row's peak must be free while the others wait


class RowFailed(Exception):  # noqa: N818 - says what became of a row
    """A row's process ended by itself; the message is the last that it said."""


class Row:
    """A row's process; a context manager, at whose end it is ended."""

    def __init__(self, job: Job, options: Options) -> None:
        as_graft = job.kind == GRAFT or options.same_allocator
        path = job.write()
        self._errors = path.with_name("errors.txt")
        with self._errors.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.training_speed", "--row", str(path)],
                cwd=PROJECT,
                env=training_environment() if as_graft else dict(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it has nothing left to save, and may be in the midst of a step
        self._process.communicate()

    def ask(self, request: Request) -> dict[str, Any]:
        """What the process answers; raises RowFailed when it has ended instead."""
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self._errors.read_text(encoding="utf-8").splitlines()
            raise RowFailed(next((words for words in reversed(said) if words.strip()), "it ended without a word"))
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass
class Outcome:
    """What a row's rounds took; `failed` says why there are none."""

    job: Job
    is_best: bool = False  # at the micro-batch that is fastest for its trainer
    rounds: list[list[Step]] = field(default_factory=list)
    peak: int = 0  # bytes
    loss: float | None = None
    failed: str = ""

    @property
    def steps(self) -> list[Step]:
        """Of all rounds."""
        return [step for steps in self.rounds for step in steps]

    def rates(self) -> list[float]:
        """Real tokens a second of each round."""
        return [sum(step.tokens for step in steps) / sum(step.seconds for step in steps) for steps in self.rounds]

    def take(self, row: Row, count: int, *, counts: bool = True) -> None:
        """Let the row take so many steps; the first ones of all do not count."""
        try:
            answer = row.ask({"steps": count})
        except RowFailed as failed:
            self.failed = str(failed)
            return
        self.peak = answer["peak"]
        if counts:
            self.rounds.append([Step(**step) for step in answer["steps"]])


def is_tight(peak: int, options: Options) -> bool:
    """Whether so many bytes could not be had beside the rows that wait."""
    return not options.apart and psutil.virtual_memory().available < peak * _SAFE


def own_folder(job: Job, micro_batch: int) -> str:
    """A folder of the row's own, beside Graft's."""
    kind = "".join(c for c in job.kind if c.isalnum())
    return str(Path(job.folder).parent / f"{kind}-{micro_batch}")
