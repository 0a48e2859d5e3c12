"""What the monitor costs for runs of 100, 10,000 and 1,000,000 events: what a page asks for when it is opened, a tick
in which nothing has changed and one after a new step, with what is sent, asked of the real server over HTTP.

The first look is taken twice: by a server that finds the events alone, as after a long training that nobody watched,
and by one that was started anew and finds what the one before it has kept.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.server import Server, running_server
from training.events import Evaluation, Started, Step
from training.parsing import parse
from training.paths import Folders
from training.run_state import Status
from training.run_store import create_run
from training.runs import Run

_EVALUATE_EVERY = 500
_FRESH = 1.0  # seconds for which the server looks at its folders once


@dataclass(frozen=True)
class Cost:
    """Of one question: seconds until the answer, and the bytes of it."""

    seconds: float
    size: int


class Page:
    """Asks as a page in a browser does that shows this run."""

    def __init__(self, client: httpx.Client, run_name: str) -> None:
        self._client = client
        self._session = uuid.uuid4().hex
        self.answer = b""  # the last one
        config = client.get("/config").json()
        self._defaults = {c["id"]: c["props"].get("value") for c in config["components"]}
        choice = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "monitor-run")
        self._defaults[choice] = run_name
        timers = {c["id"] for c in config["components"] if c["type"] == "timer" and c["props"].get("active", True)}
        events = {d["id"]: d for d in config["dependencies"]}
        self._tick = next(d for d in events.values() if any(t[0] in timers and t[1] == "tick" for t in d["targets"]))
        self._load = next(d for d in events.values() if any(t[1] == "stale" for t in d["targets"]))

    def load(self) -> Cost:
        """The monitor of a page that was just opened."""
        return self._ask(self._load)

    def tick(self) -> Cost:
        return self._ask(self._tick)

    def _ask(self, event: dict[str, Any]) -> Cost:
        data = [self._defaults[component] for component in event["inputs"]]
        body = {"data": data, "fn_index": event["id"], "session_hash": self._session, "event_data": None}
        began = time.perf_counter()
        answer = self._client.post("/gradio_api/run/predict", json=body)
        taken = time.perf_counter() - began
        answer.raise_for_status()
        self.answer = answer.content
        return Cost(taken, len(answer.content))


def write_run(folders: Folders, count: int) -> Run:
    """A run with so many events, of which every 501st is an evaluation."""
    run = create_run(folders, parse({"name": f"events-{count}", "dataset": ["car_warranty.json"]}))
    run.set_state(Status.DONE)  # else the server would look after it; nothing that is measured depends on it
    with run.events_file.open("w", encoding="utf-8") as file:
        file.write(Started(from_step=0, total_steps=count, epochs=1).model_dump_json() + "\n")
        for number in range(1, count):
            is_evaluation = number % (_EVALUATE_EVERY + 1) == 0
            event = Evaluation(step=number - 1, loss=2.0) if is_evaluation else _step(number)
            file.write(event.model_dump_json() + "\n")
    return run


def _step(number: int) -> Step:
    loss = 1 + math.exp(-number / 1000) + 0.1 * math.sin(number)
    return Step(
        step=number,
        epoch=number / 1000,
        loss=loss,
        learning_rate=2e-4 / (1 + number / 1000),
        grad_norm=loss / 3,
        tokens=2048,
        seconds=0.123456789,
        memory=2**31,
    )


def measure(counts: list[int], repeat: int, root: Path) -> dict[str, list[Cost]]:
    """The costs for runs of so many events, by what was asked. Each round asks for all runs in turn."""
    folders = Folders(datasets=root / "datasets", loras=root / "loras")
    folders.make()
    runs, warm_up = [write_run(folders, count) for count in counts], write_run(folders, 10)
    costs: dict[str, list[Cost]] = {}
    with running_server(folders, root / "log") as server, _client(server) as client:
        Page(client, warm_up.name).load()  # what a new server does once is done
        costs["first look, nothing kept"] = [Page(client, run.name).load() for run in runs]
        costs["all events read after"] = [_until_read(Page(client, run.name)) for run in runs]
    with running_server(folders, root / "log") as server, _client(server) as client:
        Page(client, warm_up.name).load()
        costs["first look, new server"] = [Page(client, run.name).load() for run in runs]
        pages = [Page(client, run.name) for run in runs]
        for _ in range(3):  # the rest of the events is read, and the pages find their pace
            for page in pages:
                page.load()
                page.tick()
            time.sleep(_FRESH)
        rounds: dict[str, list[list[Cost]]] = {"page load": [], "tick, nothing new": [], "tick, a new step": []}
        for number in range(repeat):
            rounds["tick, nothing new"].append([page.tick() for page in pages])
            for run, count in zip(runs, counts, strict=True):
                run.append(_step(count + number))
            time.sleep(_FRESH)  # the server looks at its folders once a second
            rounds["tick, a new step"].append([page.tick() for page in pages])
            rounds["page load"].append([page.load() for page in pages])
    return costs | {what: [_median(column) for column in zip(*each, strict=True)] for what, each in rounds.items()}


def _until_read(page: Page) -> Cost:
    began = time.perf_counter()
    page.load()
    while b"Reading what" in page.answer:
        time.sleep(_FRESH)
        page.load()
    return Cost(time.perf_counter() - began, 0)


def _client(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=120)


def _median(costs: Sequence[Cost]) -> Cost:
    """The median of the seconds, and of the bytes."""
    return Cost(statistics.median(c.seconds for c in costs), round(statistics.median(c.size for c in costs)))


def main() -> None:
    """Print the table: each cost with its ratio to that of the first run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching_long_runs", description=__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    parser.add_argument("--repeat", type=int, default=15, help="how often each is asked")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = measure(arguments.events, arguments.repeat, Path(folder))
    print(f"{'':26}" + "".join(f"{f'{count:,} events':>36}" for count in arguments.events))
    for what, costs in table.items():
        cells = [f"{1000 * cost.seconds:,.0f} ms ({cost.seconds / costs[0].seconds:.2f})" for cost in costs]
        sizes = [f", {cost.size:>7,} bytes" if cost.size else "" for cost in costs]
        print(f"{what:26}" + "".join(f"{cell + size:>36}" for cell, size in zip(cells, sizes, strict=True)))


if __name__ == "__main__":
    main()
