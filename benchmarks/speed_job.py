"""What one row of the speed table is to do, and the talk between its process and the one that prints the table."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Request = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A row: whose trainer, on which model and data; every row of a table has the same but for kind and micro-batch."""

    kind: str
    shape: str
    precision: str  # 32-bit, 16-bit or 4-bit
    base: str  # the model's folder; empty: each process makes the same random weights on its device
    adapter: str  # a file of the LoRA's first weights
    plan: str  # a file of the steps' examples
    data: dict[str, Any]  # Graft's settings for the data
    folder: str  # for what this row writes
    micro_batch: int = 4
    batch: int = 32
    cutoff: int = 512
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    learning_rate: float = 1e-3
    seed: int = 42
    loss_after: int = 4  # steps, after which the LoRA is kept to compare what was learnt
    flash: bool = False  # attention of the flash-attn package

    @property
    def trained(self) -> Path:
        """Where the LoRA lies that so many steps made."""
        return Path(self.folder) / "trained.safetensors"

    def write(self) -> Path:
        """Put the job into its folder, for its process."""
        path = Path(self.folder) / "job.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Job:
        """The job that was written there."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Plan:
    """The examples of each step: their numbers in Graft's data, and their token ids and labels."""

    numbers: list[list[int]]
    steps: list[list[dict[str, list[int]]]]

    def write(self, path: Path) -> None:
        """Keep it for the rows' processes."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: str) -> Plan:
        """The plan that was written there."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    @property
    def examples(self) -> list[dict[str, list[int]]]:
        """Of all steps, in their order."""
        return [example for step in self.steps for example in step]

    def rows(self, step: int) -> list[tuple[int, int]]:
        """Tokens and trained tokens of each example of a step."""
        return [(len(e["input_ids"]), trained_tokens(e["labels"])) for e in self.steps[step]]


def trained_tokens(labels: list[int]) -> int:
    """Tokens that count in the loss; the first has nothing before it to be predicted from."""
    return sum(label >= 0 for label in labels[1:])


@dataclass(frozen=True)
class Step:
    """What a step took: tokens and trained tokens of each of its rows, and all tokens computed, padding among them."""

    seconds: float
    computed: int
    rows: list[tuple[int, int]]

    @property
    def tokens(self) -> int:
        """Real ones."""
        return sum(length for length, _ in self.rows)

    @property
    def answers(self) -> int:
        """Tokens that count in the loss."""
        return sum(trained for _, trained in self.rows)


class Talk:
    """A row's side: requests come as lines of JSON, so do the answers; what libraries print goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def requests(self) -> Iterator[Request]:
        """Until nobody asks any more."""
        for line in sys.stdin:
            yield json.loads(line)

    def answer(self, content: dict[str, Any]) -> None:
        """Send it."""
        print(json.dumps(content), file=self._out, flush=True)
