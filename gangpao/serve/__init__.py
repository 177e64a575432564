"""Faces of the engine: the terminal today."""
