"""The tiny model of the engine's tests, computed with one thread, and texts for it (its ids are their bytes)."""

import pytest

from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.perplexity.scorers import open_scorer
from tests.engine.tiny import write_tiny

OPTIONS = EngineOptions(context=512, threads=1)
RIVER = (
    "The river rises in the hills, crosses the plain and reaches the sea near the old harbour. "
    "Nobody had counted the boats."
)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("m") / "tiny.gguf")


@pytest.fixture
def scorer(model_file):
    """One of one's own: tests change its tokenizer."""
    return open_scorer(str(model_file), OPTIONS)


@pytest.fixture
def other(tmp_path):
    """A model of the same vocabulary and other weights."""
    return open_scorer(str(write_tiny(tmp_path / "other.gguf", seed=1)), OPTIONS)


@pytest.fixture
def river(tmp_path):
    path = tmp_path / "river.txt"
    path.write_text(RIVER, encoding="utf-8")
    return path
