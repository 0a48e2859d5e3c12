"""The tables and pictures of the Learn tab that Python draws, as HTML and SVG in which the user's text stays text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from training.adapter_spectrum import Spectrum, Update, verdict
from training.lora_arithmetic import (
    ADAMW_BYTES,
    BITS,
    CARDS,
    GB,
    MEMORY_SHAPES,
    RANK_SHAPES,
    RANKS,
    Shape,
    loaded_bytes,
    smallest_card,
    weight_bytes,
)
from ui.messages import note_html

_EXAMPLE_RANK = 16
_MOST_POINTS = 64  # of a curve: more cannot be told apart in so small a picture
_WIDTH, _HEIGHT = 200, 96  # of a curve's box, in the units of its SVG
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # as they come in a block
_NUMBERED = 16  # up to so many layers, a cell has room for its number


def rank_table_html(chosen: Shape | None, *, only_query_and_value: bool) -> str:
    """The numbers that each rank trains in the well-known models and, where there is one, in the chosen model."""
    shapes = [*RANK_SHAPES, *([chosen] if chosen else [])]
    heads = "".join(
        f'<th{_mark(shape, chosen)}>{escape(shape.name)}<span title="{shape.parameters:,} numbers">'
        f"{_short(shape.parameters)}</span></th>"
        for shape in shapes
    )
    body = "".join(
        f"<tr><th>{rank}</th>"
        + "".join(f"<td{_mark(shape, chosen)}>{_trained(shape, rank, only_query_and_value)}</td>" for shape in shapes)
        + "</tr>"
        for rank in RANKS
    )
    return _table("learn-ranks", f"<th>rank</th>{heads}", body)


def _mark(shape: Shape, chosen: Shape | None) -> str:
    return ' class="learn-chosen"' if shape is chosen else ""


def _trained(shape: Shape, rank: int, only_query_and_value: bool) -> str:
    if only_query_and_value and not shape.query_and_value:
        return "&ndash;"
    number = shape.trainable(rank, shape.query_and_value if only_query_and_value else None)
    return f"{number:,}<span>{_percent(number / shape.parameters)}</span>"


def _percent(share: float) -> str:
    """Three digits, as many as tell one rank from the next."""
    digits = 1 if share >= 0.1 else 2 if share >= 0.01 else 3 if share >= 0.001 else 4
    return f"{share:.{digits}%}"


def _short(number: int) -> str:
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _table(name: str, head: str, body: str) -> str:
    table = f'<table class="graft-table {name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="learn-scroll">{table}</div>'


def memory_html() -> str:
    """What the weights of three sizes take by bits, and what a training adds to them."""
    heads = "<th>weights</th>" + "".join(f"<th>{bits}-bit{' NF4' if bits == 4 else ''}</th>" for bits in BITS)
    body = "".join(
        f"<tr><th>{escape(shape.name)}</th>"
        + "".join(_memory_cell(weight_bytes(shape.parameters, bits)) for bits in BITS)
        + "</tr>"
        for shape in MEMORY_SHAPES
    )
    smallest = MEMORY_SHAPES[0]
    real, ideal = (size / GB for size in (loaded_bytes(smallest, 4), weight_bytes(smallest.parameters, 4)))
    note = (
        "<p>4-bit is NF4 with its constants quantized again: 4.127 bits a number. The table counts all numbers alike. "
        "In truth embeddings, head and norms are not quantized but stay in 16 bits, so that "
        f"{escape(smallest.name)} in 4 bits takes {real:.1f} GB and not {ideal:.1f}.</p>"
    )
    return _table("learn-memory", heads, body) + note + _training_memory_html()


def _training_memory_html() -> str:
    """The three ways to train the same models, so that the memory can be compared."""
    heads = (
        "<th>to train</th><th>full fine-tuning</th><th>LoRA, base in 16 bits</th><th>QLoRA, base in 4 bits</th>"
        f"<th>of which a LoRA of rank {_EXAMPLE_RANK}</th>"
    )
    rows = []
    for shape in MEMORY_SHAPES:
        lora = shape.trainable(_EXAMPLE_RANK) * ADAMW_BYTES
        cells = [shape.parameters * ADAMW_BYTES, loaded_bytes(shape, 16) + lora, loaded_bytes(shape, 4) + lora]
        rows.append(f"<tr><th>{escape(shape.name)}</th>{''.join(map(_memory_cell, cells))}<td>{_gb(lora)}</td></tr>")
    return (
        "<p>A training adds a gradient and the optimizer's memory for each number that it trains. With AdamW that is "
        f"{ADAMW_BYTES} bytes a number, weight included. Full fine-tuning pays them for the whole model, LoRA only for "
        "A and B. The values between the layers come on top in each case; they grow with the micro-batch and the "
        "cutoff.</p>" + _table("learn-memory", heads, "".join(rows))
    )


def _memory_cell(size: float) -> str:
    card = smallest_card(size)
    where = f"{card} GB card" if card else f"more than {CARDS[-1]} GB"
    kind = "none" if card is None else "home" if card <= 24 else "large"
    return f'<td>{_gb(size)}<span class="learn-card learn-card-{kind}">{where}</span></td>'


def _gb(size: float) -> str:
    number = size / GB
    return f"{number:,.0f} GB" if number >= 100 else f"{number:.1f} GB" if number >= 1 else f"{number:.2f} GB"


def spectrum_html(name: str, spectrum: Spectrum) -> str:
    """The verdict on a LoRA, the effective rank and the size of its updates by layer, and their singular values."""
    low, high = spectrum.ranks
    layers = len({update.layer for update in spectrum.updates if update.layer is not None})
    rank = str(high) if low == high else f"{low} to {high}"
    parts = [
        f'<p class="learn-verdict">{escape(verdict(spectrum))}</p>',
        f'<p class="graft-quiet">{escape(name)}, rank {rank}: the mean effective rank of {len(spectrum.updates):,} '
        f"updates in {layers:,} layers. Whether another rank does as well, only the evaluation loss tells.</p>",
        *(note_html(note) for note in _notes(spectrum)),
    ]
    rows = _by_row([update for update in spectrum.updates if update.layer is not None])
    if rows:
        largest = max(update.norm for row in rows.values() for update in row)
        numbers = sorted({update.layer for row in rows.values() for update in row if update.layer is not None})
        parts += [
            "<h3>Effective rank by layer</h3>",
            _heat_map(rows, numbers, "rank", 1.0),
            "<h3>Size of the update by layer</h3>",
            _heat_map(rows, numbers, "size", largest or 1.0),
        ]
    outside = _by_row([update for update in spectrum.updates if update.layer is None])
    parts += [
        "<h3>Singular values</h3>"
        '<p class="graft-quiet">From the strongest direction on the left to the weakest, the strongest as 1; one line '
        "a layer, the first layers pale.</p>",
        f'<div class="learn-curves">{"".join(_curves(title, row) for title, row in (rows | outside).items())}</div>',
    ]
    return "".join(parts)


def _notes(spectrum: Spectrum) -> list[str]:
    notes = []
    if spectrum.is_dora:
        notes.append("This is a DoRA: what is shown is B A; its trained magnitudes come on top.")
    if spectrum.begun_as:
        notes.append(
            f"It began as {spectrum.begun_as}, with a B A that was not zero: what is shown is not only what was learnt."
        )
    if spectrum.whole_modules:
        notes.append(f"Trained in full beside the LoRA, and not shown: {', '.join(spectrum.whole_modules)}.")
    return notes


def _by_row(updates: Sequence[Update]) -> dict[str, list[Update]]:
    """The updates by what stands behind the layer's number in their names; experts, numbered as well, share a row."""
    rows: dict[str, list[Update]] = {}
    for update in updates:
        behind = re.split(rf"(?:^|\.){update.layer}\.", update.module, maxsplit=1)[-1]
        rows.setdefault(re.sub(r"\.\d+(?=\.)", "", behind), []).append(update)
    order = {name: place for place, name in enumerate(_ORDER)}
    return dict(sorted(rows.items(), key=lambda row: order.get(row[0].rsplit(".", 1)[-1], len(order))))


