"""Takes the user's files into the datasets folder: checked, whole, and never in place of another unasked."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import unicodedata
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Literal

from training.data_files import iter_text
from training.data_files.trial import check_file
from training.errors import UserError
from training.formats import is_format_file, load_format_file
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders, free_path, lies_in, replaced_atomically, safe_name

OnConflict = Literal["ask", "replace", "keep both"]
_LARGEST_FORMAT_FILE = 1 << 20  # bytes


class NameTaken(UserError):  # noqa: N818 - a question to the user rather than an error
    """Files of these names exist and hold something else; nothing was stored."""

    def __init__(self, names: list[str]) -> None:
        listed = ", ".join(f"'{name}'" for name in names)
        super().__init__(f"Another file is already called {listed}: replace it, keep both, or rename yours.")
        self.names = names


def store_uploads(
    folders: Folders, uploaded: Sequence[Path], *, on_conflict: OnConflict = "ask", folder: str = ""
) -> list[str]:
    """Copy uploaded files into the datasets folder, or its subfolder `folder`, and return their names there.

    The names are those `paths.data_files` takes; with `folder` its name stands for all files ("folder/"). A format file
    of text-generation-webui goes into the formats folder instead and is returned as "formats/<name>". Where two
    files of a folder have one name, the second gets a number. Every file is checked before any is stored: raises
    UserError for one of no use, and NameTaken for "ask" where a name is taken.
    """
    targets = _plan(folders, uploaded, folder)
    taken = {target: source for target, source in targets.items() if _holds_other(target, source)}
    if taken and on_conflict == "ask":
        raise NameTaken([target.name for target in taken])
    names = []
    for target, source in targets.items():
        if target in taken and on_conflict == "keep both":
            target = _same_or_free(target, source)
        if not target.exists() or _holds_other(target, source):
            _copy(source, target)
        names.append(_name(folders, target, folder))
    return list(dict.fromkeys(names))


def _plan(folders: Folders, uploaded: Sequence[Path], folder: str) -> dict[Path, Path]:
    """Where each file will lie; raises UserError for one of no use and for two that would take one place."""
    place = folders.datasets / safe_name(folder, "The folder's name") if folder else folders.datasets
    if place.exists() and not place.is_dir():
        raise UserError(f"'{place.name}' is a file in {folders.datasets}: choose another name for the folder.")
    if not lies_in(place, folders.datasets):
        raise UserError(f"'{place.name}' is a link that leads out of {folders.datasets}: choose another name.")
    targets: dict[Path, Path] = {}
    for source in uploaded:
        target = (folders.formats if _is_format(source) else place) / _safe_file_name(source)
        if target.is_dir():
            raise UserError(f"'{target.name}' is a folder in {target.parent}: rename your file.")
        if folder:
            target = _numbered(target, source, targets)
        earlier = targets.setdefault(target, source)
        if not _same(earlier, source):
            raise UserError(f"Two of the files would be stored as '{target.name}': rename one.")
    return targets


def _numbered(target: Path, source: Path, targets: dict[Path, Path]) -> Path:
    """The first of target, target-2, ... that is not meant for another file already."""
    names = chain([target], (target.with_stem(f"{target.stem}-{number}") for number in count(2)))
    return next(name for name in names if name not in targets or _same(targets[name], source))


def _same(one: Path, other: Path) -> bool:
    return one is other or filecmp.cmp(one, other, shallow=False)


def _is_format(path: Path) -> bool:
    """Check that the file is of use, and tell whether it is a format file; raises UserError."""
    suffix = path.suffix.lower()
    if suffix == ".json" and path.is_file() and path.stat().st_size <= _LARGEST_FORMAT_FILE:
        try:
            found = is_format_file(json.loads("".join(iter_text(path))))
        except (ValueError, RecursionError):
            found = False  # what is wrong with it is told when it is read as rows
        if found:
            load_format_file(path)
            return True
    if suffix in DATASET_SUFFIXES + TEXT_SUFFIXES:
        # Rows that fit no format are taken as well: the user can say which columns to use.
        check_file(path)
    else:
        known = ", ".join((*DATASET_SUFFIXES, *TEXT_SUFFIXES))
        raise UserError(f"{path.name} is of no kind that can be trained on: choose one of {known}.")
    return False


def _safe_file_name(path: Path) -> str:
    # What a system allows in names differs: odd characters become a dash, so that a file never fails for its name.
    stem = re.sub(r"[^\w .-]+", "-", unicodedata.normalize("NFC", path.stem)).strip(" .-")
    while len(stem.encode()) > 60:
        stem = stem[:-1].rstrip(" .-")
    return safe_name(stem or "data", "The file's name") + path.suffix.lower()


def _holds_other(target: Path, source: Path) -> bool:
    return target.exists() and not _same(target, source)


def _same_or_free(target: Path, source: Path) -> Path:
    """The numbered file that holds the same already, else the first free number."""
    numbered = target.parent.glob(f"{target.stem}-*{target.suffix}")
    return next((p for p in numbered if p.is_file() and not _holds_other(p, source)), free_path(target))


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        with replaced_atomically(target) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as error:
        raise UserError(f"{target.name} could not be stored in {target.parent} ({error.strerror}).") from error


def _name(folders: Folders, target: Path, folder: str) -> str:
    if target.parent == folders.formats:
        return f"formats/{target.name}"
    return f"{target.parent.name}/" if folder else target.name
