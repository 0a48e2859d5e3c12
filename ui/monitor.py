"""What the monitor shows of a run: a pure read of its folder, turned into HTML in which user text stays text."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from html import escape

from training.history import History
from training.model_facts import size_text
from training.runs import EventReader, Run, State, Status

_MOST_FOLLOWED = 16  # histories kept in memory
_LABELS = {
    Status.QUEUED: "Starting",
    Status.PREPARING: "Preparing the model and the data",
    Status.TRAINING: "Training",
    Status.SAVING: "Saving",
    Status.DONE: "Done",
    Status.STOPPED: "Stopped",
    Status.FAILED: "Failed",
}


@dataclass
class _Followed:
    """A run's events as far as they were read."""

    reader: EventReader
    folder_id: int
    history: History = field(default_factory=History)


class Histories:
    """The histories of the runs that are looked at, each event read once however many pages look."""

    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}
        self._lock = threading.Lock()

    def read(self, run: Run) -> History:
        """The run's history up to now; a copy, because other pages go on reading."""
        with self._lock:
            folder_id = run.folder.stat().st_ino  # another folder under the old name is another run
            followed = self._followed.pop(run.name, None)
            if followed is None or followed.folder_id != folder_id or followed.reader.is_outdated():
                followed = _Followed(EventReader(run), folder_id)
            self._followed[run.name] = followed  # the one looked at last stands last
            if len(self._followed) > _MOST_FOLLOWED:
                del self._followed[next(iter(self._followed))]
            for event in followed.reader.read_new():
                followed.history.add(event)
            return followed.history.copy()


def status_html(run: Run, state: State, history: History, stopping: bool) -> str:
    """State, progress bar, numbers and notes of a run."""
    label = _LABELS[state.status]
    if state.status is Status.STOPPED and run.has_result():
        label = "Stopped and saved"
    if stopping and state.status.active:
        label = "Stopping after this step, then saving" if state.status is Status.TRAINING else "Stopping"
    percent = 100 if state.status is Status.DONE else round(100 * history.progress, 1)
    parts = [
        f'<div class="graft-state graft-{state.status.value}"><span class="graft-dot"></span>'
        f"<strong>{escape(label)}</strong><span class='graft-run'>{escape(run.name)}</span></div>",
        f'<div class="graft-bar" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100">'
        f'<div style="width:{percent}%"></div></div>',
    ]
    if state.cause:
        parts.append(f'<div class="graft-cause">{escape(state.cause)}</div>')
    if state.status is Status.PREPARING and history.records_prepared:
        parts.append(f'<p class="graft-quiet">{history.records_prepared:,} rows or chunks read so far</p>')
    elif state.status is Status.PREPARING and history.downloaded:
        done, total = (size_text(size) for size in history.downloaded)
        parts.append(f'<p class="graft-quiet">The base model is downloaded: {done} of {total}</p>')
    if facts := _facts(state, history):
        cells = "".join(f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in facts)
        parts.append(f'<div class="graft-facts">{cells}</div>')
    shown = [note for note in history.notes if note.text != state.cause]
    parts += [f'<div class="graft-note graft-note-{note.level}">{escape(note.text)}</div>' for note in shown]
    return "".join(parts)


def _facts(state: State, history: History) -> list[tuple[str, str]]:
    """Names and values of the numbers under the progress bar."""
    if not history.steps:
        return []
    last = history.steps[-1]
    facts = [
        ("step", f"{last.step:,} / {history.total_steps:,}"),
        ("epoch", f"{last.epoch:.2f}"),
        ("loss", f"{last.loss:.3f}"),
    ]
    if history.evaluations:
        evaluation = history.evaluations[-1]
        facts.append((f"eval. at {evaluation.step:,}", f"{evaluation.loss:.3f}"))
    facts.append(("tokens/s", f"{history.tokens_per_second:,.0f}"))
    if state.status is Status.TRAINING and history.seconds_left is not None:
        facts.append(("time left", duration(history.seconds_left)))
    else:
        facts.append(("time trained", duration(sum(step.seconds for step in history.steps))))
    facts.append(("memory", f"{last.memory / 2**30:.1f} GB"))
    return facts


def duration(seconds: float) -> str:
    """Seconds as people say them: 45s, 2m 10s, 1h 05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def checkpoints_html(run: Run, history: History, active: bool = True) -> str:
    """A table of the checkpoints, newest first; those that were deleted to keep the last n are left out."""
    on_disk = {checkpoint.step for checkpoint in run.checkpoints()}
    rows = [event for event in reversed(history.checkpoints) if event.step in on_disk]
    if not rows:
        return '<p class="graft-quiet">Checkpoints appear here as they are saved.</p>' if active else ""
    body = "".join(
        f"<tr><td>{event.step:,}</td><td>{_loss(event.loss)}</td><td>{_loss(event.evaluation_loss)}</td>"
        f"<td><code>checkpoint-{event.step}</code></td></tr>"
        for event in rows
    )
    head = "<tr><th>step</th><th>loss</th><th>evaluation loss</th><th>folder</th></tr>"
    return f'<table class="graft-table"><thead>{head}</thead><tbody>{body}</tbody></table>'


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"  # noqa: RUF001 - a dash for "none" in a table
