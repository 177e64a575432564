"""gangpao as it is on a phone: in a process in which nothing that is Rust or wraps a C library can be imported."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
from packaging.requirements import Requirement

from tests.child import ROOT, environment

# What pyproject.toml does not ask for on Android. Of these typer needs pydantic from version 0.29 on, and an older one is asked for
# there: here only typer may have it.
LEFT_OUT = ("tokenizers", "pydantic", "pydantic_core", "llguidance", "PIL", "segno")
WITHOUT = f"""
import builtins, sys
def found(name, globals=None, locals=None, fromlist=(), level=0, importing=builtins.__import__):
    if level == 0 and name.partition(".")[0] in {LEFT_OUT!r}:
        who = (globals or {{}}).get("__name__", "").partition(".")[0]
        if who in ("gangpao", "__main__", ""):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return importing(name, globals, locals, fromlist, level)
builtins.__import__ = found
"""
COMMAND = "from gangpao.cli import main\nsys.exit(main(sys.argv[1:]))\n"


def python(code: str, *args: str, small: bool = True, stdin: str = "") -> str:
    """What a program prints, without those packages or (small=False) with all."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", (WITHOUT if small else "import sys\n") + code, *args],
        capture_output=True, text=True, input=stdin, env=environment(NO_COLOR="1"), timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(*args: str, small: bool = True, stdin: str = "") -> str:
    """What a command prints."""
    return python(COMMAND, *args, small=small, stdin=stdin)


class Serving:
    """`gangpao serve` in such a process, to be used as a context manager."""

    def __init__(self, model: Path, *, small: bool = True) -> None:
        words = ["serve", "-m", str(model), "--port", "0", "--threads", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", (WITHOUT if small else "import sys\n") + COMMAND, *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        assert self.process.stdout is not None
        found = re.search(r"(http://\S+?:\d+) ", first := self.process.stdout.readline())
        assert found, first + self.process.communicate()[1]
        self.url = found[1]
        self.process.stdout.readline()

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.terminate()
        self.process.communicate(timeout=20)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and what came."""
        answer = httpx2.post(self.url + path, content=json.dumps(body), timeout=60, trust_env=False)
        return answer.status_code, answer.json()

    def get(self, path: str) -> int:
        """The status."""
        return httpx2.get(self.url + path, timeout=60, trust_env=False).status_code


def asked_for(system: str) -> list[str]:
    """What pyproject.toml asks for on a system (sys.platform), without markers."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    parsed = [Requirement(line) for line in lines]
    return [
        f"{one.name}{one.specifier}"
        for one in parsed
        if one.marker is None or one.marker.evaluate({"sys_platform": system})
    ]


def names_asked_for(system: str) -> set[str]:
    """The names alone."""
    return {Requirement(line).name for line in asked_for(system)}
