"""`gangpao eval`: what a model is worth, by the benchmarks of the MiniCPM report and any task of lm-eval.

    gangpao eval -m MODEL --suite NAME      ask a suite, or single tasks (--task)
    gangpao eval perplexity -m MODEL TEXT   perplexity, bits per byte, divergence from another model
    gangpao eval pictures -m MODEL ROWS     answers about pictures, and texts found by them
    gangpao eval judge -m MODEL --judge URL conversations (MT-Bench) that another model marks
    gangpao eval report RUN...              runs beside published scores on one page
    gangpao eval compare A B                two runs item by item

MODEL is a name, a GGUF file, a folder of weights (--torch runs it as it is), or the address of an OpenAI-compatible server.
Everything is written to --out: results.json, a line an item, a line a request. A run that was stopped goes on with the same
command.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from pathlib import Path
from typing import Annotated

import typer

from gangpao import machine
from gangpao.commands import bench
from gangpao.commands import options as opt
from gangpao.commands.model.find import find_model
from gangpao.commands.model.sight import sight_of
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.judge.command import judge
from gangpao.evaluate.models import load, protocol
from gangpao.evaluate.perplexity.command import perplexity
from gangpao.evaluate.report import command as report_command
from gangpao.evaluate.results import RunResult, Speed, write_run
from gangpao.evaluate.settings import Settings
from gangpao.evaluate.sight.command import pictures
from gangpao.formats.adapters.typed import chosen
from gangpao.options import Fields, command_of

app = typer.Typer(rich_markup_mode=None, add_completion=False, invoke_without_command=True)
load.use_finder(find_model, sight_of)
app.command("perplexity")(perplexity)
app.command("pictures")(pictures)
app.command("judge")(judge)
app.command("report")(report_command.report)
app.command("compare")(report_command.compare)

Model = Annotated[
    str | None, typer.Option("-m", "--model", help="Name, .gguf file, folder of weights, or a server's URL.")
]
Suite = Annotated[
    list[str] | None,
    typer.Option("--suite", help="minicpm, quick, language, knowledge, math, code, chinese; repeatable."),
]
TaskName = Annotated[
    list[str] | None, typer.Option("--task", help="A single task, of ours or of lm-eval's; repeatable.")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="Folder with the data sets, or huggingface, or modelscope.", envvar="GANGPAO_EVAL_DATA"
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Items of each task; of one with subjects some of each.")
]
Shots = Annotated[
    int | None,
    typer.Option("--shots", min=0, max=64, help="Worked examples in front, instead of the task's own number."),
]
Chat = Annotated[bool, typer.Option("--chat", help="Ask as a conversation, by the model's template.")]
Think = Annotated[bool | None, typer.Option("--think/--no-think", help="Switch a thinking model's thoughts on or off.")]
ThinkBudget = Annotated[
    int | None,
    typer.Option(
        "--think-budget", min=0, help="Tokens that a thought may take; then it is closed and the answer follows."
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", min=1, help="End answers after so many tokens, instead of the task's own number."),
]
Batch = Annotated[int, typer.Option("--batch", min=1, max=256, help="Answers, or requests to a server, at a time.")]
RunCode = Annotated[bool, typer.Option("--run-code", help="Run the programs that the model writes, in a cage.")]
Torch = Annotated[bool, typer.Option("--torch", help="Run a folder of weights in torch instead of our engine.")]
Float32 = Annotated[
    bool, typer.Option("--float32", help="Compute in float32: slower, and equal to programs that do; for comparisons.")
]
ServerModel = Annotated[str | None, typer.Option("--server-model", help="Name of the model at the server.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="Key of the server.", envvar="OPENAI_API_KEY")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the results; eval/MODEL-SUITE if not given.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of answers that are drawn.")]
Corpus = Annotated[
    Path | None, typer.Option("--corpus", help="Training text: say which items are in it, and the scores without them.")
]
Cost = Annotated[str | None, typer.Option("--cost", help="Cost profile: what this machine costs.")]
NoSpeed = Annotated[bool, typer.Option("--no-speed", help="Do not measure the speed of our engine at the end.")]
ListTasks = Annotated[bool, typer.Option("--list", help="Show suites and tasks.")]


@app.callback()
@command_of()
def run(
    ctx: typer.Context,
    model: Model = None,
    adapter: opt.Adapters = None,
    suite: Suite = None,
    task: TaskName = None,
    data: Data = None,
    limit: Limit = None,
    shots: Shots = None,
    chat: Chat = False,
    think: Think = None,
    think_budget: ThinkBudget = None,
    max_tokens: MaxTokens = None,
    batch: Batch = 8,
    run_code: RunCode = False,
    torch: Torch = False,
    float32: Float32 = False,
    server_model: ServerModel = None,
    api_key: ApiKey = None,
    out: Out = None,
    seed: Seed = 0,
    corpus: Corpus = None,
    cost: Cost = None,
    no_speed: NoSpeed = False,
    list_tasks: ListTasks = False,
    *,
    options: Annotated[EngineOptions, Fields(EngineOptions)],
) -> None:
    """Measure a model: benchmarks, conversations, perplexity, speed and price."""
    if ctx.invoked_subcommand is not None:
        return
    if list_tasks:
        _list()
        return
    if model is None:
        raise ValueError(
            "which model? gangpao eval -m MODEL --suite quick --data FOLDER (--list shows suites and tasks)"
        )
    from gangpao.evaluate.run import check_suites, tasks_of

    suites = suite or ([] if task else ["quick"])
    check_suites(suites)
    names = [*suites, *(task or [])]
    settings = Settings(
        tasks=tasks_of(names), suite=" ".join(suites), optional=frozenset(tasks_of(suites)) - frozenset(task or []), data=data,
        limit=limit, shots=shots, chat=chat, think=think, think_budget=think_budget, max_tokens=max_tokens, seed=seed,
        run_code=run_code, corpus=corpus, cost_profile=cost,
    )  # fmt: skip
    folder = out or Path("eval") / re.sub(r"[^\w.-]+", "-", f"{Path(model).name}-{'-'.join(names)}")
    serving = load.Serving(name=server_model, api_key=api_key)
    loaded = load.load(
        model, options, batch=batch, torch=torch, float32=float32, serving=serving, adapters=chosen(adapter)
    )
    try:
        _measure(loaded, settings, folder, speed=not no_speed)
    finally:
        loaded.close()


def _measure(loaded: protocol.Model, settings: Settings, folder: Path, *, speed: bool) -> None:
    from gangpao.evaluate.run import evaluate

    begun = time.monotonic()
    result = evaluate(loaded, settings, folder)
    engine = getattr(loaded, "engine", None)
    if engine is not None and speed:
        result = result.model_copy(update={"speed": _speed(engine)})
        write_run(folder, result)
    _show(result, folder, time.monotonic() - begun)


def _speed(engine: Engine) -> Speed:
    """Of one answer: 256 tokens of prompt, 32 of answer, the medians of three."""
    tokens = min(256, engine.context // 2)
    prefill, decode = bench.measure(engine, tokens, min(32, engine.context - tokens), 3)
    return Speed(
        prefill_tps=round(statistics.median(prefill), 2), decode_tps=round(statistics.median(decode), 2),
        rss_mb=round(machine.rss_mb(), 1),
    )  # fmt: skip


def _show(result: RunResult, folder: Path, seconds: float) -> None:
    """A table, and the folder; the last line is JSON."""
    print(f"{'task':16} {'shots':>5} {'how':14} {'metric':12} {'score':>8} {'+-':>6} {'items':>6} of")
    for task in result.tasks:
        scale = 100 if task.scale == 1 and task.higher_is_better else 1
        error = f"{scale * task.stderr:6.2f}" if task.stderr is not None else "     -"
        left = "".join(f", {count} {reason}" for reason, count in task.left_out.items())
        print(
            f"{task.task:16} {task.shots:5} {task.mode:14} {task.metric:12} {scale * task.value:8.2f} {error} {task.items:6} "
            f"{task.of}{left}"
        )
    print(f"\n{folder}/results.json, and a line an item in items-*.jsonl")
    line = {"out": str(folder), "seconds": round(seconds, 1), "yuan": result.yuan}
    print(json.dumps(line | {f"{t.task} {t.metric} {t.mode}": round(t.value, 5) for t in result.tasks}))


def _list() -> None:
    from gangpao.evaluate.tasks.data import SETS
    from gangpao.evaluate.tasks.table import SUITES, TASKS

    for name, tasks in SUITES.items():
        print(f"{name:12} {' '.join(tasks)}")
    print()
    for task in TASKS.values():
        licence = SETS[task.data].licence if task.data in SETS else "ours"
        data = f"data {licence}" if licence else "data by the licence of the set"
        print(
            f"{task.name:22} {task.title:14} {task.area:10} {task.shots} shots, {task.main}, version {task.version}, {data}"
        )
    print("\nOther names are tasks of lm-eval, which fetches their data itself.")
