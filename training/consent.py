"""Which runs the user has allowed to run their model's own code: kept beside the runs, which may be a stranger's.

What a run's settings say of it is no consent: a LoRA that was downloaded brings its settings along.
"""

from __future__ import annotations

import json

from training.paths import Folders, write_atomically

_FILE = ".trusted-code.json"


def remember_consent(folders: Folders, name: str) -> None:
    """Note that the run of this name may run its model's own code."""
    write_atomically(folders.loras / _FILE, json.dumps(sorted({*_names(folders), name})))


def has_consent(folders: Folders, name: str) -> bool:
    """Whether the user has allowed it for the run of this name, here."""
    return name in _names(folders)


def _names(folders: Folders) -> list[str]:
    try:
        names = json.loads((folders.loras / _FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
