"""The phone page in a real browser: the model is fetched in ranges, kept, and answers with the network off."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gangpao.serve.app import running
from gangpao.serve.server import Server, Settings
from tests.serve.pages.browser import browser, need_parts

MODEL = "smollm2-135m"
QUESTION = "What is the capital of France?"
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def url(model_path: Callable[[str], Path]) -> Iterator[str]:
    need_parts("chat", "phone")
    with running(Server(Settings({MODEL: model_path(MODEL)}, port=0, context=512))) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(chrome: Any, url: str) -> Iterator[Any]:
    context = chrome.new_context(locale="en-US", viewport={"width": 390, "height": 780})
    errors: list[str] = []
    context.on("weberror", lambda error: errors.append(str(error.error)))
    yield visit(context, url)
    context.close()
    assert errors == []


def ask(page: Any, text: str) -> str:
    """The answer to a question, complete."""
    page.fill("textarea", text)
    page.click("button[aria-label=Send]")
    page.wait_for_selector(".stats")
    answers: list[str] = page.locator(".assistant .body").all_inner_texts()
    return answers[-1]


SETTINGS = {"params": {"temperature": 0, "max_tokens": 8}, "device": {"threads": 1}}


def visit(context: Any, url: str) -> Any:
    """The page, with settings for an answer that is short and always the same. One thread: on a busy machine two of
    llama.cpp's, which wait by spinning, are many times slower than one."""
    context.set_default_timeout(WAIT_MS)
    saved = f"localStorage['gangpao.settings'] ??= {json.dumps(json.dumps(SETTINGS))}"
    context.add_init_script(f"if (location.protocol === 'http:') {saved}")
    page = context.new_page()
    page.goto(f"{url}/phone")
    page.wait_for_selector("body[data-device]")
    return page


@pytest.mark.slow
def test_the_model_is_loaded_once_and_answers_without_a_network(page: Any, reference: Any) -> None:
    fetched: list[str] = []
    page.on("request", lambda r: "/phone/models/" in r.url and fetched.append(r.headers.get("range", "")))
    assert page.evaluate("crossOriginIsolated")
    assert page.inner_text(".card h2") == MODEL
    assert page.inner_text(".card .primary") == "Download (98.4 MB)"
    assert page.get_attribute("textarea", "placeholder") == "First get the model, above"
    page.click(".card .primary")
    page.wait_for_selector(".device.ready")
    assert len(fetched) == 12  # of 8 MiB each
    assert all(r.startswith("bytes=") for r in fetched)
    page.evaluate("navigator.serviceWorker.ready.then(() => 0)")
    page.context.set_offline(True)
    page.reload()
    page.wait_for_selector(".device.ready")
    assert "also without a network" in page.inner_text(".device")
    # The same numbers in another order: the first tokens agree with our engine's, later ones need not.
    assert ask(page, QUESTION)[:9] == reference.greedy([{"role": "user", "content": QUESTION}], 8)[:9]
    assert "tokens/s" in page.inner_text(".stats")
    assert len(fetched) == 12
    page.context.set_offline(False)


def test_a_paused_download_goes_on_and_the_model_can_be_deleted(page: Any) -> None:
    page.click(".card .primary")
    page.wait_for_function("() => Number(document.querySelector('progress')?.value) > 2e7")
    page.click("text=Pause")
    page.wait_for_selector("text=Delete the model")
    left = page.inner_text(".card .primary")
    assert left.startswith("Download (")
    assert left != "Download (98.4 MB)"
    page.reload()
    page.wait_for_selector("body[data-device]")
    assert page.inner_text(".card .primary") == left
    page.click("text=Delete the model")
    page.click("dialog button.danger")
    page.wait_for_selector("text=Download (98.4 MB)")
    assert page.evaluate("caches.open('gangpao-models').then(c => c.keys()).then(k => k.length)") == 0


@pytest.mark.slow
@pytest.mark.parametrize("build", ["pieces", "compat"])
def test_split_models_and_the_build_for_safari_answer_the_same(
    chrome: Any, model_path: Callable[[str], Path], reference: Any, build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gangpao.serve.pages import phone

    need_parts("chat", "phone")
    if build == "pieces":
        monkeypatch.setattr(phone, "MAX_PIECE", 40_000_000)
    context = chrome.new_context(locale="zh-CN")
    if build == "compat":
        context.add_init_script("delete WebAssembly.Suspending; delete WebAssembly.promising;")
    with running(Server(Settings({MODEL: model_path(MODEL)}, port=0, context=512))) as url:
        page = visit(context, url)
        page.click(".card .primary")
        page.wait_for_selector(".device.ready")
        page.fill("textarea", QUESTION)
        page.click("button[aria-label=发送]")
        page.wait_for_selector(".stats")
        expected = reference.greedy([{"role": "user", "content": QUESTION}], 8)
        assert page.inner_text(".assistant .body")[:9] == expected[:9]
        context.close()
