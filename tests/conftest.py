"""What several test files share: a real browser, and visits that note every request and every error of a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Response, expect, sync_playwright

from tests.server import Server, running_server
from training.paths import Folders

# Set before Gradio is imported: a test must not report to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    " --no-first-run"
).split()


@dataclass
class Visit:
    """A page in a browser of its own, with everything it asked for and complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("response", self._note_failure)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _note_failure(self, response: Response) -> None:
        """The console says only that something failed on the server: here also what was asked."""
        if response.status >= 500:
            self.errors.append(f"{response.status} from {response.url} for {response.request.post_data}")

    @property
    def outside(self) -> list[str]:
        """The requests that left this machine; `data:` and `blob:` addresses leave nothing."""
        addresses = [url for url in self.requests if urlsplit(url).scheme not in ("data", "blob")]
        return [url for url in addresses if urlsplit(url).hostname != "127.0.0.1"]

    def assert_clean(self) -> None:
        """Nothing was asked of another host and nothing went wrong."""
        assert self.requests, "the page was never opened"
        assert self.outside == []
        assert _without_farewells(self.errors) == []


def _without_farewells(errors: list[str]) -> list[str]:
    """The errors less those of leaving a page: Gradio breaks off its own requests then and complains of it."""
    farewell = [error for error in errors if error.startswith("AbortError: signal is aborted without reason")]
    if farewell:
        farewell += [error for error in errors if error == "Unexpected error Connection errored out. "]
    return [error for error in errors if error not in farewell]


def _executable() -> str | None:
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, _NAMES)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window. A machine without one skips the test, but on CI that is a failure."""
    executable = _executable()
    if executable is None:
        reason = f"no browser: none of {', '.join(_NAMES)} is installed and CHROMIUM_PATH is not set"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """A function that opens an address: `visit(url, viewport={"width": 800, "height": 900})`."""
    contexts = []

    def open_page(url: str, **options: Any) -> Visit:
        context = browser.new_context(**options)
        contexts.append(context)
        result = Visit(context.new_page())
        result.page.goto(url)
        return result

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page over folders of the test file's own, with the samples that ship."""
    root = tmp_path_factory.mktemp("graft")
    folders = Folders(datasets=root / "datasets", loras=root / "loras")
    folders.make()
    for name in ("car_warranty.json", "lighthouse_keeper.txt"):
        shutil.copy(Folders.datasets / name, folders.datasets / name)
    with running_server(folders, root / "server.log") as server:
        yield server


@pytest.fixture
def page(server: Server, visit: Callable[..., Visit]) -> Iterator[Page]:
    """A first visit; afterwards nothing may have been asked of another host, and no error may stand in the console."""
    seen = visit(server.url, viewport={"width": 1440, "height": 1000})
    expect(seen.page.locator("#start")).to_be_enabled(timeout=60_000)
    yield seen.page
    seen.assert_clean()
