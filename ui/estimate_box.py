"""The box "Does it fit?": what the settings train, how large that gets and what memory it takes, before it starts."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from training.base_models import locate_base_model
from training.errors import SettingsError, UserError
from training.libraries import load_libraries
from training.model_facts import size_text
from training.parsing import parse
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders, data_files
from training.settings import FULL, WHEN_NEEDED, Settings
from ui.messages import note_html

if TYPE_CHECKING:  # it imports torch, which a page that only opens does without
    from training.estimate import Estimate, Memory
    from training.gradient_checkpointing import Decision

STYLE = Path(__file__).parent / "static" / "estimate.css"
_TIGHT, _FULL = 0.85, 1.0  # shares of the device's memory
_QUICK = 5 * 10**6  # bytes of data that are prepared in a moment, if they are not yet
_NOT_HERE = "The numbers before the start come with the model's files, and this model is not on this computer yet."
_LOWER = "lower the micro-batch size or the cutoff length"
_RECOMPUTE = "set gradient checkpointing to always"
_LESS, _LESS_THAN_WHOLE = "load the model in 4-bit", "train a LoRA, which needs a fraction of it"


class EstimateBox:
    """The box beside the form. It shows the last good numbers while something half typed stands in the form."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def build(self) -> None:
        """Place the box; `shown` is its component."""
        self.shown = gr.HTML(padding=False, elem_id="estimate")

    def update(self, values: dict[str, Any]) -> Any:
        """What `shown` shows for the form's values, by setting name."""
        try:
            return estimate_html(self._folders, values)
        except SettingsError:
            return gr.skip()  # the form says what is wrong when the training is started


def estimate_html(folders: Folders, values: dict[str, Any]) -> str:
    """The numbers for these values of settings, as HTML; raises SettingsError for values that are none yet."""
    settings = parse(values)
    try:
        source = locate_base_model(folders, settings.base_model, run_code=settings.trust_remote_code)
        if not Path(source).is_dir():
            return note_html(_NOT_HERE)
        settings = settings.model_copy(update={"trust_remote_code": False})  # no such code runs in the page's process
        # Here, because they bring torch along.
        load_libraries()
        from training.adapters import earlier_adapter
        from training.estimate import estimate
        from training.gradient_checkpointing import as_decided
        from training.hardware import free_memory

        continued = settings.start_from and settings.start_as == "continue it"
        earlier = earlier_adapter(folders, settings) if continued else None
        examples, longest = _data(settings, folders, source)
        numbers, decision = as_decided(
            settings, lambda decided: estimate(decided, source, examples, longest, earlier=earlier), free_memory()
        )
        return box_html(numbers, settings, decision)
    except UserError as error:
        return note_html(f"No numbers yet. {error}")


def _data(settings: Settings, folders: Folders, source: str) -> tuple[int | None, int | None]:
    """Examples to train on and tokens of the longest; nothing while that would take more than a moment to find out."""
    from training.data import inspect, set_template
    from training.model import load_tokenizer

    try:
        names = settings.raw_text or settings.dataset
        files = data_files(folders, names, TEXT_SUFFIXES if settings.raw_text else DATASET_SUFFIXES)
        if sum(file.stat().st_size for file in files) > _QUICK:
            return None, None
        tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
        set_template(tokenizer, settings, folders)
        train = inspect(settings, folders, tokenizer).train
    except UserError:
        return None, None  # the data check says what is wrong with the data
    return (len(train), max(train.lengths)) if len(train) else (None, None)


def box_html(estimate: Estimate, settings: Settings, decision: Decision) -> str:
    """An estimate as the page shows it, with what is decided about gradient checkpointing."""
    what = "whole model" if settings.method == FULL else "adapter"
    head = (
        f"<p><strong>{_count(estimate.trainable)}</strong> of {_count(estimate.parameters)} parameters are trained "
        f"({_percent(estimate.trainable_share)}). On the disk the {what} takes {size_text(estimate.saved)}, "
        f"a checkpoint {size_text(estimate.checkpoint)}.</p>"
    )
    parts = [head, _memory_html(estimate, settings, decision), _base_html(estimate)]
    if estimate.steps:
        warmup = f", {estimate.steps.warmup:,} of them warm-up" if estimate.steps.warmup else ""
        steps = f"{estimate.steps.total:,} step{'' if estimate.steps.total == 1 else 's'}{warmup}"
        parts.append(f'<p class="estimate-quiet">{steps}. The longest example has {estimate.tokens:,} tokens.</p>')
    return f'<section class="estimate" aria-label="Does it fit?"><h3>Does it fit?</h3>{"".join(parts)}</section>'


