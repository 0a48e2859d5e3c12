"""Starts the real page as a user does, in a process of its own, over folders of the test's own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.paths import PROJECT, Folders

_START_LIMIT = 60.0  # seconds; a busy machine needs several times the usual five


@dataclass
class Server:
    """A running page."""

    url: str
    folders: Folders
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(folders: Folders, log: Path, *options: str) -> Iterator[Server]:
    """`python app.py` over these folders, with more options if wanted, until the block ends."""
    port = free_port()
    command = [sys.executable, "app.py", "--no-browser", f"--port={port}", *options]
    command += [f"--{name}-dir={getattr(folders, name)}" for name in ("models", "datasets", "loras")]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT)
    try:
        server = Server(f"http://127.0.0.1:{port}/", folders, process, log)
        _wait_until_up(server)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_up(server: Server) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(server.url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError(f"the page did not come up: {server.log.read_text()}")
