"""What a stage of a line is: what it depends on, the commands that do it, what comes out, and what is worth telling of it.

A stage's commands are those that a person would type. `run` gives one after the other and is sent what each said on stdout; what it
returns is what later stages begin with. Products are known by content, so a stage that made the same thing again changes nothing
behind it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gangpao.atomic import new_file
from gangpao.config import to_toml
from gangpao.forge.config import ForgeConfig
from gangpao.forge.content import Hashes


@dataclass(frozen=True, slots=True)
class Command:
    """`gangpao` and these words. launch: words in front of it. codes: how it may end. makes: what it writes whole; where that is
    there, it is not run again."""

    words: tuple[str, ...]
    launch: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)
    makes: Path | None = None


@dataclass(frozen=True, slots=True)
class Product:
    """Something that came out: where it lies, and a hash of its content."""

    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class Made:
    """What came of a stage: products by kind (data, sandbox, plan, model, file), and facts for people. also: what it did that is no
    command of ours, as one would type it."""

    products: Mapping[str, Product] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage sees. out: the folder of the line; folder: the stage's own; here: products of the stages before it, by kind."""

    config: ForgeConfig
    name: str
    out: Path
    hashes: Hashes
    here: Mapping[str, Product]

    @property
    def folder(self) -> Path:
        return self.out / self.name

    def price(self) -> list[str]:
        """key=value with which a command counts yuan as the line does."""
        profile = self.config.cost_profile
        return [f"cost_profile={json.dumps(profile)}"] if profile else []

    def product(self, path: Path) -> Product:
        """A file or folder as a product."""
        return Product(str(path), self.hashes.of(path))

    def config_file(self, config: str | Mapping[str, Any], name: str = "") -> str:
        """A configuration as a file; one that stood inline is written to configs/NAME.toml. name: of the stage, if not this one."""
        if isinstance(config, str):
            return config
        path = self.out / "configs" / f"{name or self.name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as staging:
            staging.write_text(to_toml(dict(config)), encoding="utf-8")
        return str(path)


Run = Generator[Command, str, Made]


@dataclass(frozen=True, slots=True)
class Stage:
    """depends: plain data; another value means another result. shared: its folder outlives a change, because the command itself
    knows what in it is still right. always: the command is asked every time, and finds out itself that nothing changed. check:
    raises ValueError for what its command would refuse, before any stage is run."""

    depends: Callable[[Context, Any], Any]
    run: Callable[[Context, Any], Run]
    check: Callable[[Context, Any], None] = lambda context, stage: None
    shared: bool = False
    always: bool = False


def last_json(said: str) -> Any:
    """What a command with --json printed. Raises ValueError where it printed none."""
    lines = said.strip().splitlines()
    for text in (said, lines[-1] if lines else ""):
        try:
            return json.loads(text)
        except ValueError:
            continue
    raise ValueError(f"a command ended without its JSON; it said: {said[-200:]!r}")


def sets(texts: Iterable[str]) -> list[str]:
    """Overrides as words of a command."""
    return [word for text in texts for word in ("--set", text)]
