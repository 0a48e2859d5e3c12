"""A stand-in of the Hub on this computer: the part of its HTTP interface that a download uses, and its troubles."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "c0ffee" * 6 + "0000"
TOKEN = "hf_goodGoodGood"
STRANGER = "hf_strangerStranger"  # of an account that has not accepted the terms of gated models
_LFS = (".safetensors", ".bin")


@dataclass
class Repo:
    """A model as the Hub holds it."""

    files: dict[str, bytes]
    gated: bool = False
    commit: str = COMMIT


@dataclass
class Asked:
    """A request that came in; `sent` counts the bytes of the answer."""

    method: str
    path: str
    range: str
    authorization: str
    sent: int = 0


@dataclass
class StandIn:
    """The models that are served, and what is to go wrong."""

    repos: dict[str, Repo]
    url: str = ""
    cuts: list[int] = field(default_factory=list)  # after how many bytes the next answers with weights break off
    hold_after: int | None = None  # bytes of weights after which an answer waits for `go_on`
    waiting: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    broken: int = 0  # answers with weights that fail with status 503
    gone: bool = False  # whether the version is withdrawn after its files were listed
    portal: bool = False  # whether every answer is a page to log in at, as in a hotel
    asked: list[Asked] = field(default_factory=list)

    def weights_asked(self) -> list[Asked]:
        """The requests for the content of weights."""
        return [one for one in self.asked if one.method == "GET" and one.path.endswith(_LFS)]


def folder_repo(folder: Path, gated: bool = False) -> Repo:
    """A model with the files of a folder."""
    return Repo({path.name: path.read_bytes() for path in folder.iterdir()}, gated)


@contextmanager
def running_hub(repos: dict[str, Repo]) -> Iterator[StandIn]:
    """Serve the models on a free port until the block ends."""
    hub = StandIn(repos)

    class Handler(_Handler):
        stand_in = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Tests keep their output for themselves."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        headers = self.headers
        self._asked = Asked(self.command, path, headers.get("Range", ""), headers.get("Authorization", ""))
        self.stand_in.asked.append(self._asked)
        if self.stand_in.portal:
            return self._send("text/html", b"<html>Welcome! Please log in.</html>")
        if self._asked.authorization not in ("", f"Bearer {TOKEN}", f"Bearer {STRANGER}"):
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/[^/]+)?", path):
            repo = self.stand_in.repos.get(found[1])
            if repo is None:
                return self._unknown()
            return self._send_json(_tree(repo) if "/tree/" in path else _info(found[1], repo))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo = self.stand_in.repos.get(found[1])
            if repo is None:
                return self._unknown()
            if repo.gated and self._asked.authorization != f"Bearer {TOKEN}":
                status = 403 if self._asked.authorization else 401
                return self._refuse(status, "GatedRepo", f"Access to model {found[1]} is restricted.")
            if self.stand_in.gone:
                return self._refuse(404, "RevisionNotFound", "Invalid rev id")
            if found[3] not in repo.files:
                return self._refuse(404, "EntryNotFound", "Entry not found")
            return self._send_file(found[3], repo)
        return self._refuse(404, "", "Not found")

    def _unknown(self) -> None:
        # The Hub does not tell strangers whether a model is missing or private.
        self._refuse(404 if self._asked.authorization else 401, "RepoNotFound", "Repository not found")

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_json(self, value: object) -> None:
        self._send("application/json", json.dumps(value).encode())

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _send_file(self, name: str, repo: Repo) -> None:
        hub, content, weights = self.stand_in, repo.files[name], name.endswith(_LFS)
        if weights and self.command == "GET" and hub.broken:
            hub.broken -= 1
            return self._refuse(503, "", "Service unavailable")
        start = int(found[1]) if (found := re.fullmatch(r"bytes=(\d+)-", self._asked.range)) else 0
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{_etag(name, content)}"')
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            return self._send_body(body, weights)
        return None

    def _send_body(self, body: bytes, weights: bool) -> None:
        hub = self.stand_in
        cut = hub.cuts.pop(0) if weights and hub.cuts else None
        if weights and hub.hold_after is not None:
            self._write(body[: hub.hold_after])
            body, hub.hold_after = body[hub.hold_after :], None
            hub.waiting.set()
            hub.go_on.wait()
        self._write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def _write(self, body: bytes) -> None:
        for start in range(0, len(body), 1 << 14):
            try:
                self.wfile.write(body[start : start + (1 << 14)])
                self.wfile.flush()
            except ConnectionError:  # the other side has had enough
                self.close_connection = True
                return
            self._asked.sent += len(body[start : start + (1 << 14)])


def _etag(name: str, content: bytes) -> str:
    if name.endswith(_LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # as git does


def _info(repo_id: str, repo: Repo) -> dict[str, object]:
    siblings: list[dict[str, object]] = []
    for name, content in repo.files.items():
        sibling: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": _etag("", content)}
        if name.endswith(_LFS):
            sibling["lfs"] = {"sha256": _etag(name, content), "size": len(content), "pointerSize": 130}
        siblings.append(sibling)
    return {"id": repo_id, "modelId": repo_id, "sha": repo.commit, "siblings": siblings, "gated": repo.gated}


def _tree(repo: Repo) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for name, content in repo.files.items():
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _etag("", content)}
        if name.endswith(_LFS):
            entry["lfs"] = {"oid": _etag(name, content), "size": len(content), "pointerSize": 130}
        entries.append(entry)
    return entries
