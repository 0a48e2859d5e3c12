"""Says how the rows of a dataset are read: by a format file, the columns that the user assigned, or a known format."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from training.data_files import FileError, iter_rows
from training.errors import UserError
from training.formats import (
    AUTO,
    COLUMNS,
    FORMAT_FILE_SUFFIX,
    NAMES,
    Format,
    Row,
    choose_format,
    columns_format,
    load_columns,
    load_format_file,
)
from training.paths import Folders

_ROWS_WITH_COLUMNS = 1_000


def column_names(path: Path) -> list[str]:
    """The columns that the first rows of a dataset have, in their order; raises UserError when it cannot be read."""
    return list(dict.fromkeys(str(name) for row in islice(iter_rows(path), _ROWS_WITH_COLUMNS) for name in row))


def format_names(folders: Folders) -> list[str]:
    """All that the setting for the data format can be: the known formats, and the format files that are there."""
    return [*NAMES, COLUMNS, *sorted(p.name for p in folders.formats.glob(f"*{FORMAT_FILE_SUFFIX}"))]


def dataset_format(path: Path, rows: Iterable[Row], name: str, folders: Folders) -> Format:
    """The format of the file with these rows, where the setting for it is `name`; raises UserError when none fits."""
    if name.endswith(FORMAT_FILE_SUFFIX):
        return load_format_file(folders.formats / name)
    columns = load_columns(path) if name in (AUTO, COLUMNS) else None
    if columns:
        return columns_format(columns)
    if name == COLUMNS:
        raise UserError(f"The columns of {path.name} are not assigned: do that on the Datasets tab.")
    try:
        return choose_format(rows, name)
    except FileError:
        raise
    except UserError as error:
        raise FileError(f"{path.name}: {error}") from None
