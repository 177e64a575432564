"""The file that our engine runs of a model."""

from __future__ import annotations

from pathlib import Path


def runnable(source: Path) -> Path:
    """The .gguf file that the engine runs: the source itself, or what a folder is exported to in the cache (Q8_0)."""
    if source.is_file():
        return source
    from gangpao.deploy.cached import cached_export

    return cached_export(source)
