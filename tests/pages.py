"""Fires the events of a page that no browser shows."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component


def fire(page: gr.Blocks, component: Component, event: str, *values: Any) -> Any:
    """What the function behind this event gives for the values of its inputs."""
    found = [f for f in page.fns.values() if (component._id, event) in f.targets and f.fn is not None]
    assert len(found) == 1, f"{len(found)} functions"
    assert found[0].fn is not None and len(found[0].inputs) == len(values)
    return found[0].fn(*values)
