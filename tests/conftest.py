"""What all tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_path() -> Callable[[str], Path]:
    """model_path(name): the file of a catalog model in the user's cache, or a skip that names it. Nothing is pulled."""
    from gangpao import catalog

    here = catalog.installed()  # once and early: tests may point the store elsewhere

    def find(name: str) -> Path:
        catalog.entry(name)
        if name not in here:
            pytest.skip(f"{name} is not in the cache: gangpao pull {name}")
        return here[name]

    return find
