"""Somebody in front of the chat page, in a real browser."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.pages.browser import Reader, browser, context_of
from tests.serve.pages.web_fake import Endpoint, serving


@pytest.fixture(scope="module")
def faked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with serving(tmp_path_factory.mktemp("pages")) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with browser("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as opened:
        yield opened


@pytest.fixture
def endpoint(faked: Endpoint) -> Endpoint:
    faked.reset()
    return faked


@pytest.fixture(scope="module")
def profile(chrome: Any) -> Any:
    return context_of(chrome)


@pytest.fixture
def visitor(profile: Any, endpoint: Endpoint) -> Iterator[Reader]:
    """Somebody who has not opened the page yet, in a browser that has forgotten everything."""
    made = Reader(profile, endpoint.url)
    yield made
    clear = {"origin": endpoint.url, "storageTypes": "all"}
    profile.new_cdp_session(made.page).send("Storage.clearDataForOrigin", clear)
    made.page.close()
    assert made.complaints == []


@pytest.fixture
def reader(visitor: Reader) -> Reader:
    return visitor.open()
