"""Debian's chromium through playwright, and skips that say what is missing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gangpao.serve.pages import libraries

WAIT_MS = 10_000
TEXT_FILES = ".composer input[accept*='.txt']"  # where text files are picked


def chromium() -> str:
    """Path of a chromium of this system, or a skip."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium is installed (Debian: chromium)")
    return found


@contextmanager
def browser(*arguments: str, home: Path | None = None) -> Iterator[Any]:
    """A headless browser; close it before anything else in this thread wants an event loop. home: whose certificates it trusts."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    with playwright.sync_playwright() as started:
        # Nobody may be in a sandbox inside a container; the pages are ours.
        env: dict[str, str | float | bool] = {**os.environ, **({"HOME": str(home)} if home else {})}
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox", *arguments], env=env)
        yield opened
        opened.close()


def need_parts(*pages: str) -> None:
    """Skip where the browser libraries are not in the cache; tests fetch nothing."""
    absent = libraries.missing(pages)
    if absent:
        pytest.skip(
            f"{absent[0].package} is not in the cache: open the page once, or gangpao.serve.pages.libraries.fetch()"
        )


def context_of(chrome: Any, **options: Any) -> Any:
    """A browser profile of its own."""
    made = chrome.new_context(**{"locale": "en-US", "viewport": {"width": 1100, "height": 760}, **options})
    made.set_default_timeout(WAIT_MS)
    return made


class Reader:
    """Somebody at the page. Everything the page complains about is an error of the test."""

    def __init__(self, context: Any, url: str) -> None:
        self.context = context
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.url = url

    def open(self) -> "Reader":
        self.page.goto(self.url)
        self.page.wait_for_selector("body[data-ready]")
        return self

    def ask(self, text: str) -> "Reader":
        self.page.fill("textarea", text)
        self.page.press("textarea", "Enter")
        return self

    def answered(self, count: int = 1) -> list[str]:
        """Texts of the answers that are shown, when there are so many and none is being written."""
        self.page.wait_for_function(
            "n => document.querySelectorAll('.assistant .actions').length === n && !document.querySelector('.running')",
            arg=count,
        )
        return [text.strip() for text in self.page.locator(".assistant .body").all_inner_texts()]

    def shows(self, question: str) -> None:
        """Wait until the conversation that begins with this question is shown."""
        self.page.wait_for_function("q => document.querySelector('.user .body')?.textContent === q", arg=question)

    def questions(self) -> list[str]:
        return [text.strip() for text in self.page.locator(".user .body").all_inner_texts()]
