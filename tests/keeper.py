"""A server without a page: `python -m tests.keeper <folder>` keeps the runs below it going until it is killed.

It takes a JSON object a line: {"submit": settings} or {"go_on": name}, and answers each with a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.errors import UserError
from training.parsing import parse
from training.paths import PROJECT, Folders
from training.runs import find_run
from training.supervisor import Supervisor


def folders_in(root: Path) -> Folders:
    """The working folders below `root`, as tests.tiny.make_folders lays them out."""
    names = ("models", "datasets", "loras", "presets", "formats", "templates")
    return replace(Folders(**{name: root / name for name in names}), hub_cache=root / "hub")


class Keeper:
    """Such a server in a process of its own."""

    def __init__(self, root: Path, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.keeper", str(root)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
        )
        self._answer()  # it is up, and has looked at what it found

    def ask(self, **request: Any) -> None:
        """Have it done; fails with what the server says against it."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        assert self._answer() == "done"

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().decode().strip()


def _serve(root: Path) -> None:
    folders = folders_in(root)
    supervisor = Supervisor(folders)
    supervisor.look()
    supervisor.keep_looking()
    answer = "up"
    while True:
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()
        request = json.loads(sys.stdin.readline())
        try:
            if "submit" in request:
                supervisor.submit(parse(request["submit"]))
            else:
                supervisor.go_on(find_run(folders, request["go_on"]))
            answer = "done"
        except UserError as error:
            answer = str(error)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
