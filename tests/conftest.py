"""What all tests share."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C is heard and cores are shared, however the tests were started."""
    hear_ctrl_c()
    keep_to_own_cores()


def hear_ctrl_c() -> None:
    """A shell starts what runs in its background without SIGINT, and whatever that starts would not hear it either."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def keep_to_own_cores() -> None:
    """Beside others, a process of tests keeps to its share of the cores, and so does all that it starts: two with two threads
    each on two cores wait for each other most of the time."""
    name, number = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if name and number and hasattr(os, "sched_setaffinity"):
        share = sorted(os.sched_getaffinity(0))[int(name.removeprefix("gw")) :: int(number)]
        if share:
            os.sched_setaffinity(0, share)


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


@pytest.fixture
def same_kernels_afterwards() -> Iterator[None]:
    """The instruction set and the number of threads are those from before when a test has ended."""
    from gangpao import kernels

    isa, threads = kernels.isa_name(), kernels.num_threads()
    yield
    kernels.set_isa(isa)
    kernels.set_num_threads(threads)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty store on a machine without a network."""
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("GANGPAO_OFFLINE", "1")
    monkeypatch.delenv("GANGPAO_SOURCES", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
