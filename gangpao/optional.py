"""Packages that most of the program does without: some have no wheel for phones, one for pictures is not needed for text, and those
of the lab's formats and plots are not on a device.

with needed("llguidance", "an answer in a given form"):
    import llguidance

parquet = need("pyarrow.parquet", "reading a table")  # where a library has no types
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Module -> what pip calls it, and Termux's own package of it (empty: there is none).
PACKAGES = {
    "PIL": ("pillow", "python-pillow"),
    "jinja2": ("jinja2", ""),
    "llguidance": ("llguidance", ""),
    "pydantic": ("pydantic", ""),
    "segno": ("segno", ""),
    "tokenizers": ("tokenizers", ""),
}


class MissingPackage(ValueError):
    """A package is needed that is not installed; says what for and how to get it."""


@contextmanager
def needed(module: str, purpose: str) -> Iterator[None]:
    """Around an import. Raises MissingPackage where the module is not there."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("", module):
            raise
        raise MissingPackage(missing(module, purpose)) from error


def need(module: str, purpose: str) -> Any:
    """The imported module. Raises MissingPackage where it cannot be imported, itself or what it needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackage(missing(module.partition(".")[0], purpose)) from error


def missing(module: str, purpose: str) -> str:
    """What to say where a module is not there."""
    package, termux = PACKAGES.get(module, (module, ""))
    ways = f"pkg install {termux}" if termux and sys.platform == "android" else f"pip install {package}"
    return f"{purpose} needs {package}, which is not installed: {ways}"


def there(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        __import__(module)
    except ImportError:
        return False
    return True
