"""The whole project passes ruff and mypy; a test, so that `python3 start.py test` says so on every computer."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("tool", [["ruff", "check", "--quiet", "."], ["mypy"]], ids=["ruff", "mypy"])
def test_style(tool: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
