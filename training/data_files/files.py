"""Opening a file: what is no regular file is refused before it can block, and the system's refusals become words."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from training.errors import UserError


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
