"""Debian's chromium through playwright, and skips that say what is missing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gangpao.serve import parts


def chromium() -> str:
    """Path of a chromium of this system, or a skip."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium is installed (Debian: chromium)")
    return found


@contextmanager
def browser(*arguments: str) -> Iterator[Any]:
    """A headless browser; close it before anything else in this thread wants an event loop."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    with playwright.sync_playwright() as started:
        # Nobody may be in a sandbox inside a container; the pages are ours.
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox", *arguments])
        yield opened
        opened.close()


def need_parts(*pages: str) -> None:
    """Skip where the browser libraries are not in the cache; tests fetch nothing."""
    absent = parts.missing(pages)
    if absent:
        pytest.skip(f"{absent[0].package} is not in the cache: open the page once, or gangpao.serve.parts.fetch()")
