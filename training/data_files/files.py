"""Opening a file: what is no regular file is refused before it can block, and the system's refusals become words."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from training.errors import UserError

LONGEST_ROW = 1 << 26  # characters; some twenty million tokens, which no model reads at once


class FileError(UserError):
    """What is wrong with a file; names the file, and the line or row where its content is at fault."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around all that reads `path`: raises FileError where the system refuses or the file changed meanwhile."""
    try:
        yield
    except OSError as error:
        raise FileError(
            f"{path.name} cannot be read ({error.strerror}): check the disk and the file's rights."
        ) from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path.name} changed while it was read: try again.") from error


def opened(path: Path) -> BinaryIO:
    """The file, for parsers whose OSError tells of damage rather than of the disk; raises FileError."""
    with reading(path):
        return path.open("rb")


def status_of(path: Path) -> os.stat_result:
    """Size and time of a regular file; raises FileError for anything else, a pipe for instance, and for none."""
    with reading(path):
        status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise FileError(f"{path.name} is a folder and cannot be read as a file: choose a file.")
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{path.name} is no regular file: choose another.")
    return status


def bounded_lines(file: TextIO, name: str) -> Iterator[str]:
    """The lines of the file `name`; raises FileError for one that would fill the memory."""
    number = 0
    while line := file.readline(LONGEST_ROW + 1):
        number += 1
        if len(line) > LONGEST_ROW:
            raise too_long(f"{name}, line {number:,}")
        yield line


def too_long(place: str) -> FileError:
    """What is wrong with a row of more than LONGEST_ROW characters."""
    return FileError(f"{place} is longer than {LONGEST_ROW:,} characters: divide what stands there into several rows.")
