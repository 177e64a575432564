"""`gangpao tune`: a model learns from rows that a person has, on a small card or on none.

    gangpao tune CONFIG --out RUN                 what a TOML file says
    gangpao tune -m MODEL --data FILE --out RUN   the same without a file, with what needs no thought
    gangpao tune data CONFIG                      look at the rows: what is trained on, what was dropped and why
    gangpao tune plan CONFIG                      how much memory it takes, before anything is loaded

MODEL is a name of the catalog, a GGUF file, a Hugging Face folder, or a run of `gangpao train`. The base is only read; what comes
out is an adapter for that very file. A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gangpao.commands.model.find import find_weights
from gangpao.long_command import RunByDefault, ctrl_c_later
from gangpao.units import colors

if TYPE_CHECKING:
    from gangpao.tune.config import TuneConfig


app = typer.Typer(cls=RunByDefault, rich_markup_mode=None, add_completion=False, no_args_is_help=True)

Config = Annotated[Path | None, typer.Argument(help="TOML of the run; without it -m and --data say all.")]
Model = Annotated[
    str | None, typer.Option("-m", "--model", help="Name, .gguf file or Hugging Face folder, in place of the TOML's.")
]
Data = Annotated[list[Path] | None, typer.Option("--data", help="File of rows, in place of the TOML's; repeatable.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value over the TOML, for example method.rank=16; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


@app.callback()
def root() -> None:
    """Teach a model your own rows: adapters on a GGUF file or a folder, on a CPU too."""


@app.command("run", help="Tune what a TOML file (or -m and --data) says, or go on with the run in the folder.")
def tune(
    config: Config = None,
    model: Model = None,
    data: Data = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; one that is there is resumed.")] = Path(
        "tuned"
    ),
    overrides: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Fail unless there is a run to go on with.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tune, with progress on stderr; what became of the run on stdout at the end, of rank 0 under torchrun."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # see gangpao.train.command
    with ctrl_c_later():
        from gangpao.train import progress
        from gangpao.train.summary import run_and_tell
        from gangpao.tune import admission, output, run, summary
    wanted = _config(config, model, data, overrides or [])
    _warn(output.warning(wanted))
    try:
        run_and_tell(
            lambda: run.run_config(wanted, _weights(wanted), out, resume=resume, stream=progress.stderr()),
            out, summary.facts, summary.text, as_json=as_json,
        )  # fmt: skip
    except admission.TooLittle as error:
        print(
            f"error: {error}", file=sys.stderr
        )  # here, because other errors are shown on one line and this has a table
        raise typer.Exit(2) from error


@app.command("data", help="Show rows as the model gets them, how long they are, and what was dropped or cut and why.")
def data_(
    config: Config = None,
    model: Model = None,
    data: Data = None,
    overrides: Set = None,
    rows: Annotated[int, typer.Option("--rows", min=0, max=1000, help="How many rows are shown.")] = 5,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page of it, with ten times as many rows.")
    ] = None,
    chinese: Annotated[bool, typer.Option("--zh", help="In Chinese.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is learned is in colour on a terminal, in marks elsewhere. Only the base's tokenizer is read."""
    from gangpao.tune.base.load import base_tokenizer
    from gangpao.tune.data.prepare import prepare
    from gangpao.tune.data.show import facts, show
    from gangpao.tune.pictures.load import sees, shapes
    from gangpao.tune.pictures.table import PictureTable

    wanted = _config(config, model, data, overrides or [])
    model_path = _there(wanted)
    tokenizer, architecture = base_tokenizer(model_path)
    pictures = PictureTable(shapes(model_path)[0], tokenizer.vocab_size) if sees(model_path) else None
    prepared = prepare(
        wanted.data,
        tokenizer,
        tokenizer.chat_template,
        wanted.seq_len,
        kind=wanted.data_kind,
        architecture=architecture,
        pictures=pictures,
    )
    if as_json:
        print(json.dumps(facts(prepared, tokenizer, rows), ensure_ascii=False))
        return
    print(show(prepared, tokenizer, rows=rows, language="zh" if chinese else "en", color=colors(sys.stdout), page=html))


@app.command("plan", help="Say how much memory a run takes, and whether this machine has it; nothing is loaded.")
def plan(
    config: Config = None,
    model: Model = None,
    data: Data = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """A table: weights, adapters, gradients, optimizer, activations, logits; the exit code is 1 where the run does not fit."""
    from gangpao.tune import admission, output

    wanted = _config(config, model, data, overrides or [])
    base, device = _there(wanted), admission.device_of(wanted)
    _warn(output.warning(wanted))
    found = admission.plan_of(wanted, base, device.type)
    verdict = admission.verdict(found, wanted, base, device)
    print(json.dumps(found.as_json() | verdict) if as_json else f"{found.text()}\n{admission.verdict_text(verdict)}")
    if not verdict["fits"]:
        raise typer.Exit(1)


def _warn(text: str) -> None:
    """A note on stderr, of rank 0, before anything is read."""
    if text and os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr, flush=True)


def _weights(wanted: TuneConfig) -> Path:
    """The model that is tuned, or the language model of one that is put together."""
    name = wanted.model if wanted.new is None else wanted.new.text
    return find_weights(name) if name else Path()


def _there(wanted: TuneConfig) -> Path:
    """The model that is tuned. Raises ValueError for one that its run has yet to put together."""
    if wanted.new is not None:
        raise ValueError("this run puts its model together when it begins: begin it, then name RUN/base with -m")
    return find_weights(wanted.model)


def _config(config: Path | None, model: str | None, data: list[Path] | None, overrides: list[str]) -> TuneConfig:
    """The configuration of a file, with what the command line says over it. Raises ValueError where something is missing."""
    from gangpao.tune.config import load_tune_config, typed_config

    said: dict[str, Any] = {**({"model": model} if model else {})}
    if data:
        said["data"] = {"files": [str(path.absolute()) for path in data]}
    typed = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in _flat(said)]
    if config is not None:
        return load_tune_config(config, (*typed, *overrides))
    if model is None or not data:
        raise ValueError(
            "give a TOML file, or a model and its data: gangpao tune -m smollm2-135m --data rows.jsonl --out RUN"
        )
    return typed_config((*typed, *overrides))


def _flat(said: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Nested tables as dotted keys."""
    out: list[tuple[str, Any]] = []
    for key, value in said.items():
        out += _flat(value, f"{before}{key}.") if isinstance(value, dict) else [(f"{before}{key}", value)]
    return out
