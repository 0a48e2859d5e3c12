"""A download in a thread of its own, which outlives the browser tab that asked for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from training.errors import UserError
from training.hub import DownloadStopped, Wanted, download
from training.hub_errors import KEPT

DownloadState = Literal["running", "done", "failed", "cancelled"]
_SPEED_OVER = 5.0  # seconds that the speed is measured over
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DownloadProgress:
    """How far a download is. `speed` is in bytes a second, `message` for the user once it has ended."""

    done_bytes: int = 0
    total_bytes: int = 0
    speed: float = 0.0
    file: str = ""
    state: DownloadState = "running"
    message: str = ""


class Download(threading.Thread):
    """One download; any number of pages may ask for its progress."""

    def __init__(self, wanted: Wanted) -> None:
        # A daemon, so that closing Graft does not wait for gigabytes: what has arrived is on the disk.
        super().__init__(name=f"download {wanted.repo_id}", daemon=True)
        self.repo_id = wanted.repo_id
        self._wanted = wanted
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, int]] = deque()  # times, and the bytes that were there
        self._total = 0
        self._file = ""
        self._end: tuple[DownloadState, str] = ("running", "")

    def run(self) -> None:
        """Download, and leave a state behind that says how it ended."""
        try:
            download(self._wanted, self._note, self._cancelled.is_set)
            end: tuple[DownloadState, str] = ("done", f"'{self.repo_id}' is on this computer now.")
        except DownloadStopped:
            end = ("cancelled", f"The download of '{self.repo_id}' was cancelled: {KEPT}.")
        except UserError as error:
            end = ("failed", str(error))
        except Exception:
            log.exception("the download of %s failed", self.repo_id)
            end = ("failed", f"The download of '{self.repo_id}' failed in a way that only Graft's log tells more of.")
        with self._lock:
            self._end = end

    def cancel(self) -> None:
        """Ask the download to stop; it does so at the next bytes that arrive."""
        self._cancelled.set()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._end[0] == "running"

    def progress(self) -> DownloadProgress:
        """How far it is at this moment."""
        with self._lock:
            done = self._seen[-1][1] if self._seen else 0
            state, message = self._end
            return DownloadProgress(done, self._total, self._speed(), self._file, state, message)

    def _note(self, done: int, total: int, file: str) -> None:
        now = time.monotonic()
        with self._lock:
            if file != self._file:
                self._seen.clear()  # what an earlier download left of it was not fast
            self._total, self._file = total, file
            self._seen.append((now, done))
            while now - self._seen[0][0] > _SPEED_OVER:
                self._seen.popleft()

    def _speed(self) -> float:
        if not self._seen:
            return 0.0
        (first, before), (_, done) = self._seen[0], self._seen[-1]
        # Against now and not the last bytes: a connection that hangs is seen to slow down.
        return max(0.0, (done - before) / max(time.monotonic() - first, 0.1))


def start_download(repo_id: str, *, token: str | None = None, with_code: bool = False) -> Download:
    """Begin to bring a model of the Hub into the Hugging Face cache."""
    return begin(Wanted(repo_id.strip(), (token or "").strip() or None, with_code))


def begin(wanted: Wanted) -> Download:
    """The same for what was put together before."""
    started = Download(wanted)
    started.start()
    return started
