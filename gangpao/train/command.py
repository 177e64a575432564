"""`gangpao train CONFIG --out RUN` and `gangpao train plot RUN...`: the command line of the training room.

`train` begins a run or goes on with the one in the folder. It exits with 0 when the run is done, and when SIGTERM ended it
with everything saved; with 130 after Ctrl-C, saved as well. What became of the run goes to stdout, progress to stderr.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from gangpao.long_command import RunByDefault, ctrl_c_later

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
    summary.run_and_tell(
        lambda: pretrain.run(config, out, overrides or (), resume=resume, stream=progress.stderr()),
        out, summary.facts, summary.text, as_json=as_json,
    )  # fmt: skip


@app.command("plot", help="Draw loss, learning rate and gradient norm of runs into one PNG and one HTML page.")
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option("--out", help="Name of the two files, without suffix.")] = Path("train-plot"),
) -> None:
    """Draw, and print the names of the files."""
    from gangpao.train.plot import draw

    for path in draw(runs, out):
        print(path)
