"""What tests of programs that models wrote need."""

import pytest


@pytest.fixture(scope="session")
def caged() -> None:
    """A machine on which the cage works; elsewhere a skip that gives the reason."""
    from gangpao.evaluate.graders.cage import parent

    try:
        parent.check()
    except parent.CageError as error:
        pytest.skip(str(error))
