"""Sentences for the user as HTML, in which their text stays text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import cycle

# Gradio puts the next text into the element of the last one, which has faded; another animation begins anew.
_FADES = cycle(range(3))


def problems_html(problems: Sequence[str]) -> str:
    """What has to be mended, a line each."""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return f'<div class="graft-problems" role="alert"><ul>{items}</ul></div>'


def news_html(sentences: Sequence[str]) -> str:
    """Something that went well, and what to know about it."""
    return f'<div class="graft-news graft-news-{next(_FADES)}" role="status">{escape(" ".join(sentences))}</div>'


def note_html(sentence: str, level: str = "info") -> str:
    """Something to know; `level` is info, warning or error."""
    return f'<div class="graft-note graft-note-{level}">{escape(sentence)}</div>'


def quiet_html(sentence: str) -> str:
    """Something said by the way."""
    return f'<p class="graft-quiet">{escape(sentence)}</p>'


def facts_html(facts: Sequence[tuple[str, str]]) -> str:
    """Names and values of numbers, in a grid."""
    cells = "".join(f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in facts)
    return f'<div class="graft-facts">{cells}</div>'
