"""gangpao builds, studies, tunes, shrinks, runs and prices small language models."""

__version__ = "0.1.0"
