"""Brings in the large libraries for those who do without them until they are really needed."""

from __future__ import annotations


def load_libraries() -> None:
    """Import transformers, and torch with it: to be called first wherever a module that uses them is imported late.

    While it is being imported transformers puts another module in its place. A thread that comes meanwhile would find
    the unfinished one; here it waits.
    """
    import transformers  # noqa: F401
