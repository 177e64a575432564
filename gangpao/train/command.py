"""`gangpao train CONFIG --out RUN` and `gangpao train plot RUN...`: the command line of the training room.

`train` begins a run or goes on with the one in the folder. It exits with 0 when the run is done, and when SIGTERM ended it
with everything saved; with 130 after Ctrl-C, saved as well. What became of the run goes to stdout, progress to stderr.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class RunByDefault(TyperGroup):
    """`train config.toml` means `train run config.toml`; only names of subcommands are taken as such."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=RunByDefault, rich_markup_mode=None, add_completion=False, no_args_is_help=True)


@app.callback()
def root() -> None:
    """Train a model from a TOML file, or plot runs."""


@app.command("run", help="Train what a TOML file says, or go on with the run in the folder.")
def train(
    config: Annotated[Path, typer.Argument(help="TOML of the run, for example configs/train-tiny.toml.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; one that is there is resumed.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value over the TOML, for example optimizer.lr=0.005; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Fail unless there is a run to go on with.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Train, with progress on stderr; what became of the run on stdout at the end, of rank 0 under torchrun."""
    # Read by OpenMP when torch is loaded: threads inside operations wait some tenths of a millisecond for one another, then sleep.
    # OpenMP's own number is 300,000: beside other work they burn their share of the processors by waiting.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with ctrl_c_later():
        from gangpao.train import pretrain, progress, summary
    try:
        outcome = pretrain.run(config, out, overrides or (), resume=resume, stream=progress.stderr())
    except KeyboardInterrupt:
        say(summary.interrupted(out))
        leave(130)
        return
    if os.environ.get("RANK", "0") == "0":
        found = summary.facts(out, outcome)
        if outcome.signal is not None:
            say(summary.stopped(out, outcome, found["steps"]))
        if as_json:
            print(json.dumps(found))
        elif outcome.signal is None:
            print(summary.text(found, out))
    leave(130 if outcome.signal == signal.SIGINT else 0)


@contextlib.contextmanager
def ctrl_c_later() -> Iterator[None]:
    """Let Ctrl-C wait for what is inside, which is the import of torch: half imported it crashes. A second one does not wait."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(130)
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        say("stopped before anything began")
        raise typer.Exit(130)


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def leave(code: int) -> None:
    """End with this code; a rank of torchrun ends here and now: everything is on the disk, and threads that torch's backends
    leave behind now and then abort a process while it takes itself apart, which torchrun counts as a lost rank."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        raise typer.Exit(code)


@app.command("plot", help="Draw loss, learning rate and gradient norm of runs into one PNG and one HTML page.")
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option("--out", help="Name of the two files, without suffix.")] = Path("train-plot"),
) -> None:
    """Draw, and print the names of the files."""
    from gangpao.train.plot import draw

    for path in draw(runs, out):
        print(path)
