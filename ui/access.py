"""Who may use the page: with a password whoever knows it, else only a browser on this very computer.

It stands in front of everything Gradio serves. Gradio's own login leaves some of its addresses open to everybody, and
without one Gradio answers every website that the reader's browser is made to ask this computer for (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import secrets
import time
from collections import deque
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

LOGIN = "/login"
_STARTUP = "/gradio_api/startup-events"
_LONGEST_FORM = 4096  # bytes
_WRONG_A_MINUTE = 10
_MINUTE = 60.0  # seconds
_PAGE = (Path(__file__).parent / "static" / "login.html").read_text(encoding="utf-8")
_OTHER_WEBSITE = (
    "Another website sent this, or a proxy that changes the Host header: let the proxy hand on the one it was given."
)
_CLOSED = {"type": "websocket.close", "code": 1008}  # the page uses none
# A login page in a frame of another website could be made to look like that website's own.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ),
}


def is_loopback(host: str) -> bool:
    """Whether an address to serve on, or the one that a browser asked for, is this computer itself and no other."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def middleware(password: str | None, port: int) -> list[Middleware]:
    """What `launch` takes as app_kwargs["middleware"]: the door for a page on this port, None for no password."""
    if password is None:
        return [Middleware(ThisComputerOnly)]
    return [Middleware(PasswordGate, password=password, port=port)]


class ThisComputerOnly:
    """Turns away what does not come from a page of this computer: other websites, and names that lead here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or hand the request on."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and _is_ours(Headers(scope=scope))):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send(_CLOSED)
        else:
            refused = PlainTextResponse(
                "This page answers only to a browser on its own computer that opened it as http://127.0.0.1 or "
                "http://localhost: start Graft with --password to open it in another way.",
                status_code=403,
            )
            await refused(scope, receive, send)


def _is_ours(headers: Headers) -> bool:
    origin = headers.get("origin")
    # Browsers send "null" for what must not be known; it has no host name either.
    return is_loopback(_host_of(f"//{headers.get('host', '')}")) and (origin is None or is_loopback(_host_of(origin)))


def _host_of(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


class PasswordGate:
    """Hands on the requests of those who gave the password; everybody else gets the login page and nothing more."""

    def __init__(self, app: ASGIApp, password: str, port: int) -> None:
        self._app = app
        self._password = password.encode()
        self._cookie = f"graft-login-{port}"  # browsers keep one set of cookies for all ports of a computer
        self._tokens: set[str] = set()
        self._wrong: deque[float] = deque(maxlen=_WRONG_A_MINUTE)  # when wrong passwords were given
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or the login page, or hand the request on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send(_CLOSED)
            return
        request = Request(scope, receive)
        if not _is_same_origin(request):
            refused = PlainTextResponse(_OTHER_WEBSITE, status_code=403, headers=_HEADERS)
            await refused(scope, receive, send)
        elif scope["path"] != LOGIN and (
            request.cookies.get(self._cookie) in self._tokens or self._is_first_start(scope)
        ):
            await self._app(scope, receive, send)
        else:
            await (await self._answer(request))(scope, receive, send)

    def _is_first_start(self, scope: Scope) -> bool:
        """Whether it is Gradio itself, which asks for this once, and without a cookie, before the page can be seen."""
        is_first = scope["path"] == _STARTUP and not self._has_started
        self._has_started = self._has_started or is_first
        return is_first

    async def _answer(self, request: Request) -> Response:
        path = request.scope["path"]
        if path == LOGIN and request.method == "POST":
            return await self._login(request)
        if path == LOGIN and request.method in ("GET", "HEAD"):
            return _login_page()
        if path == "/" and request.method in ("GET", "HEAD"):
            return RedirectResponse(LOGIN[1:], status_code=303, headers=_HEADERS)
        return PlainTextResponse("A password is needed: open the page and log in.", status_code=401, headers=_HEADERS)

    async def _login(self, request: Request) -> Response:
        if len(self._wrong) == _WRONG_A_MINUTE and time.monotonic() - self._wrong[0] < _MINUTE:
            return _login_page("Too many wrong passwords were given: wait a minute and try again.", 429)
        body = b""
        try:
            async for part in request.stream():
                body += part
                if len(body) > _LONGEST_FORM:
                    return _login_page("That is far too long for a password: type the one you were given.", 413)
        except ClientDisconnect:
            return PlainTextResponse("", status_code=400)
        given = parse_qs(body.decode("utf-8", "replace")).get("password", [""])[0]
        # Compared in a time that does not tell how much of it is right.
        if not secrets.compare_digest(given.encode(errors="replace"), self._password):
            self._wrong.append(time.monotonic())
            return _login_page("This is not the password: ask whoever started Graft.", 401)
        token = secrets.token_urlsafe(32)
        self._tokens.add(token)
        answer = RedirectResponse("./", status_code=303, headers=_HEADERS)
        answer.set_cookie(self._cookie, token, httponly=True, samesite="lax", secure=_is_encrypted(request))
        return answer


def _is_same_origin(request: Request) -> bool:
    """Whether no other website sent this; to the browser those at other ports of this computer are not strangers."""
    origin, hosts = request.headers.get("origin"), {request.headers.get("host")}
    if request.client and is_loopback(request.client.host):  # from a proxy on this computer
        hosts.add(request.headers.get("x-forwarded-host"))
    return origin is None or origin.partition("://")[2] in hosts


def _is_encrypted(request: Request) -> bool:
    """Whether the browser came by https, itself or as a proxy in between says."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))


def _login_page(problem: str = "", status: int = 200) -> HTMLResponse:
    said = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    return HTMLResponse(_PAGE.replace("<!-- problem -->", said), status_code=status, headers=_HEADERS)


def warning(made_password: str, *, is_public: bool) -> str:
    """What whoever opens the page to others should know, to be printed, with the password where none was given."""
    where = (
        "on the internet, by way of Gradio's servers" if is_public else "in your network, where others may listen in"
    )
    said = f" Its password is {made_password}" if made_password else ""
    return (
        f"The page is open to others {where}.{said}\n"
        "Whoever has the password can start trainings on this computer, with the program code of any model, and read, "
        "change and delete the data files and the LoRAs."
    )


def launch_door(password: str | None, port: int) -> dict[str, Any]:
    """The arguments of `launch` that keep the door; Gradio's further processes would serve files beside it."""
    return {"app_kwargs": {"middleware": middleware(password, port)}, "num_workers": 0}
