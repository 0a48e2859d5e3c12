"""The folders Graft works in, and the names that may become files in them."""

from __future__ import annotations

import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
MAX_NAME_LENGTH = 80
_RENAME_ATTEMPTS = 20
DATASET_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
TEXT_SUFFIXES = (".txt", ".md", ".docx", ".pdf")
# Windows keeps these names for devices, with any ending.
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d¹²³]) *(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Folders:
    """Where base models, datasets, runs, presets, the user's format files, chat templates and downloads lie."""

    models: Path = PROJECT / "models"
    datasets: Path = PROJECT / "datasets"
    loras: Path = PROJECT / "loras"
    presets: Path = PROJECT / "presets"
    formats: Path = PROJECT / "formats"
    templates: Path = PROJECT / "templates"
    hub_cache: Path | None = None  # None: where huggingface_hub keeps its downloads
    # Data files may lie elsewhere: for the command line, whose user owns the shell, and for the worker, which does only
    # what was checked before; never for the page.
    data_anywhere: bool = False

    def make(self) -> None:
        """Create what is missing; raises UserError where the system refuses."""
        for folder in (self.models, self.datasets, self.loras, self.formats, self.templates):
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
    if _RESERVED.fullmatch(unicodedata.normalize("NFKC", name)):
        raise UserError(f"{what} '{name}' is reserved by Windows: choose another.")
    return name


def quoted(name: str) -> str:
    """A name for a message: in quotes, shortened, with what cannot be seen or would turn the text escaped."""
    return repr(name if len(name) <= MAX_NAME_LENGTH else name[:MAX_NAME_LENGTH] + "…")


def lies_in(path: Path, root: Path) -> bool:
    """Whether `path` is `root` or below it, and no ".." and no link on the way leads out of it."""
    real_root = os.path.realpath(root)
    # First without a look at the disk: on Windows a path can name another computer, which would be asked.
    if not any(Path(os.path.abspath(path)).is_relative_to(whole) for whole in (os.path.abspath(root), real_root)):
        return False
    try:
        return Path(os.path.realpath(path)).is_relative_to(real_root)
    except ValueError:  # no name of a file, with NUL in it or half a character
        return False


def free_path(path: Path) -> Path:
    """`path`, or where it is taken the same with the first free number from -2 on, before a file's ending."""
    free, number = path, 2
    while free.exists():
        free = path.with_name(f"{path.stem}-{number}{path.suffix}") if path.is_file() else Path(f"{path}-{number}")
        number += 1
    return free


def data_files(folders: Folders, names: Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    """The files that `names` stand for, in their order: files or folders in the datasets folder, or paths of such.

    A folder stands for all files below it that end in one of `suffixes`, sorted, without hidden ones. Raises UserError
    for a name that does not exist, a file of another kind, a folder without files, a file named twice, no names, and
    unless `data_anywhere` is set for what lies outside of the datasets folder, or is a link to there.
    """
    found: dict[Path, str] = {}
    for name in names:
        path = _found(folders, name)
        if path is None:
            raise UserError(
                f"There is no file or folder {quoted(name)} in {folders.datasets}: upload it or choose another."
            )
        for file in _files_of(path, name, suffixes):
            _check_inside(folders, file, name)
            if (file := file.resolve()) in found:
                raise UserError(
                    f"The file {file.name} is chosen twice ({quoted(found[file])} and {quoted(name)}): remove one."
                )
            found[file] = name
    if not found:
        raise UserError("No data file is chosen: pick one or upload yours.")
    return list(found)


def list_data_files(folders: Folders, suffixes: Sequence[str]) -> list[str]:
    """What the datasets folder offers: its files with one of `suffixes`, and "name/" for each folder that holds some.

    Sorted; hidden ones are left out, and so are links to elsewhere and folders that the system does not let us read.
    """
    if not folders.datasets.is_dir():
        return []
    names = []
    # A name that is no valid Unicode could not be shown in a browser.
    for path in (p for p in folders.datasets.iterdir() if not p.name.startswith(".") and _is_unicode(p.name)):
        if not lies_in(path, folders.datasets):
            continue  # it would be refused
        if path.is_dir():
            names += [f"{path.name}/"] if any(_files_below(path, suffixes, None)) else []
        elif path.is_file() and path.suffix.lower() in suffixes:
            names.append(path.name)
    return sorted(names, key=str.lower)


def _found(folders: Folders, name: str) -> Path | None:
    if not name.strip():
        raise UserError("No data file is chosen: pick one or upload yours.")
    # Not Path.exists, which raises for a name longer than the system allows.
    if folders.data_anywhere:
        return next((p for p in (folders.datasets / name, Path(name)) if os.path.exists(p)), None)
    if "\0" in name:
        return None
    _check_inside(folders, folders.datasets / name, name)
    return folders.datasets / name if os.path.exists(folders.datasets / name) else None


def _check_inside(folders: Folders, path: Path, name: str) -> None:
    # The same words whether there is such a file or not: else the page would tell what lies elsewhere.
    if not folders.data_anywhere and not lies_in(path, folders.datasets):
        raise UserError(
            f"{quoted(name)} leads out of {folders.datasets}, and the page reads no data from elsewhere: upload it, or "
            "copy it there."
        )


def _files_of(path: Path, name: str, suffixes: Sequence[str]) -> list[Path]:
    known = ", ".join(suffixes)
    if path.is_dir():
        files = sorted(_files_below(path, suffixes, _refuse))
        if not files:
            raise UserError(f"The folder {quoted(name)} holds no file that ends in one of {known}: choose another.")
        return files
    if not path.is_file():
        raise UserError(f"{quoted(name)} is neither a file nor a folder: choose another.")
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{quoted(name)} is of another kind: choose a file that ends in one of {known}.")
    return [path]


def _files_below(folder: Path, suffixes: Sequence[str], on_error: Callable[[OSError], object] | None) -> Iterator[Path]:
    for place, below, files in os.walk(folder, onerror=on_error):
        below[:] = (name for name in below if not name.startswith("."))
        for path in (Path(place, name) for name in files if not name.startswith(".")):
            if path.suffix.lower() in suffixes and path.is_file():
                yield path


def _refuse(error: OSError) -> None:
    raise UserError(
        f"The folder {error.filename} cannot be read ({error.strerror}): mend its rights or choose another."
    )


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def list_models(folders: Folders) -> list[str]:
    """Names of the base models to choose from, each kind sorted.

    These are the folders in models/ that have a config.json, then the whole models in the Hugging Face cache
    that can be trained, by their names on the Hub.
    """
    # Here, because the help of the command line is shown before any library is installed.
    from training.hub_cache import cache_folder, cached_models
    from training.trainable import why_not

    own = []
    if folders.models.is_dir():
        found = (p for p in folders.models.iterdir() if not p.name.startswith("."))  # hidden ones are half made
        own = sorted(p.name for p in found if (p / "config.json").is_file())
    whole = cached_models(cache_folder(folders.hub_cache))
    return own + [name for name, facts in whole if not why_not(facts, run_code=True)]


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
