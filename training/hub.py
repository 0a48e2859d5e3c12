"""Downloads a base model from the Hub into the Hugging Face cache: whole, resumable, and safetensors only.

huggingface_hub itself throws a half-downloaded file away, so the weights are fetched here; all else is left to it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers, filter_repo_objects, get_session, hf_raise_for_status
from tqdm.auto import tqdm

from training.base_models import is_hub_name
from training.errors import UserError
from training.hub_cache import cache_folder, model_folder
from training.hub_errors import in_words
from training.model_facts import CONFIG, WEIGHTS, WEIGHTS_INDEX, facts_of, size_text, weight_files, what_else_it_is
from training.trainable import why_not, why_not_this_kind

_SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]  # config, tokenizer, template
_CODE = ["*.py"]
_NOT_NEEDED = ["*.bin.index.json", "*.h5.index.json"]
_TRIES = 5  # in a row without a new byte
_WAIT = 1.0  # seconds before another try
_BLOB_NAME = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
log = logging.getLogger(__name__)
Report = Callable[[int, int, str], None]  # bytes that are there, bytes in all, the file at hand


class DownloadStopped(Exception):  # noqa: N818 - no error
    """Ends a download at the user's wish; what has arrived is kept."""


@dataclass(frozen=True)
class Wanted:
    """The model to download. None for the rest means what huggingface_hub is set to on this computer."""

    repo_id: str
    token: str | None = field(default=None, repr=False)
    with_code: bool = False  # also the Python files of the model's own
    endpoint: str | None = None
    cache_dir: Path | None = None


def never() -> bool:
    """The answer to `stopped` of what nobody can stop."""
    return False


def download(wanted: Wanted, report: Report, stopped: Callable[[], bool] = never) -> str:
    """Bring a model into the cache, going on where an earlier try ended, and return its folder.

    Raises UserError for whatever the user can do something about, and DownloadStopped soon after `stopped` says so.
    """
    _check(wanted)
    try:
        return str(_Fetching(wanted, report, stopped).run())
    except (httpx2.HTTPError, OSError, json.JSONDecodeError) as error:
        said = in_words(error, wanted.repo_id, wanted.token, cache_folder(wanted.cache_dir))
        if said is None:
            raise
        log.warning("the download of %s failed: %s", wanted.repo_id, type(error).__name__)
        raise UserError(said) from None


def _check(wanted: Wanted) -> None:
    if not is_hub_name(wanted.repo_id) or ".." in wanted.repo_id or "--" in wanted.repo_id:
        raise UserError(f"'{wanted.repo_id}' is no name of a model on the Hub: type it as org/model.")
    # The libraries put a token that cannot be a header into the text of their error.
    if wanted.token is not None and not re.fullmatch(r"[\x21-\x7e]+", wanted.token):
        raise UserError("The token has spaces or letters that no token has: copy it once more.")


