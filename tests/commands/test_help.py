"""`--help` of the commands that have many options is public: texts, bounds, defaults and order, held in tests/commands/help.

After a change that is meant: GANGPAO_WRITE_HELP=1 pytest tests/commands/test_help.py, and look at the difference.
"""

import os
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from gangpao import cli

HELP = Path(__file__).with_name("help")


def shown(name: str) -> str:
    group = get_command(cli.app)
    command = group.get_command(typer.Context(group), name)
    context = typer.Context(command, info_name=f"gangpao {name}", terminal_width=120, max_content_width=120)
    return command.get_help(context) + "\n"


@pytest.mark.parametrize("name", ["run", "chat", "serve", "bench", "cost"])
def test_help_is_as_it_was(name: str) -> None:
    path = HELP / f"{name}.txt"
    if os.environ.get("GANGPAO_WRITE_HELP"):
        path.write_text(shown(name), encoding="utf-8")
    assert shown(name) == path.read_text(encoding="utf-8")
