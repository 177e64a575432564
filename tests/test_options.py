"""A record of options as a command line: parsed values arrive in it, and what its units are there."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.main import get_command

from gangpao.options import Fields, command_of, flag_of, option


@dataclass(frozen=True, kw_only=True)
class Base:
    kind: Literal["a", "b"] = option("a", "Which.")
    hidden: int = 3


@dataclass(frozen=True, kw_only=True)
class Record(Base):
    count: int = option(2, "How many.", 1, 9)
    names: tuple[str, ...] = option((), "Names; repeatable.", flag="--name")
    memory: int | None = option(None, "GB.", 0.1, typed=float, read=lambda gb: int(gb * 1e9))
    heat: float = option(0.7, "Heat.", 0.0, 5.0, unset="the model's own")

    def __post_init__(self) -> None:
        if self.count == 7:
            raise ValueError("count: 7 is taken")


SEEN: dict[str, Any] = {}


@command_of(after={"count": "plain"})
def command(
    ctx: typer.Context,
    word: Annotated[str, typer.Argument(help="A word.")] = "w",
    *,
    record: Record,
    plain: Annotated[bool, typer.Option("--plain", help="Plain.")] = False,
) -> None:
    """Do it."""
    SEEN.update(record=record, word=word, plain=plain, context=ctx.command_path)


@command_of()
def part(values: Annotated[dict[str, Any], Fields(Record, ("heat", "count"))]) -> None:
    """Do a part."""
    SEEN.update(values=values)


def run(function: Any, *args: str) -> dict[str, Any]:
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command()(function)
    SEEN.clear()
    get_command(app).main(list(args), standalone_mode=False)
    return SEEN


def test_values_arrive_in_the_record() -> None:
    assert run(command)["record"] == Record()
    found = run(command, "x", "--kind", "b", "--name", "p", "--name", "q", "--memory", "1.5", "--count", "3", "--plain")
    assert found["record"] == Record(kind="b", names=("p", "q"), memory=1_500_000_000, count=3)
    assert (found["word"], found["plain"]) == ("x", True)


def test_a_mapping_has_what_was_given() -> None:
    assert run(part)["values"] == {"count": 2}
    assert run(part, "--heat", "0.1")["values"] == {"heat": 0.1, "count": 2}


def test_help_has_the_records_texts_bounds_and_order() -> None:
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command()(command)
    text = get_command(app).get_help(typer.Context(get_command(app)))
    assert text.index("--kind") < text.index("--name") < text.index("--plain") < text.index("--count")
    assert "1<=x<=9" in text
    assert "hidden" not in text
    assert "default: (the model's own)" in " ".join(text.split())
    assert [flag_of(Record, name) for name in ("names", "memory")] == ["--name", "--memory"]


@pytest.mark.parametrize(("args", "says"), [(["--count", "10"], "9"), (["--kind", "c"], "a")])
def test_bounds_are_checked(args: list[str], says: str) -> None:
    with pytest.raises(typer.BadParameter.__bases__[0], match=says):
        run(command, *args)


def test_what_the_record_refuses_is_an_error() -> None:
    with pytest.raises(ValueError, match="7 is taken"):
        run(command, "--count", "7")
