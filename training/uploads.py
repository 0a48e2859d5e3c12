"""Takes a user's file into the datasets folder: checked, whole, and never in place of another."""

from __future__ import annotations

import filecmp
import re
import shutil
from pathlib import Path

from training import formats
from training.dataset_files import check_rows, read_text
from training.errors import UserError
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders, free_path, replaced_atomically, safe_name


def store_upload(folders: Folders, uploaded: Path) -> str:
    """Copy an uploaded file into the datasets folder and return its name there; raises UserError for one of no use.

    A file of the same name is left alone: the new one gets a number, unless both hold the same.
    """
    suffix = uploaded.suffix.lower()
    if suffix in DATASET_SUFFIXES:
        check_rows(uploaded, formats.AUTO)
    elif suffix in TEXT_SUFFIXES:
        read_text(uploaded)
    else:
        known = ", ".join((*DATASET_SUFFIXES, *TEXT_SUFFIXES))
        raise UserError(f"{uploaded.name} is of no kind that can be trained on: choose one of {known}.")
    # What a system allows in names differs: odd characters become a dash, so that a file never fails for its name.
    stem = safe_name(re.sub(r"[^\w .-]+", "-", uploaded.stem).strip(" .-")[:60] or "data", "The file's name")
    target = folders.datasets / f"{stem}{suffix}"
    same = (p for p in folders.datasets.glob(f"{stem}*{suffix}") if filecmp.cmp(uploaded, p, shallow=False))
    if stored := next(same, None):
        return stored.name
    target = free_path(target)
    try:
        with replaced_atomically(target) as temporary:
            shutil.copyfile(uploaded, temporary)
    except OSError as error:
        raise UserError(f"{target.name} could not be stored in {folders.datasets} ({error.strerror}).") from error
    return target.name
