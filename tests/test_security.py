"""Nobody without the password gets anything; what is sent past the page is checked as well; no file leaks."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

import app
from tests.server import Server, free_port, running_server
from tests.tiny import make_folders
from training.paths import PROJECT, Folders
from training.supervisor import Supervisor
from ui.access import PasswordGate, is_loopback, launch_door, warning
from ui.page import build_page, launch_options

PASSWORD = "correct horse battery"
LEFT_OPEN = {("GET", "/login"), ("HEAD", "/login"), ("POST", "/login"), ("GET", "/"), ("HEAD", "/")}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The real page behind a password, served by this process, so that its routes can be listed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    port = free_port()
    folders = make_folders(tmp_path_factory.mktemp("locked"))
    page = build_page(folders, Supervisor(folders))
    page.launch(
        server_name="127.0.0.1",
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        **launch_door(PASSWORD, port),
        **launch_options(),
    )
    yield page
    page.close()


@pytest.fixture
def anonymous(locked: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.local_url, timeout=20) as client:
        yield client


@pytest.fixture
def known(anonymous: httpx.Client) -> httpx.Client:
    answer = anonymous.post("login", data={"password": PASSWORD})
    assert answer.status_code == 303
    return anonymous


def _addresses(app: FastAPI) -> set[tuple[str, str]]:
    """Every method and path of the app, with something in the place of what a path leaves open."""
    found = set()
    for route in iter_route_contexts(app.routes):
        path = re.sub(r"{\w+:path}", "etc/passwd", route.path or "")
        found |= {(method, re.sub(r"{\w+}", "1", path)) for method in route.methods or {"GET"}}
    return found


def test_no_address_answers_without_the_password(locked: Any, anonymous: httpx.Client) -> None:
    found = _addresses(locked.app)
    more = (
        "/gradio_api/mcp/sse",
        "/gradio_api/mcp",
        "/docs",
        "/openapi.json",
        "/login/",
        "/login/x",
        "/./login/../config",
    )
    found |= {(method, path) for path in more for method in ("GET", "POST")}
    assert len(found) > 80, "Gradio's own addresses must be among them"
    answered = {}
    for method, path in sorted(found - LEFT_OPEN):
        # A body that the address would take, lest it be refused for another reason.
        answer = anonymous.request(method, path, json={"data": [], "fn_index": 0, "session_hash": "x", "event_id": "x"})
        if answer.status_code != 401 or (answer.text and "A password is needed" not in answer.text):
            answered[method, path] = answer.status_code
    assert answered == {}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_every_method_is_turned_away(anonymous: httpx.Client, method: str) -> None:
    for path in ("config", "gradio_api/upload", "gradio_api/queue/join", "gradio_api/queue/data?session_hash=x"):
        assert anonymous.request(method, path).status_code == 401


def test_other_websites_cannot_use_what_a_reader_may(known: httpx.Client) -> None:
    host = f"{known.base_url.host}:{known.base_url.port}"
    for origin in ("http://evil.example", f"http://{known.base_url.host}:1", "null", f"http://{host}.evil.example"):
        headers = {"Origin": origin, "X-Forwarded-Host": "graft.example"}
        assert known.get("config", headers=headers).status_code == 403, origin
        assert known.post("login", data={"password": PASSWORD}, headers=headers).status_code == 403, origin
    assert known.get("config", headers={"Origin": f"http://{host}"}).status_code == 200
    behind_a_proxy = {"Origin": "https://graft.example", "X-Forwarded-Host": "graft.example"}
    assert known.get("config", headers=behind_a_proxy).status_code == 200


def test_the_first_address_leads_to_the_login_page(anonymous: httpx.Client) -> None:
    first = anonymous.get("?__theme=dark")
    assert first.status_code == 303 and first.headers["location"] == "login"
    page = anonymous.get("login")
    assert page.status_code == 200 and "password" in page.text
    assert "gradio" not in page.text.lower(), "the login page tells nothing of what is behind it"
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


def test_the_password_opens_all(known: httpx.Client) -> None:
    assert known.get("").status_code == 200
    assert known.get("config").json()["components"]


def test_the_cookie_is_kept_from_scripts_and_other_websites(anonymous: httpx.Client) -> None:
    answer = anonymous.post("login", data={"password": PASSWORD})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie and "secure" not in cookie
    over_https = anonymous.post("login", data={"password": PASSWORD}, headers={"X-Forwarded-Proto": "https"})
    assert "secure" in over_https.headers["set-cookie"].lower()


@pytest.mark.parametrize("cookie", ["", "x", "None", "../", "\u00e9", "a" * 5000])
def test_a_made_up_cookie_is_none(locked: Any, anonymous: httpx.Client, cookie: str) -> None:
    name = f"graft-login-{locked.server_port}"
    for value in (f"{name}={cookie}".encode(), f"{name}={cookie}; {name}={cookie}".encode()):
        assert anonymous.get("config", headers={b"cookie": value}).status_code == 401


def in_a_loop_of_its_own(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """An asynchronous test as one that runs in a thread: the browser of other tests keeps a loop in the main one."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(test(*arguments, **named))).result()

    return run


