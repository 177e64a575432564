"""A browser that trusts the server's authority keeps the phone page; one that does not says what is to be done."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gangpao.serve.app import running
from gangpao.serve.http import tls
from gangpao.serve.server import Server, Settings
from tests.serve.pages.browser import browser, need_parts

REGISTERED = "navigator.serviceWorker.getRegistration('/phone').then(r => Boolean(r))"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tls.Files:
    need_parts("chat", "phone")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tls.local([])


@pytest.fixture
def url(files: tls.Files, tiny_path: Path) -> Iterator[str]:
    settings = Settings({"tiny": tiny_path}, port=0, threads=1, tls=True, authority=files.authority)
    with running(Server(settings), cert=files) as found:
        yield found


def test_an_installed_authority_lets_the_browser_keep_the_page(url: str, files: tls.Files, tmp_path: Path) -> None:
    if shutil.which("certutil") is None:
        pytest.skip("no certutil is installed (Debian: libnss3-tools)")
    store = tmp_path / ".pki" / "nssdb"
    store.mkdir(parents=True)
    for command in (["-N", "--empty-password"], ["-A", "-n", "gangpao", "-t", "C,,", "-i", str(files.authority)]):
        subprocess.run(["certutil", "-d", f"sql:{store}", *command], check=True)
    with browser(home=tmp_path) as chrome:
        page = chrome.new_page()
        page.goto(f"{url}/phone")
        page.wait_for_selector("body[data-device]")
        page.evaluate("navigator.serviceWorker.ready.then(() => 0)")
        assert page.locator("a[href='/ca.crt']").count() == 0
        page.context.set_offline(True)
        page.reload()
        page.wait_for_selector("body[data-device]")


def test_without_it_the_page_works_and_offers_it(url: str) -> None:
    with browser() as chrome:
        page = chrome.new_context(locale="en-US", ignore_https_errors=True).new_page()
        page.goto(f"{url}/phone")
        page.wait_for_selector("text=Install the server's certificate")
        assert "does not trust the certificate" in page.inner_text(".device .note")
        assert page.evaluate(REGISTERED) is False
        assert (
            page.evaluate("fetch('/ca.crt').then(r => r.headers.get('content-type'))") == "application/x-x509-ca-cert"
        )
