"""`gangpao eval pictures`: how many answers about pictures are right, and whether texts are found by their pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from gangpao.cost import Meter, show_yuan
from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.models import load
from gangpao.evaluate.results import RunResult
from gangpao.evaluate.sight.rows import Question, questions
from gangpao.evaluate.sight.run import Settings, run
from gangpao.formats.adapters.typed import chosen
from gangpao.options import Fields, command_of
from gangpao.progress import Progress
from gangpao.units import show_count, show_seconds

Model = Annotated[str, typer.Option("-m", "--model", help="A model that sees: name, .gguf file, or a server's URL.")]
Rows = Annotated[
    list[str],
    typer.Argument(
        metavar="ROWS", help="Files of conversations about pictures, as `gangpao tune` reads them; NAME=PATH names one."
    ),
]
Mmproj = Annotated[
    str | None, typer.Option("--mmproj", metavar="FILE", help="What it sees with; found beside the model if not given.")
]
Among = Annotated[
    int,
    typer.Option(
        "--among", min=0, max=1000, help="Texts and pictures are looked for among so many; 0: nothing is looked for."
    ),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, max=1 << 16, help="Most tokens of an answer.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Rows of each file at most.")]
Batch = Annotated[int, typer.Option("--batch", min=1, max=256, help="Answers at a time; scores do not depend on it.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder for results.json and items; a killed run goes on there.")
]
Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", metavar="PATH[:SCALE]", help="A LoRA adapter of the model; repeatable.")
]
ServerModel = Annotated[str | None, typer.Option("--server-model", help="The model's name at a server.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="Key for a server.", envvar="OPENAI_API_KEY")]
Cost = Annotated[str | None, typer.Option("--cost", help="Cost profile of the machine.")]


@command_of()
def pictures(
    rows: Rows,
    model: Model,
    mmproj: Mmproj = None,
    adapter: Adapters = None,
    among: Among = 10,
    max_tokens: MaxTokens = 64,
    limit: Limit = None,
    batch: Batch = 8,
    server_model: ServerModel = None,
    api_key: ApiKey = None,
    out: Out = None,
    cost: Cost = None,
    *,
    options: Annotated[EngineOptions, Fields(EngineOptions, ("threads", "kv", "context"))],
) -> None:
    """Ask a model that sees about pictures: how many answers are the right ones, and whether texts are found by their pictures."""
    meter = Meter(cost)  # a wrong name is said before anything is loaded
    if among == 1:
        raise ValueError("--among 1: one of one is always found; give 2 or more, or 0 to look for nothing")
    asked = _read(rows, limit)
    serving = load.Serving(name=server_model, api_key=api_key)
    loaded = load.load(model, options, batch=batch, serving=serving, adapters=chosen(adapter), sees=True, mmproj=mmproj)
    folder = out or Path("eval") / re.sub(r"[^\w.-]+", "-", f"{Path(model).name}-pictures-{'-'.join(asked)}"[:120])
    settings = Settings(among=among, max_tokens=max_tokens, limit=limit, profile=cost)
    try:
        with Progress(show=show_count, more=lambda seconds: show_yuan(meter.yuan(seconds))) as progress:
            result = run(loaded, asked, settings, folder, progress)
    finally:
        loaded.close()
    _print(result, folder)


def _read(rows: list[str], limit: int | None) -> dict[str, list[Question]]:
    """Questions by the name of their file. Raises ValueError for a name that is there twice."""
    out: dict[str, list[Question]] = {}
    for one in rows:
        name, equals, path = one.partition("=")
        if not equals or "/" in name:
            name, path = _name(Path(one)), one
        name = re.sub(r"[^\w.-]+", "-", name)
        if name in out:
            raise ValueError(f"{one}: there is a {name!r} already; name this one, for example {name}-2={path}")
        out[name] = questions(path, limit)
    return out


def _name(path: Path) -> str:
    """rows.jsonl lies in a folder that says what it is of."""
    return path.stem if path.stem != "rows" or not path.parent.name else path.parent.name


def _print(result: RunResult, folder: Path) -> None:
    print(f"{'file':24} {'metric':14} {'score':>7} {'+-':>6} {'items':>6}")
    for task in result.tasks:
        error = f"{100 * task.stderr:6.2f}" if task.stderr is not None else "     -"
        print(f"{task.task:24} {task.metric:14} {100 * task.value:7.2f} {error} {task.items:6}")
    print("\n".join(result.notes[1:]))
    print(
        f"{show_seconds(result.seconds)}, {show_yuan(result.yuan or 0)}; {folder}/results.json, and a line a question"
    )
    print(result.model_dump_json())
