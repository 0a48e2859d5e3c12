"""Who may import whom: the core knows no page, and the page opens without the heavy libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "training").rglob("*.py"))
PAGE = ("gradio", "plotly", "ui", "app")
HEAVY = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets")


def imported(path: Path) -> set[str]:
    """The modules a file imports, at its top or anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_core_knows_no_page(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & set(PAGE)


def test_supervisor_launches_the_worker_and_never_imports_it() -> None:
    heavy = {"training.worker", "training.pipeline", "training.trainer", "training.model"}
    assert not imported(ROOT / "training" / "supervisor.py") & heavy


@pytest.mark.parametrize("path", sorted(ROOT.glob("ui/*.py")), ids=lambda path: path.stem)
def test_page_leaves_training_to_the_worker(path: Path) -> None:
    inside = {"training.worker", "training.pipeline", "training.trainer", "training.optimization"}
    assert not imported(path) & inside


@pytest.mark.parametrize(
    "module",
    [
        "training.settings",
        "training.parsing",
        "training.paths",
        "training.uploads",
        "training.data_files",
        "training.dataset_format",
        "training.chat_templates",
        "training.presets",
        "training.copied_settings",
        "training.runs",
        "training.supervisor",
        "training.history",
        "training.formats",
        "training.worker",
        "training.adapter_spectrum",
        "training.lora_arithmetic",
        "ui",
        "ui.learn_tab",
        "ui.page",
        "app",
    ],
)
def test_opens_without_the_heavy_libraries(module: str) -> None:
    script = f"import {module}, sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
