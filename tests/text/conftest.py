"""What the tests of text share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared():
    """The real MiniCPM tokenizers: $GANGPAO_SHARED/tokenizers, or shared/tokenizers beside the repository."""
    root = os.environ.get("GANGPAO_SHARED")
    folder = (Path(root) if root else Path(__file__).parents[3] / "shared") / "tokenizers"
    if not folder.is_dir():
        pytest.skip(f"no real tokenizers in {folder.parent}; set GANGPAO_SHARED to the folder that holds tokenizers/")
    return folder
