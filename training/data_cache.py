"""Keeps what was prepared, by content, settings, template and tokenizer: a second start prepares nothing again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from training.data_files import facts
from training.errors import UserError
from training.formats import columns_file
from training.paths import Folders
from training.prepared import Records, RecordWriter
from training.rows import LeftOut, Source
from training.settings import Settings

_KEPT = 12  # sets of prepared data; the ones not used for longest go first
_KEPT_BYTES = 20 * 10**9
_ABANDONED = 24 * 60 * 60.0  # seconds
_SETTINGS_FOR_ROWS = ("data_format", "train_on", "too_long", "cutoff_length", "drop_duplicates")
_SETTINGS_FOR_TEXT = ("cutoff_length", "overlap_length", "prefer_line_cut", "hard_cut_string", "minimum_length")
log = logging.getLogger(__name__)

Prepare = Callable[[RecordWriter], list[Source]]


def cached(folders: Folders, key: str, prepare: Prepare) -> tuple[Records, list[Source]]:
    """The records under `key` and what became of their files; `prepare` writes them where they are not there yet."""
    root = folders.datasets / ".prepared"
    folder = root / key
    if folder.is_dir():
        try:
            found = _load(folder)
            os.utime(folder)
            return found
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowInvalid):
            log.exception("the prepared data in %s is damaged and made anew", folder)
            shutil.rmtree(folder, ignore_errors=True)
    partial = root / f"{key}.{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.mkdir(parents=True)
        with RecordWriter(partial / "records.arrow") as writer:
            sources = prepare(writer)
        # An Arrow stream that breaks off between two batches reads as a whole one: the number tells.
        content = {"records": writer.written, "sources": [asdict(source) for source in sources]}
        (partial / "sources.json").write_text(json.dumps(content), encoding="utf-8")
        if not folder.exists():  # another program may have been as fast
            partial.rename(folder)
    except OSError as error:
        raise UserError(
            f"The prepared data cannot be written to {root} ({error.strerror or error}): make room on the disk or mend "
            "the folder's rights."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _forget_oldest(root, folder)
    return _load(folder)


def data_key(
    files: Sequence[Path], settings: Settings, folders: Folders, tokenizer: PreTrainedTokenizerBase, *, held_out: bool
) -> str:
    """What the prepared records depend on, as a name: one other letter anywhere makes another name."""
    names: tuple[str, ...] = _SETTINGS_FOR_TEXT if settings.raw_text else _SETTINGS_FOR_ROWS
    if settings.raw_text and held_out:
        names += ("held_out_share", "seed")
    beside = [columns_file(path) for path in files] + [folders.formats / settings.data_format]
    content = {
        "files": [(path.name, facts(path).sha256) for path in files],
        "beside": [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in beside],
        "settings": settings.model_dump(mode="json", include=set(names)),
        "held_out": held_out and bool(settings.raw_text),
        "tokenizer": _tokenizer_key(tokenizer),
        "template": tokenizer.chat_template,
        "code": _code_key(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode(errors="surrogatepass")).hexdigest()[:32]


def _load(folder: Path) -> tuple[Records, list[Source]]:
    content: dict[str, Any] = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
    records = Records.open(folder / "records.arrow")
    if len(records) != content["records"]:
        raise ValueError(f"{len(records)} records instead of {content['records']}")
    rows: list[dict[str, Any]] = content["sources"]
    for row in rows:
        for name in ("dropped", "cut", "duplicates"):
            row[name] = [LeftOut(**left_out) for left_out in row[name]]
    return records, [Source(**row) for row in rows]


def _tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    content = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab())
    special = json.dumps([type(tokenizer).__name__, tokenizer.special_tokens_map], default=str)
    return hashlib.sha256((content + special).encode(errors="surrogatepass")).hexdigest()


@lru_cache(maxsize=1)
def _code_key() -> str:
    """This package's code and the libraries that tokenize, so that what another version prepared is not taken."""
    digest = hashlib.sha256(f"{version('transformers')} {version('tokenizers')}".encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _forget_oldest(root: Path, newest: Path) -> None:
    """Delete what was not used for longest beyond the bounds, and what a killed program left half done.

    `newest` stays: the file system's clock may be too coarse to tell it from the ones before.
    """
    folders = sorted((path for path in root.iterdir() if path.is_dir() and path != newest), key=_used_at, reverse=True)
    kept, size = 1, _bytes_in(newest)
    for folder in folders:
        if folder.suffix == ".partial":
            if time.time() - _used_at(folder) > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
            continue
        kept, size = kept + 1, size + _bytes_in(folder)
        if kept > _KEPT or size > _KEPT_BYTES:
            shutil.rmtree(folder, ignore_errors=True)  # Windows keeps what is being read


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def _used_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another program was faster
        return 0.0
