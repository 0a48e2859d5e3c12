"""Keeps what was prepared, by content, settings, template and tokenizer: a second start prepares nothing again."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from training.data_files import facts
from training.formats import columns_file
from training.paths import Folders
from training.prepared import Records, RecordWriter
from training.rows import LeftOut, Source
from training.settings import Settings

_OBJECTS_BETWEEN_COLLECTIONS = 200_000
_KEPT = 12  # sets of prepared data; the ones not used for longest go first
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
    partial.mkdir(parents=True)
    try:
        with _few_collections(), RecordWriter(partial / "records.arrow") as writer:
            sources = prepare(writer)
        # An Arrow stream that breaks off between two batches reads as a whole one: the number tells.
        content = {"records": writer.written, "sources": [asdict(source) for source in sources]}
        (partial / "sources.json").write_text(json.dumps(content), encoding="utf-8")
        if not folder.exists():  # another program may have been as fast
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _forget_oldest(root)
    return _load(folder)


@contextmanager
def _few_collections() -> Iterator[None]:
    """Rows are short-lived lists without cycles: the garbage collector would look through them for nothing."""
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


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
        "beside": [path.read_text(encoding="utf-8") for path in beside if path.is_file()],
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


def _forget_oldest(root: Path) -> None:
    complete = [path for path in root.iterdir() if path.is_dir() and path.suffix != ".partial"]
    complete.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in complete[_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)  # Windows keeps what is being read
