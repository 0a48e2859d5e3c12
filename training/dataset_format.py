"""Says how the rows of a dataset are read: by a format file, the columns that the user assigned, or a known format."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from training.data_files import iter_rows
from training.errors import UserError
from training.formats import (
    AUTO,
    COLUMNS,
    FORMAT_FILE_SUFFIX,
    NAMES,
    Columns,
    Format,
    NoFormat,
    Row,
    RowError,
    choose_format,
    columns_format,
    load_columns,
    load_format_file,
)
from training.formats.values import shown
from training.paths import Folders, lies_in

_ROWS_WITH_COLUMNS = 1_000
_FIRST_ROWS = 1_000  # of a large file, all that is looked at before a training starts


def column_names(path: Path) -> list[str]:
    """The columns that the first rows of a dataset have, in their order; raises UserError when it cannot be read."""
    return list(dict.fromkeys(str(name) for row in islice(iter_rows(path), _ROWS_WITH_COLUMNS) for name in row))


def format_names(folders: Folders) -> list[str]:
    """All that the setting for the data format can be: the known formats, and the format files that are there."""
    return [*NAMES, COLUMNS, *_format_files(folders)]


def _format_files(folders: Folders) -> list[str]:
    return sorted(path.name for path in folders.formats.glob(f"*{FORMAT_FILE_SUFFIX}"))


def format_file(folders: Folders, name: str) -> Path:
    """The format file called `name`; raises UserError when the folder has none of that name."""
    if name not in _format_files(folders) or not lies_in(folders.formats / name, folders.formats):
        raise UserError(
            f"There is no format file {shown(name)} in {folders.formats}: upload it or choose another data format."
        )
    return folders.formats / name


def dataset_format(path: Path, rows: Iterable[Row], name: str, folders: Folders) -> Format:
    """The format of the file with these rows, where the setting for it is `name`.

    Raises NoFormat when none of the rows fits, and UserError for a setting or a format file of no use.
    """
    if name.endswith(FORMAT_FILE_SUFFIX):
        return load_format_file(format_file(folders, name))
    columns = load_columns(path) if name in (AUTO, COLUMNS) else None
    if columns:
        _check_columns(path, rows, columns)
        return columns_format(columns)
    if name == COLUMNS:
        raise UserError(f"The columns of {path.name} are not assigned: do that on the Datasets tab.")
    try:
        return choose_format(rows, name)
    except NoFormat as error:
        raise NoFormat(f"{path.name}: {error}") from None


def _check_columns(path: Path, rows: Iterable[Row], columns: Columns) -> None:
    """Raise NoFormat for assigned columns that no row has, as when another file took the place of this one."""
    gone = set(columns.used)
    for row in rows:
        gone -= row.keys()
        if not gone:
            return
    raise NoFormat(
        f"The columns assigned to {path.name} are not in the file any more ({', '.join(map(shown, sorted(gone)))}): "
        "assign them again on the Datasets tab."
    )


def check_rows(path: Path, name: str, folders: Folders) -> None:
    """Raise UserError for a dataset that the setting `name` finds no format for, or of which no row can be read.

    Where the first rows of a large file leave that open, no error is raised: that takes a look at all rows.
    """
    rows = iter_rows(path)
    try:
        chosen = dataset_format(path, islice(rows, _FIRST_ROWS), name, folders)
    except NoFormat:
        if next(rows, None) is None:
            raise
        return
    first_problem = ""
    for number, row in enumerate(iter_rows(path), start=1):
        if name == AUTO and number > _FIRST_ROWS:
            return  # all rows together may fit another format
        try:
            chosen.convert(row)
            return
        except RowError as error:
            first_problem = first_problem or f"row {number:,}: {error}"
    raise UserError(f"No row of {path.name} can be read as {chosen.name}; {first_problem.rstrip('.')}.")
