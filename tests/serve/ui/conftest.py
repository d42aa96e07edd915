"""The page of a running server, in a browser."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, sync_playwright

from browsing import Opened
from sfumato.artifact import find_model, models_folder
from sfumato.serve.ui.run import Settings, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REMEDY = "no Chromium; on Debian: apt-get install chromium"
OPTIONS = ("no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-sync")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a browser where there is none, but never in CI."""
    if CHROMIUM is None and not os.environ.get("CI"):
        for item in items:
            if "browser" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=REMEDY))


@pytest.fixture(scope="module")
def own_model() -> Iterator[Path]:
    """A model with a name of its own, `mine`, which may be removed."""
    folder = models_folder() / "mine"
    shutil.copytree(find_model("mini"), folder)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page keeps what it makes."""
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def address(own_model: Path, pictures: Path) -> Iterator[str]:
    with serving(Settings(output=pictures)) as (_, address):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, REMEDY
    with sync_playwright() as playwright:
        arguments = [f"--{option}" for option in OPTIONS]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Callable[..., Opened]]:
    """Open the page as another person would: `open_page(width, height)`."""
    contexts = []

    def open_one(width: int = 1280, height: int = 900) -> Opened:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        opened = Opened(contexts[-1].new_page())
        home = urlsplit(address).netloc

        def note(url: str) -> None:
            parts = urlsplit(url)
            if parts.scheme not in ("data", "blob") and parts.netloc != home:
                opened.elsewhere.append(url)

        opened.page.on("request", lambda request: note(request.url))
        opened.page.on("websocket", lambda socket: note(socket.url))
        opened.page.on("pageerror", lambda error: opened.wrong.append(str(error)))
        opened.page.on(
            "console", lambda said: opened.wrong.append(said.text) if said.type == "error" else None
        )
        opened.page.goto(address)
        opened.ready()
        return opened

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture
def opened(open_page: Callable[..., Opened]) -> Opened:
    return open_page()
