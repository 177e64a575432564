"""Import a library that not every machine has, or say which one to install.

The idea: the lab's formats and plots need packages that the device half must not depend on; each is imported where it is
used, and its absence is a user's error with a way out, not a traceback. It gives up static types of those libraries.
"""

import importlib
from typing import Any


def need(module: str, purpose: str) -> Any:
    """The imported module. Raises ValueError naming the package to install; `purpose` starts the sentence."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ValueError(f"{purpose} needs {package}, which is not installed: pip install {package}") from error