class _Silent(tqdm):
    """A progress bar that writes nothing to the server's terminal."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **(options | {"disable": True}))


class _Fetching:
    """One download while it goes on."""

    def __init__(self, wanted: Wanted, report: Report, stopped: Callable[[], bool]) -> None:
        self._wanted = wanted
        self._report = report
        self._stopped = stopped
        self._cache = cache_folder(wanted.cache_dir)
        self._there = 0  # bytes of files that are whole
        self._total = 0

    def run(self) -> Path:
        wanted = self._wanted
        info = HfApi(endpoint=wanted.endpoint, token=wanted.token).model_info(
            wanted.repo_id, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        files = {file.rfilename: file for file in info.siblings or []}
        _check_names(files, wanted.repo_id)
        small = self._small_files(files)
        # Until the index is there, names that look like shards tell how much there will be.
        guessed = {WEIGHTS} if WEIGHTS in files else set(filter_repo_objects(files, allow_patterns=["model-*-of-*"]))
        self._total = sum(files[name].size or 0 for name in (*small, *guessed))
        self._say(CONFIG)
        folder = self._fetch_small(small, str(info.sha))
        self._there = sum(files[name].size or 0 for name in small)

        weights = self._checked_weights(folder, files)
        self._total = self._there + sum(file.size or 0 for file in weights)
        self._check_disk(weights)
        for file in weights:
            self._fetch_weights(file, folder)
        if reason := why_not(facts_of(folder, wanted.repo_id), run_code=True):
            raise UserError(f"The download is of no use: {reason}")
        return folder

    def _small_files(self, files: Collection[str]) -> list[str]:
        patterns = _SMALL + (_CODE if self._wanted.with_code else [])
        at_top = (name for name in files if "/" not in name)
        return list(filter_repo_objects(at_top, allow_patterns=patterns, ignore_patterns=_NOT_NEEDED))

    def _fetch_small(self, names: list[str], commit: str) -> Path:
        """The folder of this version, with everything but the weights."""
        wanted = self._wanted
        folder = Path(
            snapshot_download(
                wanted.repo_id,
                cache_dir=self._cache,
                endpoint=wanted.endpoint,
                token=wanted.token,
                allow_patterns=names,
                tqdm_class=_Silent,
                max_workers=4,
            )
        )
        if folder.name != commit:
            raise UserError(f"'{wanted.repo_id}' has changed on the Hub at this very moment: press Download again.")
        return folder

    def _checked_weights(self, folder: Path, files: dict[str, RepoSibling]) -> list[RepoSibling]:
        """The files of the weights; raises UserError for a model that could not be trained once it was here."""
        repo_id = self._wanted.repo_id
        if reason := why_not_this_kind(facts_of(folder, repo_id), run_code=self._wanted.with_code):
            raise UserError(f"This model cannot be trained: {reason}")
        names = [WEIGHTS] if WEIGHTS in files else weight_files(folder, repo_id)[0]
        if lacking := [name for name in names if name not in files or not files[name].size]:
            raise UserError(f"'{repo_id}' is not whole on the Hub, {lacking[0]} is missing: choose another model.")
        return [files[name] for name in names]

    def _check_disk(self, weights: list[RepoSibling]) -> None:
        needed = sum((file.size or 0) - self._bytes_of(file) for file in weights)
        free = shutil.disk_usage(self._cache).free
        if free < needed:
            raise UserError(
                f"'{self._wanted.repo_id}' needs {size_text(needed)} more and the disk with {self._cache} has "
                f"{size_text(free)} left: make room first, or choose a smaller model."
            )

    def _blob(self, file: RepoSibling) -> Path:
        """Where the cache keeps the content of a file, under the name of its hash."""
        name = file.lfs.sha256 if file.lfs else str(file.blob_id)
        if not _BLOB_NAME.fullmatch(name):  # it becomes a path
            raise UserError(f"The Hub describes '{file.rfilename}' in a way that Graft does not know: choose another.")
        return model_folder(self._cache, self._wanted.repo_id) / "blobs" / name

    def _bytes_of(self, file: RepoSibling) -> int:
        """How much of a file has arrived, in this download or an earlier one."""
        blob = self._blob(file)
        found = next((path for path in (blob, _part(blob)) if path.is_file()), None)
        return found.stat().st_size if found else 0

    def _fetch_weights(self, file: RepoSibling, folder: Path) -> None:
        """Bring one file of weights into the cache, and let huggingface_hub link it into the version's folder."""
        wanted, blob = self._wanted, self._blob(file)
        self._say(file.rfilename, self._bytes_of(file))
        if not (folder / file.rfilename).exists():
            blob.parent.mkdir(parents=True, exist_ok=True)
            lock = self._lock(blob)
            try:
                if not blob.exists():
                    self._fetch_blob(file, blob, folder.name)
            finally:
                lock.release()
            hf_hub_download(
                wanted.repo_id,
                file.rfilename,
                revision=folder.name,
                cache_dir=self._cache,
                endpoint=wanted.endpoint,
                token=wanted.token,
                tqdm_class=_Silent,
            )
        self._there += file.size or 0
        self._say(file.rfilename)

    def _lock(self, blob: Path) -> FileLock:
        """The lock that huggingface_hub takes too, taken: two that append to one file would spoil it."""
        path = self._cache / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0.5)
            except Timeout:
                self._say("waiting for another download of the same file")
        return lock

    def _fetch_blob(self, file: RepoSibling, blob: Path, commit: str) -> None:
        part, size = _part(blob), int(file.size or 0)
        resumed = part.is_file()
        url = hf_hub_url(self._wanted.repo_id, file.rfilename, revision=commit, endpoint=self._wanted.endpoint)
        left = _TRIES
        while (have := part.stat().st_size if part.is_file() else 0) < size:
            try:
                self._stream(url, part, file.rfilename)
            except (httpx2.TransportError, HfHubHTTPError) as error:
                if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                    raise
                left = _TRIES if part.is_file() and part.stat().st_size > have else left - 1
                if not left:
                    raise
                log.info("%s broke off, it is tried again", file.rfilename)
                time.sleep(_WAIT)
        # Bytes of an earlier try may have been lost when the computer went down.
        if have > size or (resumed and file.lfs and _sha256(part) != file.lfs.sha256):
            part.unlink()
            raise UserError(f"{file.rfilename} has not arrived as it is on the Hub: press Download again.")
        os.replace(part, blob)

    def _stream(self, url: str, part: Path, name: str) -> None:
        """Append what is still missing of a file; a server that cannot do that sends all of it anew."""
        have = part.stat().st_size if part.is_file() else 0
        headers = build_hf_headers(token=self._wanted.token) | {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            hf_raise_for_status(response)
            goes_on = response.status_code == 206
            have = have if goes_on else 0
            with part.open("ab" if goes_on else "wb") as out:
                for chunk in response.iter_bytes():
                    have += out.write(chunk)
                    self._say(name, have)

    def _say(self, name: str, of_this_file: int = 0) -> None:
        if self._stopped():
            raise DownloadStopped
        self._report(self._there + of_this_file, self._total, name)


def _part(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_names(files: Collection[str], repo_id: str) -> None:
    """Raise UserError for a model that its file names show to be of no use, before anything is fetched."""
    if CONFIG not in files:
        raise UserError(f"This model cannot be trained: {what_else_it_is(set(files), repo_id)}")
    if WEIGHTS not in files and WEIGHTS_INDEX not in files:
        raise UserError(
            f"'{repo_id}' has no .safetensors weights, and others can run code and are not loaded: choose a model "
            "that has them."
        )