class Door:
    """A gate of its own around an app that says yes, for what would lock the others out."""

    def __init__(self) -> None:
        async def behind(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"behind"})

        gate = PasswordGate(behind, PASSWORD, 1)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://graft")

    async def try_password(self, given: str) -> int:
        return (await self.client.post("/login", data={"password": given})).status_code


@pytest.mark.parametrize(
    "wrong",
    ["", " ", PASSWORD[:-1], PASSWORD + " ", PASSWORD.upper(), "\0", "\ud800".encode("utf-8", "replace").decode()],
)
@in_a_loop_of_its_own
async def test_a_wrong_password_opens_nothing(wrong: str) -> None:
    door = Door()
    assert await door.try_password(wrong) == 401
    assert (await door.client.get("/config")).status_code == 401


@in_a_loop_of_its_own
async def test_guessing_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("ui.access.time.monotonic", lambda: now)
    door = Door()
    assert [await door.try_password(f"guess {n}") for n in range(12)] == [401] * 10 + [429] * 2
    assert await door.try_password(PASSWORD) == 429, "else it could be guessed at any speed"
    now += 61
    assert await door.try_password(PASSWORD) == 303


@in_a_loop_of_its_own
async def test_a_login_that_never_ends_is_cut() -> None:
    door = Door()
    answer = await door.client.post("/login", content=b"password=" + b"x" * 10_000)
    assert answer.status_code == 413