def _memory_html(estimate: Estimate, settings: Settings, decision: Decision) -> str:
    """What the fullest moment takes of the device's memory, as a bar of parts with its legend."""
    memory, device = estimate.memory, estimate.hardware
    share = memory.total / device.total if device.total else 0.0
    state, verdict = _verdict(share, settings, decision, known=device.total is not None)
    whole = max(memory.total, device.total or 0)
    bar = "".join(
        f'<i style="width:{100 * size / whole:.2f}%" title="{escape(name)}: {_gigabytes(size)}"></i>'
        for name, size in _parts(memory, settings)
    )
    legend = "".join(f"<li>{escape(name)} <b>{_gigabytes(size)}</b></li>" for name, size in _parts(memory, settings))
    limit = f'<s style="left:{100 * device.total / whole:.2f}%"></s>' if device.total and share > _FULL else ""
    of = f" of {_gigabytes(device.total)}" if device.total else ""
    how = " with gradient checkpointing" if decision.on else ""
    said = f"About {_gigabytes(memory.total)}{of} on {device.name}{how}: {verdict}."
    asked_for = decision.on and settings.gradient_checkpointing == WHEN_NEEDED
    why = f"<p>{escape(f'Gradient checkpointing is on: {decision.because}.')}</p>" if asked_for else ""
    return (
        f'<div class="estimate-memory estimate-{state}"><p>{escape(said)}</p>'
        f'<div class="estimate-bar" role="img" aria-label="{escape(said)}">{bar}{limit}</div><ul>{legend}</ul>'
        f"{why}</div>"
    )


def _verdict(share: float, settings: Settings, decision: Decision, *, known: bool) -> tuple[str, str]:
    """How full the device gets, as a word for the colours and in words."""
    if not known:
        return "unknown", "how much it has is not known here"
    if share <= _TIGHT:
        return "fits", "it fits"
    recompute = [] if decision.on or settings.method == "prefix tuning" else [_RECOMPUTE]
    hint = ", ".join([_LOWER, *recompute, f"or {_LESS_THAN_WHOLE if settings.method == FULL else _LESS}"])
    return ("tight", f"it is tight; {hint}") if share <= _FULL else ("over", f"it does not fit; {hint}")


def _parts(memory: Memory, settings: Settings) -> list[tuple[str, int]]:
    trained = "gradients and optimizer" if settings.method == FULL else "adapter, gradients and optimizer"
    parts = [
        ("base model", memory.base),
        (trained, memory.trained),
        ("activations", memory.activations),
        ("libraries", memory.libraries),
    ]
    return [*parts, ("the model's files", memory.files)] if memory.files else parts


def _base_html(estimate: Estimate) -> str:
    sizes = "".join(
        f'<li class="{"chosen" if bits == estimate.bits else ""}">{bits}-bit <b>{size_text(size)}</b></li>'
        for bits, size in estimate.base_by_bits.items()
    )
    return f'<ul class="estimate-base"><li>Base model loaded in</li>{sizes}</ul>'


def _gigabytes(size: int) -> str:
    # As the monitor counts, and the makers of GPUs.
    return f"{size / 2**30:.1f} GB" if size >= 0.1 * 2**30 else f"{size / 2**20:.0f} MB"


def _count(number: int) -> str:
    """Three digits and a word."""
    for word, one in (("billion", 10**9), ("million", 10**6)):
        if number >= one:
            return f"{_three_digits(number / one)} {word}"
    return f"{number:,}"


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 3 - len(str(int(value))))}f}"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2f} %" if percent >= 0.01 else "under 0.01 %"
