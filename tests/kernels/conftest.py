"""What all tests of kernels share."""

import pytest


@pytest.fixture(autouse=True)
def _restore(same_kernels_afterwards: None) -> None:
    """Whatever a test chooses is undone behind it."""
