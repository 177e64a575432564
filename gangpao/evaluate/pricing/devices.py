"""The phones whose speed the MiniCPM README prints, by name, from a dated TOML beside this file."""

import difflib
import functools
from pathlib import Path

from pydantic import Field

from gangpao.config import Frozen, load_toml


class Device(Frozen):
    """One row of the table."""

    title: str
    os: str
    soc: str = Field(description="The chip, as printed.")
    ram_gb: str = Field(description="As printed, for example 8+3.")
    tok_s: float = Field(gt=0, description="Tokens of an answer a second.")


class Devices(Frozen):
    """The whole table: what ran, when, and who says so."""

    model: str
    date: str
    source: str
    devices: dict[str, Device]


@functools.cache
def load() -> Devices:
    """The table that ships with the package."""
    return load_toml(Path(__file__).with_name("devices.toml"), Devices)


def get(name: str) -> Device:
    """A row by its name. Raises ValueError with the names that there are."""
    known = load().devices
    if name not in known:
        near = difflib.get_close_matches(name.lower().replace(" ", "-"), known, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ValueError(f"--device {name!r:.60}: unknown. {hint}There are {', '.join(known)}")
    return known[name]
