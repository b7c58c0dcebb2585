"""A real browser for pages that are opened from disk: Debian's Chromium, or the one that CHROMIUM
names."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, sync_playwright

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser; where there is none, tests are skipped, but for BROWSER_NEEDED, which CI sets."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        reason = "no Chromium here: install it, or name it in CHROMIUM"
        if os.environ.get("BROWSER_NEEDED"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser, path: Path, fragment: str = "", width: int = 1200, height: int = 900
) -> Iterator[Page]:
    """A page from disk; afterwards it must have said nothing on the console, asked no host for
    anything, and missed no file."""
    wrong: list[str] = []

    def watch(request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            wrong.append(f"asks for {request.url}")

    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(15_000)
    page.on("request", watch)
    page.on("requestfailed", lambda request: wrong.append(f"misses {request.url}"))
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(path.resolve().as_uri() + (f"#{fragment}" if fragment else ""))
    yield page
    page.close()
    assert not wrong, "; ".join(wrong)


def barriers(page: Page) -> list[str]:
    """Violations of accessibility rules that axe-core finds."""
    # Without a preload, which would ask for the style sheets once more, as no page from disk may.
    found = Axe().run(page, options={"preload": False}).response["violations"]
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:120]}" for one in found]
