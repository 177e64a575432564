"""Processes of their own for tests: they meet the installed gangpao, as users do, and not the folder beside the tests.

PYTHONPATH or a current folder at the front of sys.path would shadow what is installed, so neither is used.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONSAFEPATH": "1", **extra}
