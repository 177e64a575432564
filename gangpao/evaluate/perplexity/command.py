"""`gangpao eval perplexity`: how surprised a model is by texts, and how far it is from another model on them.

Progress is on stderr; a table and one JSON object in the last line, the result as in results.json, are on stdout.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gangpao.cost import Meter, show_yuan
from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.perplexity.base_logits import MAGIC, BaseLogits
from gangpao.evaluate.perplexity.run import run_perplexity
from gangpao.evaluate.perplexity.scorers import open_scorer
from gangpao.evaluate.perplexity.tally import table
from gangpao.evaluate.perplexity.windows import Windowing
from gangpao.evaluate.results import RunResult
from gangpao.formats.adapters.typed import chosen
from gangpao.options import Fields, command_of
from gangpao.progress import Progress
from gangpao.units import show_seconds

_CONTEXT = 1024  # ids of a window where nothing is said and the model takes so many
_LEAST_CONTEXT = 16  # that the engine is loaded with

Model = Annotated[
    str, typer.Option("-m", "--model", help="Name of the catalog, .gguf file, checkpoint folder or training run.")
]
Text = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TEXT",
        help='Texts, .jsonl or .jsonl.zst files with {"text"}, folders of them; NAME=PATH names a part.',
    ),
]
Context = Annotated[
    int | None, typer.Option("--context", min=4, max=1 << 20, help="Ids of a window. [1024; 512 with --llama-cpp]")
]
Stride = Annotated[
    int | None, typer.Option("--stride", min=1, help="Ids between the beginnings of windows. [half of the context]")
]
LlamaCpp = Annotated[
    bool, typer.Option("--llama-cpp", help="Windows side by side of which the second half counts, as llama-perplexity.")
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against", help="Also KL divergence from this model, or from log-probabilities saved in a file (.kld)."
    ),
]
Save = Annotated[
    Path | None, typer.Option("--save", help="Write log-probabilities in llama.cpp's format; needs --llama-cpp.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder for results.json and items; a killed run goes on from there.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Windows of each part at most.")]
Float32 = Annotated[
    bool, typer.Option("--float32", help="Compute in float32: slower, and equal to programs that do; for comparisons.")
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", metavar="PATH[:SCALE]",
        help="A LoRA adapter of the model (not of --against): a PEFT folder, a run of tune or a GGUF file; repeatable.",
    ),
]  # fmt: skip
Cost = Annotated[str | None, typer.Option("--cost", help="Cost profile of the machine.")]


@command_of()
def perplexity(
    model: Model,
    text: Text = None,
    context: Context = None,
    stride: Stride = None,
    llama_cpp: LlamaCpp = False,
    against: Against = None,
    save: Save = None,
    out: Out = None,
    limit: Limit = None,
    float32: Float32 = False,
    adapter: Adapters = None,
    cost: Cost = None,
    *,
    options: Annotated[EngineOptions, Fields(EngineOptions, ("threads", "kv"))],
) -> None:
    """Measure perplexity and bits per byte of texts, in total and by part or language, and the divergence from another model."""
    saved = Path(against).expanduser() if against is not None and is_saved(Path(against).expanduser()) else None
    if not text and saved is None:
        raise ValueError("no TEXT: give at least one text or .jsonl file, or --against FILE.kld, whose own is taken")
    meter = Meter(cost)  # a wrong name is said before anything is loaded
    windowing = windowing_of(context, stride, llama_cpp, saved is not None)
    longest = windowing.context if windowing else BaseLogits(saved).shape.context if saved else None
    options = replace(options, context=longest and max(longest, _LEAST_CONTEXT))
    scorer = open_scorer(model, options, float32=float32, adapters=chosen(adapter))
    if windowing is None and saved is None:
        most = min(_CONTEXT, scorer.limit)
        windowing = Windowing(most, stride or most // 2)
    base = saved or (open_scorer(against, options, float32=float32) if against is not None else None)
    with Progress(more=lambda seconds: show_yuan(meter.yuan(seconds))) as progress:
        result = run_perplexity(
            scorer, text or [], windowing=windowing, against=base, save=save, out=out, limit=limit, progress=progress,
            profile=cost,
        )  # fmt: skip
    _print(result, out, save)


def is_saved(path: Path) -> bool:
    """Whether a path is a file of log-probabilities."""
    if not path.is_file():
        return path.suffix == ".kld"
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def windowing_of(context: int | None, stride: int | None, llama_cpp: bool, saved: bool) -> Windowing | None:
    """What the options say; None where the model or the saved file decides."""
    if llama_cpp:
        if stride is not None:
            raise ValueError("--llama-cpp has no stride: its windows lie side by side; leave out one of the two")
        return Windowing(context or 512)
    if saved:
        if stride is not None:
            raise ValueError("--stride: the windows of a saved file lie side by side; leave it out")
        return Windowing(context) if context is not None else None
    return Windowing(context, stride or context // 2) if context is not None else None


def _print(result: RunResult, out: Path | None, save: Path | None) -> None:
    settings = result.settings
    stride = f", stride {settings['stride']}" if settings["stride"] else ""
    first = result.tasks[0]
    print(
        f"{result.model.name} on {first.task}: {result.tokens['counted']:,} tokens in {first.items} of {first.of} windows"
    )
    print(f"windows: {settings['windowing']}, {settings['context']} ids{stride}, BOS {settings['bos']}")
    print("\n".join(table(result.tasks)))
    speed = result.speed.prefill_tps if result.speed else None
    print(f"{show_seconds(result.seconds)}, {speed or 0:.0f} tok/s, {show_yuan(result.yuan or 0)}")
    print("\n".join(result.notes[1:]))
    print("\n".join(f"written: {path}" for path in (out, save) if path is not None), end="\n" if out or save else "")
    print(result.model_dump_json())
