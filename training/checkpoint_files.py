"""Folders that are complete or absent, with a list of their files by size and hash, so that damage is seen."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ValidationError

from training.errors import UserError
from training.paths import lies_in

MANIFEST = "manifest.json"
SPARE_BYTES = 8 * 2**20  # left free beside what a save needs: states and events are small, and a full disk waits


class FileFacts(BaseModel):
    """What tells a file from a damaged one."""

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """All files of a folder but this list itself, by their names."""

    files: dict[str, FileFacts]


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that gets its name only when all is in it and on the disk."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        flush(partial)
        partial.rename(folder)
        _flush_names(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # half a checkpoint must not fill the disk up


def flush(folder: Path) -> None:
    """Have the files really on the disk before their names say so: a power cut must not leave empty ones behind."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _flush_names(folder: Path) -> None:
    """Have a new name on the disk before others are deleted in its favour; Windows does so by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path) -> None:
    """List the files that are in the folder now; nothing but the list may be added afterwards."""
    files = {path.relative_to(folder).as_posix(): _facts(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / MANIFEST).write_text(Manifest(files=files).model_dump_json(indent=2), encoding="utf-8")


def why_damaged(folder: Path) -> str:
    """What is wrong with a folder that has a manifest, in words; nothing where each file is as it was written."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValidationError, OSError, UnicodeDecodeError):
        return f"its {MANIFEST} cannot be read"
    for name, facts in manifest.files.items():
        path = folder / name
        try:
            if not lies_in(path, folder) or not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != facts.bytes:
                return f"{name} has {size:,} bytes instead of {facts.bytes:,}"
            if _facts(path) != facts:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def bytes_of(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_room(folder: Path, needed: int) -> None:
    """Raise UserError where `needed` bytes do not fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise UserError(
            f"The disk is full: saving needs {(needed + SPARE_BYTES) / 2**20:,.0f} MB and {free / 2**20:,.0f} MB are "
            "free. Make room, then start again."
        )


def _facts(path: Path) -> FileFacts:
    with path.open("rb") as file:
        return FileFacts(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