def _heat_map(rows: dict[str, list[Update]], layers: Sequence[int], what: str, most: float) -> str:
    """One line a module and one cell a layer, the fuller the larger; a cell's title has the numbers."""
    style = f"grid-template-columns: minmax(70px, 140px) repeat({len(layers)}, minmax(0, 1fr))"
    cells = []
    for title, row in rows.items():
        cells.append(f'<b title="{escape(title)}">{escape(title.rsplit(".", 1)[-1])}</b>')
        for layer in layers:
            cells.append(_heat_cell([one for one in row if one.layer == layer], what, most, len(layers) <= _NUMBERED))
    step = max(1, len(layers) // 8)
    axis = "".join(f"<u>{layer if place % step == 0 else ''}</u>" for place, layer in enumerate(layers))
    label = "Effective rank" if what == "rank" else "Size of the update"
    return (
        f'<div class="learn-heat learn-heat-{what}" role="img" aria-label="{label} by module and layer" '
        f'style="{style}">{"".join(cells)}<b>layer</b>{axis}</div>'
    )


def _heat_cell(updates: Sequence[Update], what: str, most: float, numbered: bool) -> str:
    if not updates:
        return '<i class="learn-empty"></i>'
    used = sum(update.effective_rank for update in updates) / len(updates)
    rank = sum(update.rank for update in updates) / len(updates)
    norm = sum(update.norm for update in updates) / len(updates)
    share, number = (used / rank, f"{used:.1f}") if what == "rank" else (norm / most, f"{norm:.2g}")
    of = f" ({len(updates)} experts, their mean)" if len(updates) > 1 else ""
    title = f"{updates[0].module}{of}: effective rank {used:.1f} of {rank:g}, size {norm:.3g}"
    return f'<i style="--v: {100 * share:.0f}%" title="{escape(title)}">{number if numbered else ""}</i>'


def _curves(title: str, row: Sequence[Update]) -> str:
    """The singular values of one kind of module in all layers, each divided by its largest."""
    lines = "".join(
        f'<polyline style="--v: {35 + 65 * (place + 1) / len(row):.0f}%" points="{_points(update)}"/>'
        for place, update in enumerate(row)
    )
    rank = max(update.rank for update in row)
    return (
        f'<figure><svg viewBox="-4 -4 {_WIDTH + 8} {_HEIGHT + 8}" role="img" '
        f'aria-label="Singular values of {escape(title)}"><path d="M0 0V{_HEIGHT}H{_WIDTH}"/>{lines}</svg>'
        f"<figcaption><b>{escape(title)}</b><span>1 to {rank}</span></figcaption></figure>"
    )


def _points(update: Update) -> str:
    values = update.values
    step = max(1, -(-len(values) // _MOST_POINTS))
    largest = values[0] or 1.0
    across = _WIDTH / max(1, len(values) - 1)
    kept = sorted({*range(0, len(values), step), len(values) - 1})
    return " ".join(f"{place * across:.1f},{_HEIGHT * (1 - values[place] / largest):.1f}" for place in kept)
