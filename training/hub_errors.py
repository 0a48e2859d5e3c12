"""What went wrong with the Hub, in words for the user. No text of a library is passed on: it may hold the token."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import httpx2
from huggingface_hub import get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_TOKENS = "huggingface.co/settings/tokens"
KEPT = "what is there is kept, and Download goes on from it"


def in_words(error: Exception, repo_id: str, token: str | None, cache: Path) -> str | None:
    """One sentence on an error of a download, with what to do; None for one that is a bug."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        # snapshot_download looks into the cache when a request fails, and then complains of the cache.
        return in_words(error.__cause__, repo_id, token, cache)
    if isinstance(error, HfHubHTTPError):
        return _refused(error, repo_id, token or get_token())
    if isinstance(error, OfflineModeIsEnabled):
        return "The Hub is switched off on this computer by HF_HUB_OFFLINE: unset that and start Graft again."
    if isinstance(error, json.JSONDecodeError | FileMetadataError):
        return "In its place something else answers than the Hub: log in to this network, or check HF_ENDPOINT."
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return f"The Hub cannot be reached: check the network and press Download again; {KEPT}."
    if isinstance(error, httpx2.HTTPError | LocalEntryNotFoundError):
        return f"The connection to the Hub broke off: check the network and press Download again; {KEPT}."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk with {cache} is full: make room and press Download again; {KEPT}."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{cache} cannot be written to ({error.strerror}): mend its rights, or set HF_HOME to another folder."
    return None


def _refused(error: HfHubHTTPError, repo_id: str, token: str | None) -> str:
    """What an answer of the Hub means. It answers 401 also for a model that does not exist, and for a wrong token."""
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        if token is None or status == 401:
            return (
                f"'{repo_id}' is gated: accept its terms at huggingface.co/{repo_id}, then download it with a token "
                f"from {_TOKENS}."
            )
        return (
            f"The token may not read '{repo_id}', which is gated: accept its terms at huggingface.co/{repo_id} with "
            "the account that the token is of."
        )
    if isinstance(error, RevisionNotFoundError | EntryNotFoundError):
        return f"'{repo_id}' has just changed on the Hub, and this version of it is gone: press Download again."
    if isinstance(error, DisabledRepoError):
        return f"'{repo_id}' has been withdrawn from the Hub: choose another model."
    if status == 401 and token is not None:
        return f"The Hub refuses the token: copy it once more from {_TOKENS}, or leave the box empty for an open model."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"The Hub has no model '{repo_id}', or it is private: check the spelling of org/model, or give a token "
            "that may read it."
        )
    if status in (401, 403):
        return f"The Hub does not let this token read '{repo_id}': use one with read access from {_TOKENS}."
    if status == 429:
        return "The Hub asks to wait, because too much was asked of it from here: press Download in some minutes."
    return f"The Hub has trouble of its own (error {status}): press Download again later; {KEPT}."
