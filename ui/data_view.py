"""What a data check looks like: numbers, lengths, tokens and lists as HTML, in which the user's text stays text."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from training.token_view import TokenKind
from ui.messages import facts_html, note_html

if TYPE_CHECKING:  # they import torch, which a page that only opens does without
    from training.data_check import DataCheck, Shown
    from training.data_report import DataReport

_MOST_TOKENS = 3_000  # shown of one example; a browser takes no more at once
_MOST_ROWS = 200  # listed on the page; the file to download has all
_FEW_STEPS = 10
_CLASSES = {TokenKind.TRAINED: "trained", TokenKind.CONTEXT: "context", TokenKind.CUT_OFF: "cut"}
_LEGEND = (
    '<span class="data-legend"><i class="token trained">trained</i> <i class="token context">context</i> '
    '<i class="token cut">cut off</i></span>'
)


def summary_html(check: DataCheck) -> str:
    """What was read, what becomes of it, and what to know before a training."""
    report, settings = check.report, check.settings
    files = ", ".join(
        f"{source.file} ({', '.join(filter(None, (source.format, source.encoding)))})" for source in report.sources
    )
    trains = {"answers": "answers", "last answer": "the last answer", "everything": "everything"}[settings.train_on]
    how = f"for {settings.base_model}, cutoff {settings.cutoff_length:,}"
    if not report.is_raw_text:
        how += f", template {settings.chat_template or 'of the model'}, training on {trains}"
    parts = [
        f'<p class="data-files"><strong>{escape(files)}</strong><span>{escape(how)}</span></p>',
        f'<p class="data-headline">{escape(_headline(report))}</p>',
        facts_html(_facts(report)),
    ]
    parts += [note_html(text, level) for text, level in _notes(check)]
    return "".join(parts)


def _headline(report: DataReport) -> str:
    """What becomes of the data, in a sentence."""
    what = "pieces of the text" if report.is_raw_text else f"of {_count(report.rows_read, 'row')}"
    parts = [f"{report.train_examples:,} {what} are trained on"]
    if report.held_out_examples:
        verb = "is" if report.held_out_examples == 1 else "are"
        parts.append(f"{report.held_out_examples:,} {verb} kept for evaluation")
    if report.dropped:
        parts.append(f"{_count(report.dropped, 'document' if report.is_raw_text else 'row')} dropped")
    return ", ".join(parts) + "."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _facts(report: DataReport) -> list[tuple[str, str]]:
    """Numbers under the headline; those that are nought and say nothing are left out."""
    troubles = (("cut", report.cut), ("duplicates", report.duplicates), ("empty answers", report.empty_answers))
    return [
        ("documents" if report.is_raw_text else "rows read", f"{report.rows_read:,}"),
        ("to train on", f"{report.train_examples:,}"),
        ("for evaluation", f"{report.held_out_examples:,}"),
        ("dropped", f"{report.dropped:,}"),
        *((name, f"{number:,}") for name, number in troubles if number),
        ("tokens", f"{report.tokens:,}"),
        ("of them trained", f"{report.trained_share:.0%}"),
        ("steps an epoch", f"{report.steps_per_epoch:,}"),
        ("steps in all", f"{report.total_steps:,}"),
        ("warm-up steps", f"{report.warmup_steps:,}"),
    ]


def _notes(check: DataCheck) -> list[tuple[str, str]]:
    """Sentences to show, each with its level."""
    report = check.report
    notes = [(note, "info") for note in check.notes]
    if report.problem:
        return [*notes, (report.problem, "error")]
    notes += [(warning, "warning") for warning in report.warnings]
    if report.total_steps < _FEW_STEPS:
        hint = "the LoRA would hardly change: lower the batch size or raise the epochs"
        notes.append((f"This makes only {_count(report.total_steps, 'step')}, so {hint}.", "warning"))
    elif report.warmup_steps > report.total_steps / 2:
        notes.append(("The warm-up takes more than half of the training: lower it.", "warning"))
    return notes


def lengths_html(report: DataReport) -> str:
    """A histogram of the examples' lengths with the cutoff, and what each cutoff would cost, to be clicked."""
    if not report.bars:
        return ""
    most = max(bar.count for bar in report.bars)
    end = report.bars[-1].end
    bars = "".join(
        f'<div class="{"over" if bar.start >= report.cutoff else ""}" style="height:{100 * bar.count / most:.1f}%"'
        f' title="{bar.count:,} of {bar.start:,} to {bar.end - 1:,} tokens"></div>'
        for bar in report.bars
    )
    line = ""
    if report.cutoff < end:
        line = f'<i style="left:{100 * report.cutoff / end:.2f}%"><b>cutoff {report.cutoff:,}</b></i>'
    what = "chunks" if report.is_raw_text else "examples"
    picture = (
        f'<div class="data-histogram" role="img" aria-label="Lengths of the {what} in tokens">{bars}{line}</div>'
        f'<div class="data-axis"><span>0</span><span>length in tokens</span><span>{report.longest:,}</span></div>'
    )
    # A text is chunked to the cutoff: another cutoff loses nothing of it.
    return picture if report.is_raw_text else picture + _cutoffs_html(report)


