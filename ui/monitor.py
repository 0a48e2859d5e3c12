"""What the monitor shows of a run: a pure read of its folder, turned into HTML in which user text stays text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from html import escape
from typing import TypeVar

from training.following import LOOK_BYTES, Following
from training.history import MOST_NOTES, History
from training.model_facts import size_text
from training.run_state import Status
from training.runs import Run
from ui.chart import LiveCurves
from ui.lookout import Overview, Seen
from ui.messages import facts_html, note_html, quiet_html

T = TypeVar("T")
_MOST_FOLLOWED = 16  # histories kept in memory
_FULL = "The disk is full: the training waits and goes on as soon as there is room."
_NEARLY_FULL = "The disk is nearly full, so the next save has to wait: make room, and it goes on by itself."
_LABELS = {
    Status.QUEUED: "Waits in the queue",
    Status.PREPARING: "Preparing the model and the data",
    Status.TRAINING: "Training",
    Status.SAVING: "Saving",
    Status.DONE: "Done",
    Status.STOPPED: "Stopped",
    Status.FAILED: "Failed",
}


@dataclass
class _Followed:
    """A run that is looked at."""

    folder_id: int
    following: Following
    curves: LiveCurves


class Histories:
    """The histories of the runs that are looked at, each event read once however many pages look."""

    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}
        self._lock = threading.Lock()

    def look(self, run: Run, size: int) -> int:
        """Take in what was added to events of so many bytes; returns how many of them are in the history by now."""
        return self._followed_now(run).following.look(size)

    def draw(self, run: Run, draw: Callable[[History, LiveCurves], T]) -> T:
        """What `draw` makes of the run's history, which stays as it is meanwhile."""
        followed = self._followed_now(run)
        with followed.following.lock:
            return draw(followed.following.history, followed.curves)

    def _followed_now(self, run: Run) -> _Followed:
        with self._lock:
            folder_id = run.folder.stat().st_ino  # another folder under the old name is another run
            followed = self._followed.pop(run.name, None)
            if followed is None or followed.folder_id != folder_id or followed.following.is_outdated():
                followed = _Followed(folder_id, Following(run), LiveCurves(run.name))
            self._followed[run.name] = followed  # the one looked at last stands last
            if len(self._followed) > _MOST_FOLLOWED:
                del self._followed[next(iter(self._followed))]
            return followed


def status_html(seen: Seen, history: History, unread: int = 0) -> str:
    """State, progress bar, numbers and notes of a run; `unread` bytes of its events are not in the history yet."""
    run, state = seen.run, seen.state
    waits = (state.cause or seen.little_room) if state.status.active else seen.failed and state.status is Status.STOPPED
    look = "waiting" if waits else state.status.value
    percent = 100 if state.status is Status.DONE else round(100 * history.progress, 1)
    parts = [
        f'<div class="graft-state graft-{look}"><span class="graft-dot"></span>'
        f"<strong>{escape(_label(seen))}</strong><span class='graft-run'>{escape(run.name)}</span></div>",
        f'<div class="graft-bar" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100">'
        f'<div style="width:{percent}%"></div></div>',
    ]
    parts.append(_said(seen))
    if unread > LOOK_BYTES:
        read = 100 * (1 - unread / seen.events_size)
        parts.append(quiet_html(f"Reading what this run has reported: {read:.0f} %."))
    if state.status is Status.PREPARING and history.records_prepared:
        parts.append(f'<p class="graft-quiet">{history.records_prepared:,} rows or chunks read so far</p>')
    elif state.status is Status.PREPARING and history.downloaded:
        done, total = (size_text(size) for size in history.downloaded)
        parts.append(f'<p class="graft-quiet">The base model is downloaded: {done} of {total}</p>')
    if facts := _facts(seen, history):
        parts.append(facts_html(facts))
    parts += [note_html(note.text, note.level) for note in history.notes if note.text != state.cause]
    if len(history.notes) == MOST_NOTES:
        parts.append(quiet_html("What was noted before is in the run's events.jsonl."))
    return "".join(parts)


