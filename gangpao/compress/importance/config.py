"""The text that a step looks at a model with, as its table in a TOML says it."""

from __future__ import annotations

from pydantic import Field

from gangpao.config import Frozen, PathText


class CalibrationConfig(Frozen):
    """Windows of text on which a step measures and fits."""

    root: PathText = Field(
        default="", description="Folder that names of files start from; empty: where the command is typed."
    )
    files: tuple[str, ...] = Field(
        default=(), description="Text files; none: Chinese, English and code that ship with gangpao."
    )
    windows: int = Field(default=32, ge=4, description="Windows that are looked at.")
    length: int = Field(default=512, ge=8, description="Tokens of a window.")
