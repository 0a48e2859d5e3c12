"""The most memory that preparing a large text file takes, and how fast it goes."""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer

from training.data import prepare
from training.parsing import parse
from training.paths import Folders

_TEXT = Folders.datasets / "lighthouse_keeper.txt"


def write_text(path: Path, size: int) -> None:
    """A story over and over until the file has `size` bytes, as documents that differ in a number."""
    story = _TEXT.read_text(encoding="utf-8")
    written, number = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            number += 1
            written += file.write(f"Chapter {number}\n{story}\n\n\n")


def main() -> None:
    """Prepare a text in a process of its own and print the peak of its resident memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare_text", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        write_text(path, arguments.megabytes * 1_000_000)
        tokenizer = AutoTokenizer.from_pretrained(Folders.models / "starter")
        before = peak()
        began = time.perf_counter()
        data = prepare(parse({"raw_text": [str(path)]}), Folders(datasets=Path(folder)), tokenizer)
        seconds = time.perf_counter() - began
        examples, tokens = len(data.train), sum(data.train.lengths)
    print(
        f"{arguments.megabytes:,} MB of text: {examples:,} chunks, {tokens:,} tokens, {tokens / seconds:,.0f} tokens/s"
    )
    print(f"peak memory {peak() / 2**20:,.0f} MiB, of which {before / 2**20:,.0f} MiB before: libraries and tokenizer")


def peak() -> int:
    """The most resident memory of this process so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, Linux KiB


if __name__ == "__main__":
    main()