def _label(seen: Seen) -> str:
    """What goes on, in a few words."""
    status = seen.state.status
    if seen.place:
        return f"Waits in the queue, place {seen.place} of {seen.waiting}"
    if seen.waits:
        return "Waiting"
    if status is Status.STOPPED and seen.failed:
        return "Paused"
    if status is Status.STOPPED and seen.run.has_result():
        return "Stopped and saved"
    if not status.active:
        return _LABELS[status]
    if seen.cancelling:
        return "Cancelling"
    if seen.stopping:
        return "Stopping after this step, then saving" if status is Status.TRAINING else "Stopping"
    return _LABELS[status]


def _said(seen: Seen) -> str:
    """Why the run ended or what it waits for, as a note; empty where there is nothing to say."""
    cause, active = seen.state.cause, seen.state.status.active
    if cause:
        level = "warning" if active else "error" if seen.failed else "info"
        return note_html(cause, level)
    if active and seen.little_room:
        return note_html(_FULL if seen.disk_full else _NEARLY_FULL, "warning")
    if active and seen.ended_in is not None and not seen.cancelling:
        left = duration(seen.ended_in)
        return quiet_html(f"A worker that gives no sign of life is ended in {left}.")
    return ""


def _facts(seen: Seen, history: History) -> list[tuple[str, str]]:
    """Names and values of the numbers under the progress bar."""
    if not history.training.last:
        return []
    last = history.training.last.event
    facts = [
        ("step", f"{last.step:,} / {history.total_steps:,}"),
        ("epoch", f"{last.epoch:.2f}"),
        ("loss", f"{last.loss:.3f}"),
    ]
    if evaluation := history.evaluation.last:
        facts.append((f"eval. at {evaluation.step:,}", f"{evaluation.loss:.3f}"))
    facts.append(("tokens/s", f"{history.tokens_per_second:,.0f}"))
    goes_on = seen.state.status is Status.TRAINING and not seen.waits
    if goes_on and history.seconds_left is not None:
        facts.append(("time left", duration(history.seconds_left)))
    else:
        facts.append(("time trained", duration(history.seconds)))
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


def queue_html(overview: Overview) -> str:
    """The runs that wait, in their order, and the one that failed before what is trained now."""
    failed = ""
    if overview.failed_before:
        text = f"'{overview.failed_before}' failed: choose it under Run to see why."
        failed = f'<div class="graft-note graft-note-warning" role="status">{escape(text)}</div>'
    if not overview.waiting:
        return failed
    items = "".join(f"<li>{escape(name)}</li>" for name in overview.waiting)
    return f'{failed}<div class="graft-queue"><span>Waiting</span><ol>{items}</ol></div>'


def checkpoints_html(on_disk: Collection[int], history: History, active: bool = True) -> str:
    """A table of the checkpoints, newest first; those that were deleted to keep the last n are left out."""
    rows = [event for event in reversed(history.checkpoints) if event.step in on_disk]
    if not rows:
        return '<p class="graft-quiet">Checkpoints appear here as they are saved.</p>' if active else ""
    body = "".join(
        f"<tr><td>{event.step:,}</td><td>{_loss(event.loss)}</td><td>{_loss(event.evaluation_loss)}</td>"
        f"<td><code>checkpoint-{event.step}</code></td></tr>"
        for event in rows
    )
    older = sum(step < rows[-1].step for step in on_disk)
    if older:
        body += f'<tr><td colspan="4">and {older:,} older ones in the run\'s folder</td></tr>'
    head = "<tr><th>step</th><th>loss</th><th>evaluation loss</th><th>folder</th></tr>"
    return f'<table class="graft-table"><thead>{head}</thead><tbody>{body}</tbody></table>'


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"  # noqa: RUF001 - a dash for "none" in a table
