"""Checked records: pydantic where it is installed, else the part of it that we use, in plain Python.

pydantic's compiled half has no wheel for Android, and building it takes a Rust compiler and many minutes on a phone. So what runs
on a device takes BaseModel, Field and the rest from here, and nothing of it knows which of the two is behind it. Names, values,
kinds of errors, their order, places and words are pydantic's (tests/phone compares them); what no model of ours uses is not there,
and a type that is not known stops with TypeError when its model is first used: nothing is checked less than it says.

    fields.py   what stands in a model: Field, validators, Tag; ValidationError
    checks.py   types -> checks
    models.py   BaseModel

What the plain part gives up: speed (a chat's request takes a millisecond), JSON schemas.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import (
        AfterValidator,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Discriminator,
        FailFast,
        Field,
        PlainValidator,
        Tag,
        ValidationError,
        model_validator,
    )
    from pydantic_core import ErrorDetails
else:
    try:
        from pydantic import (
            AfterValidator,
            BaseModel,
            BeforeValidator,
            ConfigDict,
            Discriminator,
            FailFast,
            Field,
            PlainValidator,
            Tag,
            ValidationError,
            model_validator,
        )
        from pydantic_core import ErrorDetails
    except ImportError:  # not there, or for another Python
        from gangpao.validation.fields import (
            AfterValidator,
            BeforeValidator,
            ConfigDict,
            Discriminator,
            FailFast,
            Field,
            PlainValidator,
            Tag,
            ValidationError,
            model_validator,
        )
        from gangpao.validation.models import BaseModel

        ErrorDetails = dict

__all__ = [
    "AfterValidator",
    "BaseModel",
    "BeforeValidator",
    "ConfigDict",
    "Discriminator",
    "ErrorDetails",
    "FailFast",
    "Field",
    "PlainValidator",
    "Tag",
    "ValidationError",
    "model_validator",
]
