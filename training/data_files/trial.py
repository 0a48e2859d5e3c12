"""`python -m training.data_files.trial <file>`: reads a file of a stranger, to see whether that does harm.

A small parquet file, Word document or PDF can be made to unpack to any size, and rows can be made of millions of lists.
"""

from __future__ import annotations

import sys
from pathlib import Path

from training.data_files import FileError, iter_rows, iter_text
from training.data_files.files import status_of
from training.errors import UserError
from training.paths import DATASET_SUFFIXES
from training.watched import OUT_OF_MEMORY, Bounds, limit_memory, run_watched

_MEMORY = 2 << 30  # bytes; a batch of rows, or a document as a whole
_SECONDS = 300.0  # of computing
_SECONDS_A_BYTE = 2e-6
_REFUSED = 2  # an exit code


def check_file(path: Path) -> None:
    """Read all of a file in a process of its own; raises UserError as reading would, and where it takes too much."""
    bounds = Bounds(_SECONDS + status_of(path).st_size * _SECONDS_A_BYTE, _MEMORY)
    outcome = run_watched(__name__, [str(path.absolute())], b"", bounds)
    if outcome.over == "memory":
        raise FileError(
            f"{path.name} takes more than {_MEMORY >> 30} GB of memory to be read: save it in smaller parts."
        )
    if outcome.over == "time":
        raise FileError(f"{path.name} takes too long to be read: save it in smaller parts.")
    if outcome.code == _REFUSED:
        raise FileError(outcome.output.strip())
    if outcome.code:
        raise FileError(f"{path.name} makes the program crash that reads it: save it anew.")


def main(path: Path) -> int:
    """Read the file; the exit code tells how that went."""
    limit_memory(4 * _MEMORY)
    try:
        for _ in iter_rows(path) if path.suffix.lower() in DATASET_SUFFIXES else iter_text(path):
            pass
    except UserError as error:
        sys.stdout.write(str(error))
        return _REFUSED
    except MemoryError:
        return OUT_OF_MEMORY
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
