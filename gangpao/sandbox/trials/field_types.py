"""Kinds of values of a sandbox's configuration, and the base that its rules of transfer start from.

A list without values, or with a value twice, is refused. A seed twice is the same trial twice, and would pass for a noise of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field

from gangpao.config import Frozen


def _once(values: Sequence[Any]) -> Sequence[Any]:
    again = [value for i, value in enumerate(values) if value in values[:i]]
    if again:
        raise ValueError(f"{again[0]} is there twice; the same again tells nothing new: give every value once")
    return values


def filled(values: Sequence[Any]) -> Sequence[Any]:
    """The values. Raises ValueError where there are none."""
    if not values:
        raise ValueError("it is empty; give one value or more, or leave it out for the usual ones")
    return values


_T = TypeVar("_T")
Once = Annotated[tuple[_T, ...], AfterValidator(_once)]  # may be empty, where that means something
Some = Annotated[Once[_T], AfterValidator(filled)]

Tokens = Annotated[int, Field(ge=2)]
Width = Annotated[int, Field(ge=8)]
Layers = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Rates = tuple[float, ...]


class Table(Frozen):
    """Base of all tables: no number is infinite."""

    model_config = ConfigDict(allow_inf_nan=False)


class Base(Table):
    """Where a transfer rule's factors are all one."""

    width: Width = 256
    layers: Layers = 4
    batch_tokens: Tokens = 4096
