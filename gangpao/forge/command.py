"""`gangpao forge`: one TOML file from data to a model that answers.

    gangpao forge FILE --out RUN      do what is not done yet; a call that was killed goes on
    gangpao forge status RUN          a line per stage: done, how far, yuan, quality so far
    gangpao forge slurm FILE --out RUN    the same line as jobs for a cluster
    gangpao forge check FILE.gguf     is it served as it answers?

Each stage is a command that a person would type, and is printed before it runs.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from gangpao.forge.config import load_forge_config
from gangpao.long_command import RunByDefault, leave, say

app = typer.Typer(cls=RunByDefault, rich_markup_mode=None, add_completion=False, no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="TOML of the line, for example configs/forge-quick.toml.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; what is done in it is not done again.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value over the TOML; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


@app.callback()
def root() -> None:
    """Data, sandbox, training, tuning, compression, evaluation, export and a check in one line, resumable, reported."""


@app.command("run", help="Do what is not done of a line, stage by stage, or go on with the run in the folder.")
def forge_command(
    file: File,
    out: Out,
    overrides: Set = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop behind this stage.")] = None,
    again_from: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and those behind it anew.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Stages and their progress go to stderr; what became of the line to stdout."""
    from gangpao.commands.model.find import find_weights
    from gangpao.forge import status
    from gangpao.forge.child import Stopped
    from gangpao.forge.line import forge

    config = load_forge_config(file, tuple(overrides or ()))
    model = find_weights(config.model) if config.model else None
    try:
        done = forge(config, model, out, until=until, again_from=again_from, stream=sys.stderr)
    except Stopped as stop:
        say(f"{out}: stopped; the same command goes on from what is saved")
        leave(128 + stop.number)
        return
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"{out}: its disk is full; make room, and the same command goes on from what is saved"
        ) from error
    if as_json:
        print(json.dumps({one.name: {"seconds": one.seconds, "facts": one.facts} for one in done}, ensure_ascii=False))
        return
    print(status.text(out))
    files = [one.products["file"].path for one in done if "file" in one.products]
    for path in files:
        print(f"next\n  gangpao chat -m {path}\n  gangpao report {out}")


@app.command("status", help="A line per stage: done, how far, yuan, quality so far.")
def status_command(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing until the line is done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the rows; works while the line runs elsewhere."""
    from dataclasses import asdict

    from gangpao.forge import status

    if as_json:
        print(json.dumps([asdict(one) for one in status.standings(run)[1]], ensure_ascii=False))
    elif watch:
        status.watch(run)
    else:
        print(status.text(run))


@app.command("slurm", help="Print a shell script that runs the line as jobs of Slurm, one a stage.")
def slurm_command(file: File, out: Out, overrides: Set = None) -> None:
    """The script goes to stdout; nothing is run."""
    from gangpao.forge.slurm import script

    typed = tuple(overrides or ())
    print(script(load_forge_config(file, typed), file, out, typed), end="")


@app.command("check", help="Ask a file with and without a server: are the answers equal, and what do they cost?")
def check_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="The file.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="What is asked; repeatable.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, max=4096, help="Where an answer is cut off.")] = 32,
    cost: Annotated[str | None, typer.Option("--cost", help="Cost profile of the machine.")] = None,
    as_json: AsJson = False,
) -> None:
    """Exit code 1 where an answer of the server is not the engine's."""
    from gangpao.forge import check

    if not file.is_file():
        raise ValueError(f"{file}: no such file; `gangpao export FOLDER FILE.gguf` makes one of a folder")
    found = check.check(file, prompt or check.PROMPTS, max_tokens, cost)
    print(check.dumped(found) if as_json else check.text_of(found))
    if found.differing:
        say(
            f"error: {len(found.differing)} of {found.asked} answers of a server differ, for example {found.differing[0]}"
        )
        raise typer.Exit(1)
