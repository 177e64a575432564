"""A tiny model, and schedulers of it that end with the test."""

import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.scheduler import Scheduler
from tests.engine.tiny import write_tiny


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """Read it only; what a test replaces in it, monkeypatch puts back."""
    return Engine.load(write_tiny(tmp_path_factory.mktemp("m") / "tiny.gguf"), context=512, num_threads=1)


@pytest.fixture
def scheduler(engine):
    """scheduler(**options) makes one."""
    made = []

    def make(**options) -> Scheduler:
        made.append(Scheduler(engine, **options))
        return made[-1]

    yield make
    for one in made:
        one.close(finish=False)
