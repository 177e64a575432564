"""One thread for torch: products of these sizes are over before a second thread is awake."""

from tests.tune.base.conftest import one_thread

__all__ = ["one_thread"]
