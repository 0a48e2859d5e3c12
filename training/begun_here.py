"""Which runs were begun on this computer: what their settings allow themselves, the user has allowed here.

A LoRA folder that was copied from elsewhere brings its settings along, and what those say is no consent: neither to run
a model's own code nor to read files outside the datasets folder. The list lies beside the runs, not in them.
"""

from __future__ import annotations

import json
from pathlib import Path

from training.paths import write_atomically

_FILE = ".begun-here.json"


def remember(run_folder: Path) -> None:
    """Note that this run was begun here."""
    _store(run_folder.parent, {*_names(run_folder.parent), run_folder.name})


def forget(run_folder: Path) -> None:
    """Take it back, because the name may be another run's from now on."""
    if run_folder.name in (names := _names(run_folder.parent)):
        _store(run_folder.parent, names - {run_folder.name})


def was_begun_here(run_folder: Path) -> bool:
    """Whether this run was begun here."""
    return run_folder.name in _names(run_folder.parent)


def _names(folder: Path) -> set[str]:
    try:
        names = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return set()
    return {str(name) for name in names} if isinstance(names, list) else set()


def _store(folder: Path, names: set[str]) -> None:
    write_atomically(folder / _FILE, json.dumps(sorted(names)))
