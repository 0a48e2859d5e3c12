"""A list box over things on the disk, which come and go while a page is open."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

import gradio as gr


def _preprocess(self: gr.Dropdown, payload: Any) -> str | None:
    """What the page holds, still on the list or not."""
    return payload if isinstance(payload, str) else None


# A plain Dropdown answers with an error when what a page holds has left the server's list a moment before, by another
# event or from another page. Whoever takes a name from here looks it up on the disk and says what is missing.
# Not a class statement: Gradio's metaclass would write a .pyi file beside this one.
DiskChoice: type[gr.Dropdown] = ABCMeta.__new__(
    type(gr.Dropdown),
    "DiskChoice",
    (gr.Dropdown,),
    {"__module__": __name__, "__doc__": __doc__, "is_template": True, "preprocess": _preprocess},
)
