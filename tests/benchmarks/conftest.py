"""Every test of the benchmark scripts loads them anew, with a cache of its own."""

import pytest

from tests import scripts


@pytest.fixture(autouse=True)
def fresh_scripts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    scripts.forget()
    yield
    scripts.forget()
