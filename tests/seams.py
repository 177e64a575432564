"""Functions of the standard library replaced for one module of ours only.

Servers and workers of other tests live in threads of the same process: a clock or a sleep that is replaced for all of it stops
them, and the tests that come next fail for want of an answer.
"""

import types
from typing import Any

import pytest


def replace(monkeypatch: pytest.MonkeyPatch, module: types.ModuleType, name: str, **functions: Any) -> None:
    """module.name, an imported module, becomes a copy for `module` alone, with those functions in place of its own."""
    whole = getattr(module, name)
    assert isinstance(whole, types.ModuleType | types.SimpleNamespace), name
    monkeypatch.setattr(module, name, types.SimpleNamespace(**{**vars(whole), **functions}))
