"""What pages that watch a run cost its training: tokens a second with none and with many, in turns within one run.

Each page is a client that asks as the one in a browser does: it loads the page, then sends the monitor's tick as often
as the server wants it to and reads the answer. How far the last page is behind the run is told at the end of each turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from training.events import Step
from training.parsing import parse
from training.paths import PROJECT, Folders
from training.run_state import Status
from training.runs import EventReader, Run
from training.supervisor import Supervisor

_SETTLE = 25.0  # seconds at the start of a turn that are not counted: pages find their pace in them
_API = "gradio_api"


@dataclass
class Watcher:
    """One page."""

    client: httpx.AsyncClient
    tick: dict[str, Any]  # the monitor's tick in the page's config
    inputs: list[Any]
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    timer: int = 0  # which of the tick's outputs is the timer
    period: float = 1.0  # seconds between ticks, as the server wants it
    steps_seen: int = 0
    ticks: int = 0
    slowest: float = 0.0  # seconds

    async def watch(self, until: float) -> None:
        """Tick each second until that moment of the monotonic clock."""
        await asyncio.sleep(random.random())
        await (await self.client.get("/")).aread()
        while (began := time.monotonic()) < until:
            answer = await self._ask()
            data = answer.get("data") or answer["output"]["data"]
            self.period = float(data[self.timer].get("value", self.period))
            for part in json.dumps(answer).split("step</span><b>")[1:]:
                self.steps_seen = int(part.split(" /")[0].replace(",", ""))
            self.ticks += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.sleep(max(0.0, self.period - (time.monotonic() - began)))

    async def _ask(self) -> Any:
        body = {"data": self.inputs, "fn_index": self.tick["id"], "session_hash": self.session, "event_data": None}
        if self.tick["queue"] is False:
            answer = await self.client.post(f"/{_API}/run/predict", json=body)
            answer.raise_for_status()
            return answer.json()
        joined = await self.client.post(f"/{_API}/queue/join", json=body)
        joined.raise_for_status()
        async with self.client.stream("GET", f"/{_API}/queue/data?session_hash={self.session}") as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data:") and (event := json.loads(line[5:]))["msg"] == "process_completed":
                    assert event["success"], event
                    return event
        raise AssertionError("the stream ended without an answer")


def monitor_tick(config: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The event that the page's always running timer sends, and what a page that was just opened sends with it."""
    components = {component["id"]: component for component in config["components"]}
    timers = {c["id"] for c in config["components"] if c["type"] == "timer" and c["props"].get("active", True)}
    tick = next(d for d in config["dependencies"] if any(t[0] in timers and t[1] == "tick" for t in d["targets"]))
    return tick, [components[i]["props"].get("value") for i in tick["inputs"]]


async def watch(url: str, count: int, seconds: float) -> list[Watcher]:
    """So many pages for so long."""
    limits = httpx.Limits(max_connections=2 * count, max_keepalive_connections=2 * count)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        tick, inputs = monitor_tick((await client.get("/config")).json())
        timer = tick["outputs"].index(tick["targets"][0][0])
        watchers = [Watcher(client, tick, inputs, timer=timer) for _ in range(count)]
        until = time.monotonic() + seconds
        await asyncio.gather(*(watcher.watch(until) for watcher in watchers))
    return watchers


def tokens_per_second(run: Run, since: float, until: float) -> float:
    """Of the steps that ended between two moments, by the time they took."""
    steps = [e for e in EventReader(run).read_new() if isinstance(e, Step) and since < e.time < until]
    return sum(e.tokens for e in steps) / sum(e.seconds for e in steps)


def main() -> None:
    """Train on the starter, with and without pages in turns, and print the ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching_pages", description=__doc__)
    parser.add_argument("--pages", type=int, default=40)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=45.0, help="how long each turn takes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folders = Folders(datasets=Path(folder) / "datasets", loras=Path(folder) / "loras")
        folders.make()
        shutil.copy(Folders.datasets / "car_warranty.json", folders.datasets)
        server, url = _serve(folders, Path(folder) / "server.log")
        run = None
        try:
            run = _train(folders)
            of_server = psutil.Process(server.pid)
            ratios = [_turn(run, of_server, url, arguments) for _ in range(arguments.turns)]
        finally:
            if run:
                run.request_cancel()
                while run.state().status.active:
                    time.sleep(0.1)
            server.terminate()
            server.wait()
    print(
        f"{arguments.pages} pages: {statistics.median(ratios):.3f} of the speed without (median of {len(ratios)} turns)"
    )


def _serve(folders: Folders, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    port = random.randint(20_000, 40_000)
    command = [sys.executable, "app.py", "--no-browser", f"--port={port}", f"--loras-dir={folders.loras}"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, f"--datasets-dir={folders.datasets}"], cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    while server.poll() is None:
        try:
            httpx.get(url)
            return server, url
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(log.read_text())


def _train(folders: Folders) -> Run:
    """A training that goes on for longer than the measurement. The server looks after it."""
    values = {"name": "watched", "dataset": ["car_warranty.json"], "epochs": 5000, "batch_size": 4}
    run = Supervisor(folders).submit(parse(values | {"save_every": 0, "save_minutes": 0, "evaluate_every": 0}))
    while run.state().status is not Status.TRAINING:
        assert not run.state().status.ended, run.state()
        time.sleep(0.2)
    return run


def _turn(run: Run, server: psutil.Process, url: str, arguments: argparse.Namespace) -> float:
    """The speed with pages over the speed without, right after each other."""
    began, pages, seconds = time.time(), arguments.pages, arguments.seconds
    time.sleep(seconds)
    alone = tokens_per_second(run, began + _SETTLE, time.time())
    began, computed = time.time(), _computed(server)
    watchers = asyncio.run(watch(url, pages, seconds))
    watched = tokens_per_second(run, began + _SETTLE, time.time())
    computed = _computed(server) - computed
    newest = max(e.step for e in EventReader(run).read_new() if isinstance(e, Step))
    behind = newest - min(watcher.steps_seen for watcher in watchers)
    ticks = sum(watcher.ticks for watcher in watchers)
    slowest = max(watcher.slowest for watcher in watchers)
    print(
        f"alone {alone:,.0f}, watched {watched:,.0f} tokens/s: {watched / alone:.3f}; {ticks:,} ticks, slowest "
        f"{slowest:.2f} s, {1000 * computed / ticks:.1f} ms of computing each; the last page lacks {behind} steps"
    )
    return watched / alone


def _computed(process: psutil.Process) -> float:
    """Seconds of computing of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
