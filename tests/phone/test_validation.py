"""Records checked without pydantic are those that pydantic checks: the same values, the same errors in the same order."""

import datetime
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest

from gangpao.validation import fields, models
from tests.phone.small import python

BODIES = (Path(__file__).parent / "bodies.py").read_text(encoding="utf-8")
_PRICES = 'as_of = 2026-01-01\ndefault = "a"\n[profiles.a]\ntitle = "t"\nsource = "s"\n'
_ENTRY = '[models.a]\ntitle="t"\nfamily="f"\nfile="a.gguf"\n'
TOML = [
    "", "x = 1", "defaults = 3\n[models]", 'defaults = ["a"]\n[models]', "[models]", "[models.A]", _ENTRY, _ENTRY + "bytes = 1.5",
    _ENTRY + "bytes = -1", _ENTRY + 'bytes = "1"', _ENTRY + "bytes = true", _ENTRY + "tested = 1", _ENTRY + 'tested = "no"',
    _ENTRY + 'tested = "maybe"', _ENTRY + 'format = "gguff"', _ENTRY + 'format = "safetensors"', _ENTRY + 'languages = "en"',
    _ENTRY + 'languages = ["en", 1]', _ENTRY + "titel = 1", _ENTRY + 'sha256 = "abc"',
    _ENTRY + 'sampling = {temperature = 1, top_q = 2}',
    _ENTRY + 'sampling = {temperature = "a"}', _ENTRY + 'sources = [{kind = "file", path = "x"}]',
    _ENTRY + 'sources = [{kind = "file", path = ""}]', _ENTRY + 'sources = [{kind = "fil", path = "x"}]',
    _ENTRY + 'sources = [{path = "x"}]', _ENTRY + "sources = [3]",
    _ENTRY + 'sources = [{kind = "pypi", packages = [], version = "1"}]',
    _ENTRY + 'sources = [{kind = "huggingface", repo = "a"}]', _ENTRY + 'sources = [{kind = "huggingface", repo = "a/b"}]',
    'as_of = 2026-01-01\ndefault = "a"\n[profiles.a]\ntitle = ""\nsource = "s"',
    'as_of = "2026-01-01"\ndefault = "a"\n[profiles.a]\ntitle = "t"\nsource = "s"\nprice_yuan = inf',
    _PRICES + "price_yuan = -1\nlifetime_years = 0\nutilisation = 2",
    'as_of = 2026-01-01\ndefault = "a"\n[profiles.a]\ntitle = "t"\nsource = "s"\nprice_yuan = "3.5"\npower_watts = "x"',
]  # fmt: skip


def test_requests_and_files_are_read_as_with_pydantic(tmp_path) -> None:
    args = (str(tmp_path / "x.toml"), json.dumps(TOML))
    small, whole = (json.loads(python(BODIES, *args, small=small)) for small in (True, False))
    assert len(small) == len(whole) > 3000
    different = [(a, b) for a, b in zip(small, whole, strict=True) if a != b]
    assert different[:3] == []


def make(there: Any) -> tuple[type, type]:
    """Two models with everything that ours use, of pydantic's parts or of the plain ones."""

    class Inner(there.BaseModel):
        model_config = there.ConfigDict(frozen=True, extra="forbid")
        kind: Literal["a", "b"] = "a"
        size: int = there.Field(3, ge=1, le=9)

    class Outer(there.BaseModel):
        model_config = there.ConfigDict(extra="forbid")
        name: Annotated[str, there.AfterValidator(str.upper)]
        inner: Inner = Inner()
        day: datetime.date | None = None
        table: dict[Literal["x", "y"], int | float] = there.Field({})
        pair: tuple[int, ...] = ()
        share: float = there.Field(0.5, gt=0, lt=1)
        both: bool | str | None = None

        @there.model_validator(mode="after")
        def _fits(self) -> "Outer":
            if self.name == "NO":
                raise ValueError("no is no name")
            return self

    return Inner, Outer


class Plain:
    """The plain parts under pydantic's names."""

    BaseModel, ConfigDict, Field = models.BaseModel, fields.ConfigDict, fields.Field
    AfterValidator, model_validator = fields.AfterValidator, staticmethod(fields.model_validator)


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x"}, {}, {"name": 1}, {"name": "no"}, {"name": "x", "extra": 1, "inner": {"kind": "c", "size": 10, "more": 1}},
        {"name": "x", "inner": 3}, {"name": "x", "day": "2026-02-28"}, {"name": "x", "table": {"x": 1, "y": 0.5}},
        {"name": "x", "table": {"z": 1, "x": "q"}}, {"name": "x", "table": 3}, {"name": "x", "pair": [1, 2.0, "3"]},
        {"name": "x", "pair": [1, 2.5, "q", None]}, {"name": "x", "share": 1}, {"name": "x", "share": 0},
        {"name": "x", "share": "a"},
        {"name": "x", "both": "y"}, {"name": "x", "both": True}, {"name": "x", "both": 3.5},
    ],
)  # fmt: skip
def test_values_and_errors_are_pydantics(body: dict[str, Any]) -> None:
    said = []
    for there in (pydantic, Plain):
        _, outer = make(there)
        try:
            said.append(outer.model_validate(body).model_dump())
        except (pydantic.ValidationError, fields.ValidationError) as error:
            told = error.errors(include_url=False) if there is pydantic else error.errors()
            said.append([(e["type"], e["loc"], e["msg"], e["input"]) for e in told])
    assert said[0] == said[1]


def test_a_frozen_record_is_equal_hashable_and_closed() -> None:
    inner, outer = make(Plain)
    assert inner() == inner(size=3) != inner(size=4)
    assert hash(inner()) == hash(inner(size=3))
    with pytest.raises(fields.ValidationError, match="frozen"):
        inner().size = 4
    made = outer(name="x")
    made.share = 0.1
    assert made.model_copy(update={"name": "Z"}).model_dump(include={"name", "share"}) == {"name": "Z", "share": 0.1}
    assert made.model_fields_set == {"name"}
    with pytest.raises(TypeError, match="unhashable"):
        hash(made)


def test_a_type_that_is_not_known_stops() -> None:
    class Strange(models.BaseModel):
        what: set[int]

    with pytest.raises(TypeError, match="not a type that models are checked for"):
        Strange(what={1})
