"""Many requests at once: all results, the first error, nothing waited for."""

import threading
import time

import pytest

from gangpao.evaluate.models.many import each


def test_every_result_comes_once():
    together = threading.Barrier(3)

    def work(n):
        together.wait(5)  # three at once, or this fails
        return n * n

    assert sorted(each(work, range(9), 3)) == [(n, n * n) for n in range(9)]
    assert list(each(work, [], 3)) == []


def test_an_error_ends_it_and_nothing_is_waited_for():
    slow, begun = threading.Event(), []

    def work(n):
        begun.append(n)
        if n == 0:
            raise ValueError("no")
        slow.wait(20)

    start = time.monotonic()
    with pytest.raises(ValueError, match="no"):
        list(each(work, range(50), 2))
    slow.set()
    assert time.monotonic() - start < 10
    time.sleep(0.05)
    assert len(begun) <= 3