@in_a_loop_of_its_own
async def test_gradio_asks_for_its_start_once() -> None:
    door = Door()
    answers = [(await door.client.get("/gradio_api/startup-events")).status_code for _ in range(3)]
    assert answers == [200, 401, 401]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("", False),
        ("::", False),
        ("192.168.1.5", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("my-computer", False),
    ],
)
def test_what_is_this_computer(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_password_is_made_and_told_when_others_are_let_in() -> None:
    assert "secret" in warning("secret", is_public=False) and "secret" not in warning("", is_public=True)
    assert "internet" in warning("", is_public=True) and "network" in warning("", is_public=False)


@pytest.mark.parametrize("where", ["option", "environment"])
@pytest.mark.parametrize("password", ["", "   "])
def test_an_empty_password_is_refused(where: str, password: str) -> None:
    environment = {**os.environ, app.PASSWORD: password} if where == "environment" else {**os.environ}
    command = [sys.executable, "app.py", "--no-browser", *(["--password", password] if where == "option" else [])]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("The password is empty: give one")
    assert len(done.stderr.splitlines()) == 1


def test_open_to_the_network_without_a_password_makes_one(tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    command = [sys.executable, "app.py", "--no-browser", "--host=0.0.0.0", f"--port={free_port()}"]
    command += [f"--{name}-dir={getattr(folders, name)}" for name in ("models", "datasets", "loras")]
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "Its password is " in line)
        assert len(line.split("Its password is ")[1].strip()) >= 20
        assert "Whoever has the password can" in next(process.stderr)
    finally:
        process.kill()
        process.wait()


# What follows is a page without a password, as it is on the reader's own computer.

_CANARY = "the canary sings of what lies outside"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("served")
    folders = Folders(datasets=root / "datasets", loras=root / "loras")
    folders.make()
    (root / "canary.txt").write_text(_CANARY)
    (root / "canary.json").write_text(json.dumps([{"question": _CANARY, "answer": _CANARY}]))
    (folders.datasets / "own.json").write_text(json.dumps([{"question": "Who?", "answer": "I."}]))
    (folders.datasets / "link.json").symlink_to(root / "canary.json")
    run = folders.loras / "x"
    run.mkdir()
    (run / "settings.json").write_text(json.dumps({"name": _CANARY}))
    with running_server(folders, root / "server.log") as server:
        yield server


@pytest.fixture
def client(served: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


def test_other_websites_cannot_use_the_page_through_the_browser(served: Server, client: httpx.Client) -> None:
    port = httpx.URL(served.url).port
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "[", "192.168.1.5"):
        refused = client.get("config", headers={"Host": host})
        assert refused.status_code == 403 and "--password" in refused.text, host
    for origin in ("http://evil.example", "null", "https://localhost.evil.example", "file://", "http://["):
        files = {"files": ("a.txt", b"hi")}
        assert client.post("gradio_api/upload", files=files, headers={"Origin": origin}).status_code == 403, origin
    for own in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        headers = {"Host": own, "Origin": f"http://{own}"}
        assert client.get("config", headers=headers).status_code == 200


def test_gradio_serves_no_file_but_its_own(served: Server, client: httpx.Client) -> None:
    root = served.folders.datasets.parent
    mine = client.post("gradio_api/upload", files={"files": ("mine.txt", b"mine")}).json()[0]
    uploads = Path(mine).parents[1]
    asked = [
        "/etc/passwd",
        "etc/passwd",
        str(PROJECT / "README.md"),
        str(PROJECT / "app.py"),
        "README.md",
        "./app.py",
        "datasets/car_warranty.json",
        str(PROJECT / "ui" / "static" / "head.html"),
        str(served.folders.datasets / "own.json"),
        str(served.folders.datasets / "link.json"),
        str(served.folders.loras / "x" / "settings.json"),
        str(root / "canary.txt"),
        str(served.log),
        f"{mine}/../../../../{root}/canary.txt",
        f"{uploads}/..{root}/canary.txt",
        f"{uploads}/../..{root}/canary.txt",
        str(uploads),
        str(uploads) + "/",
        str(Path(mine).parent),
        "/proc/self/environ",
        "file:///etc/passwd",
        "http://127.0.0.1:22/",
        served.url,
        "\0",
        "C:\\Windows\\win.ini",
        "\\\\server\\share\\x",
    ]
    answers = {
        name: client.get(f"gradio_api/{way}{quote(name, safe=safe)}", follow_redirects=True)
        for name in asked
        for way, safe in (("file=", "/"), ("file/", "/"), ("file=", ""))
    }
    assert {name: a.status_code for name, a in answers.items() if a.status_code < 400} == {}
    assert all(_CANARY not in a.text and "root:" not in a.text for a in answers.values())
    assert client.get(f"gradio_api/file={mine}").text == "mine"
    for below in ("static", "assets", "svelte"):
        for way in (
            "../../../../../../app.py",
            "..%2f..%2f..%2fapp.py",
            "%2e%2e/%2e%2e/app.py",
            "/etc/passwd",
            "%2fetc%2fpasswd",
        ):
            assert client.get(f"{below}/{way}").status_code in (400, 403, 404)


def test_every_event_is_private(client: httpx.Client) -> None:
    assert client.get("gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}
    assert client.get("gradio_api/runs").status_code == 404
    assert client.get("monitoring").status_code == 403


def _send(client: httpx.Client, index: int, data: list[Any], session: str = "s") -> str:
    """Everything that an event of the page answers to these values, sent as the page sends them."""
    body = {"data": data, "fn_index": index, "session_hash": session}
    joined = client.post("gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return joined.text
    said = []
    # Gradio cannot write down numbers of any size, and breaks off.
    with (
        suppress(httpx.RemoteProtocolError),
        client.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as stream,
    ):
        for line in stream.iter_lines():
            said.append(line)
            if '"process_completed"' in line:
                break
    return "\n".join(said)


_HOSTILE = {
    "a path": "/etc/passwd",
    "dots": "../canary.json",
    "a number": 10**400,
    "an object": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    "a list of paths": ["../canary.json", "link.json"],
    "NUL": "a\0b",
    "markup": "<img src=x onerror=alert(1)>",
}


def _snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and p.suffix not in (".log", ".lock")
    }


@pytest.mark.parametrize("value", _HOSTILE.values(), ids=_HOSTILE)
def test_values_sent_past_the_page_reach_nothing(served: Server, client: httpx.Client, value: Any) -> None:
    """Each event with the value in the place of all of its inputs."""
    root = served.folders.datasets.parent
    before = _snapshot(root)
    events = client.get("config").json()["dependencies"]
    events = [event for event in events if event["backend_fn"] and event["inputs"] and not event["cancels"]]
    assert len(events) > 40
    for number, event in enumerate(events):
        said = _send(client, event["id"], [value] * len(event["inputs"]), f"hostile{number}")
        assert _CANARY not in said and "root:x:" not in said, event
        assert "Traceback" not in said
    after = _snapshot(root)
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()


@pytest.mark.parametrize("value", ["{root}/canary.json", "link.json"])
def test_names_that_no_list_offers_are_checked_as_well(served: Server, client: httpx.Client, value: str) -> None:
    """Each event as the page would send it, but for one list in which own text may be typed."""
    root = served.folders.datasets.parent
    value = value.replace("{root}", str(root))
    before = _snapshot(root)
    config = client.get("config").json()
    components = {component["id"]: component["props"] for component in config["components"]}
    sent = 0
    for event in (event for event in config["dependencies"] if event["backend_fn"]):
        inputs = [components[number] for number in event["inputs"]]
        for place, typed in enumerate(inputs):
            if typed.get("allow_custom_value"):
                data = [one.get("value") for one in inputs]
                data[place] = [value] if typed.get("multiselect") else value
                said = _send(client, event["id"], data, f"typed{sent}")
                sent += 1
                assert _CANARY not in said, (event, typed["label"])
    assert sent > 40
    assert {name for name, text in _snapshot(root).items() if before.get(name) != text} == set()
