"""The folders Graft works in, and the names that may become files in them."""

from __future__ import annotations

import os
import re
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
MAX_NAME_LENGTH = 80
_RENAME_ATTEMPTS = 20
DATASET_SUFFIXES = (".json", ".jsonl")
TEXT_SUFFIXES = (".txt", ".md")
# Windows keeps these names for devices, with any ending.
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d¹²³]) *(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Folders:
    """Where base models, datasets, runs and presets lie."""

    models: Path = PROJECT / "models"
    datasets: Path = PROJECT / "datasets"
    loras: Path = PROJECT / "loras"
    presets: Path = PROJECT / "presets"

    def make(self) -> None:
        """Create what is missing; raises UserError where the system refuses."""
        for folder in (self.models, self.datasets, self.loras):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"The folder {folder} cannot be made ({error.strerror}): choose another or mend its rights."
                ) from error


def safe_name(text: str, what: str = "The name") -> str:
    """`text` as a file name valid on Linux, macOS and Windows; raises UserError saying what to change."""
    name = unicodedata.normalize("NFC", text.strip())
    if not name:
        raise UserError(f"{what} is empty: type a short name, for example my-first-lora.")
    if len(name.encode(errors="replace")) > MAX_NAME_LENGTH:
        raise UserError(f"{what} is too long: use at most {MAX_NAME_LENGTH} letters.")
    # Marks belong to the letters of many scripts, Hindi and Thai among them.
    wrong = sorted({c for c in name if not (c.isalnum() or c in " ._-" or unicodedata.category(c) in ("Mn", "Mc"))})
    if wrong:
        shown = " ".join(c if c.isprintable() else repr(c) for c in wrong)
        raise UserError(
            f"{what} has characters that cannot be used ({shown}): use letters, digits, space, - _ and dot."
        )
    if name[0] == "." or name[-1] == "." or not any(c.isalnum() for c in name):
        raise UserError(f"{what} must not begin or end with a dot, and needs a letter or a digit.")
    if _RESERVED.fullmatch(name):
        raise UserError(f"{what} '{name}' is reserved by Windows: choose another.")
    return name


def free_path(path: Path) -> Path:
    """`path`, or where it is taken the same with the first free number from -2 on, before a file's ending."""
    free, number = path, 2
    while free.exists():
        free = path.with_name(f"{path.stem}-{number}{path.suffix}") if path.is_file() else Path(f"{path}-{number}")
        number += 1
    return free


def data_file(folders: Folders, name: str) -> Path:
    """The data file called `name` in the datasets folder, or at that path; raises UserError if there is none."""
    if not name.strip():
        raise UserError("No data file is chosen: pick one or upload yours.")
    # Not Path.is_file, which raises for a name longer than the system allows.
    path = next((p for p in (folders.datasets / name, Path(name)) if os.path.isfile(p)), None)
    if path is None:
        raise UserError(f"There is no file '{name}' in {folders.datasets}: upload it or choose another.")
    return path.resolve()


def list_data_files(folders: Folders, suffixes: tuple[str, ...]) -> list[str]:
    """Names of the files with one of `suffixes` in the datasets folder, sorted."""
    if not folders.datasets.is_dir():
        return []
    names = (p.name for p in folders.datasets.iterdir() if p.is_file() and p.suffix.lower() in suffixes)
    return sorted((n for n in names if not n.startswith(".")), key=str.lower)


def list_models(folders: Folders) -> list[str]:
    """Names of the Hugging Face model folders (those with a config.json) in the models folder, sorted."""
    if not folders.models.is_dir():
        return []
    return sorted(p.name for p in folders.models.iterdir() if (p / "config.json").is_file())


def _replace(temporary: Path, path: Path) -> None:
    """Rename over `path`; Windows refuses while somebody reads it, which takes a moment only."""
    for attempt in range(_RENAME_ATTEMPTS):
        try:
            temporary.replace(path)
            return
        except PermissionError:
            if os.name != "nt" or attempt == _RENAME_ATTEMPTS - 1:
                raise
            time.sleep(0.05)


@contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` when the block ends well: readers see the old or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that a reader never sees half a file."""
    with replaced_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