def _cutoffs_html(report: DataReport) -> str:
    buttons = "".join(
        f'<button type="button" data-cutoff="{lost.cutoff}" class="{"chosen" if lost.cutoff == report.cutoff else ""}"'
        f' title="{lost.tokens:.1%} of all tokens lie behind it">'
        f"<b>{lost.cutoff:,}</b><span>{_share(lost.examples)} over</span></button>"
        for lost in report.lost_at
    )
    return f'<div class="data-cutoffs"><span>Set the cutoff:</span>{buttons}</div>'


def _share(share: float) -> str:
    return "none" if share == 0 else "under 1%" if share < 0.01 else f"{share:.0%}"


def example_html(shown: Shown) -> str:
    """One example token by token, and what becomes of it."""
    record = shown.record
    place = f"row {record.row:,} of {shown.file}"
    if record.character is not None:
        place = f"document {record.row:,} of {shown.file}, from character {record.character:,}"
    trained = record.trained_tokens
    fate = "held out for evaluation" if shown.held_out else "used for training"
    if record.kept == 0:
        fate = f"dropped: {record.reason}"
    elif record.reason:
        fate += f", but {record.reason}"
    counts = f"{len(record.input_ids):,} tokens, {trained:,} trained" if record.input_ids else "no tokens"
    head = (
        f'<p class="data-place"><strong>{escape(place)}</strong>'
        f'<span class="{"dropped" if record.kept == 0 else ""}">{escape(fate)}</span><span>{counts}</span>{_LEGEND}</p>'
    )
    boxes = "".join(
        f'<span class="token {_CLASSES[token.kind]}" title="{token.kind} · id {" ".join(map(str, token.ids))}">'
        f"{_visible(token.text)}</span>"
        for token in shown.tokens[:_MOST_TOKENS]
    )
    if len(shown.tokens) > _MOST_TOKENS:
        boxes += f'<p class="graft-quiet">The first {_MOST_TOKENS:,} tokens are shown.</p>'
    if not boxes:  # it could not be read: this is how it stands in the file
        return f'{head}<div class="data-tokens data-row" dir="auto">{escape(record.text)}</div>'
    return f'{head}<div class="data-tokens" dir="auto">{boxes}</div>'


def _visible(text: str) -> str:
    """A token's text, with a sign for each new line before the new line itself."""
    shown = escape(text) if text else "&middot;"
    return shown.replace("\t", "<u>&rarr;</u>\t").replace("\n", "<u>&crarr;</u>\n")


def left_out_label(report: DataReport) -> str:
    """The heading over the list of the rows that deserve a look."""
    parts = [(report.dropped, "dropped"), (report.cut, "cut"), (report.duplicates, "the same as another")]
    said = ", ".join(f"{number:,} {what}" for number, what in parts if number)
    return f"Rows to look at: {said or 'none'}"


def left_out_html(report: DataReport) -> str:
    """The rows that were dropped, cut or doubled, to be clicked."""
    rows = []
    for number, source in enumerate(report.sources):
        for what, left in (("dropped", source.dropped), ("cut", source.cut), ("duplicate", source.duplicates)):
            rows += [(number, source.file, what, one) for one in left]
    if not rows:
        return '<p class="graft-quiet">Every row is used whole.</p>' if not report.is_raw_text else ""
    body = "".join(
        f'<tr><td><button type="button" data-row="{one.row}" data-file="{number}">{one.row:,}</button></td>'
        f"<td>{escape(file)}</td><td>{what}</td><td>{escape(one.reason)}</td></tr>"
        for number, file, what, one in rows[:_MOST_ROWS]
    )
    more = ""
    if len(rows) > _MOST_ROWS:
        more = f'<p class="graft-quiet">and {len(rows) - _MOST_ROWS:,} more in the file to download</p>'
    head = "<tr><th>row</th><th>file</th><th>what</th><th>why</th></tr>"
    table = f'<table class="graft-table"><thead>{head}</thead><tbody>{body}</tbody></table>'
    return f'<div class="data-list">{table}</div>{more}'
