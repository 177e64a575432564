"""`gangpao sandbox ...`: the command line of Model Sandbox.

    check            are activations and updates the same size at every width under a rule?
    lr, batch, schedule, scaling, mix, optim      one experiment of a TOML each: a table, a plot, a verdict
    search           let Optuna look for the best values of any fields of a trial
    worker           take trials from a study on another machine
    plan             from a budget to a recipe that `gangpao train` runs
    compare          what came of a plan's run against what was predicted
    report           one page of all experiments and plans

Before an experiment starts it says what it will cost; --estimate says that and stops.

Whatever was interrupted goes on when the same command is given again, and no trial runs twice.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gangpao.page import language_of
from gangpao.sandbox.experiments import EXPERIMENTS, Row

if TYPE_CHECKING:
    from gangpao.sandbox.plan.estimate import Estimate
    from gangpao.sandbox.trials.driver import Driver

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)

Config = Annotated[Path, typer.Argument(help="TOML of the sandbox, for example configs/sandbox-quick.toml.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the sandbox; what is known there is not run again.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value over the TOML; repeatable.")]
Storage = Annotated[
    str | None,
    typer.Option("--storage", help="postgresql://... for workers on several machines; else SQLite in the folder."),
]
Lang = Annotated[str, typer.Option("--lang", help="en or zh.")]
Only = Annotated[bool, typer.Option("--estimate", help="Say what it will cost, and train nothing.")]


@app.callback()
def root() -> None:
    """Small experiments that decide a large run: sweeps, laws, a plan."""


def _experiment(
    name: str, config: Path, out: Path, overrides: list[str] | None, storage: str | None, lang: str, only: bool
) -> None:
    """Say what it costs, run it, write outcome, report and plot, and print the report. The last line of a search is JSON."""
    from gangpao.sandbox.experiments.config import load_sandbox_config
    from gangpao.sandbox.experiments.text import page
    from gangpao.sandbox.trials.driver import Driver
    from gangpao.sandbox.trials.provenance import provenance
    from gangpao.train.progress import stderr

    language, row = language_of(lang), EXPERIMENTS[name]
    driver = Driver(load_sandbox_config(config, tuple(overrides or ())), out, storage=storage, stream=stderr())
    costs = _estimate(row, driver).said(name).of(language)
    if only:
        print(costs)
        return
    print(costs, file=stderr(), flush=True)
    module = row.load()
    if row.search:
        outcome = module.outcome_of(driver.lab, driver.search())
    else:
        outcome = module.run(driver.lab, lambda specs: driver.submit(name, specs))
    record = page.write(outcome, out / name, provenance(driver.lab, config, overrides or ()))
    print(page.markdown(record, language))
    print(out / name / f"plot.{language}.png")
    if row.search:
        print(json.dumps(_found(outcome.facts)))


def _estimate(row: Row, driver: Driver) -> Estimate:
    from gangpao.sandbox.plan import estimate

    if row.search:
        return estimate.of_search(driver.lab, driver.searched())
    return estimate.estimate(driver.lab, estimate.asked(row.load(), driver.lab))


def _found(facts: dict[str, Any]) -> dict[str, Any]:
    """Of a search, for a program: the best values, their loss, and how many trials there were."""
    pruned = sum(t["state"] == "pruned" for t in facts["tried"])
    return {"best": facts["best"], "bpb": facts["bpb"], "trials": len(facts["tried"]), "pruned": pruned}


def add(to: typer.Typer, name: str, row: Row) -> None:
    """The command of an experiment."""

    def command(
        config: Config, out: Out, overrides: Set = None, storage: Storage = None, lang: Lang = "en", only: Only = False
    ) -> None:
        try:
            _experiment(name, config, out, overrides, storage, lang, only)
        except KeyboardInterrupt:
            note = f"stopped; finished trials are kept in {out}, and the same command goes on from there"
            print(note, file=sys.stderr, flush=True)
            raise

    to.command(name, help=row.line)(command)


for _name, _row in EXPERIMENTS.items():
    add(app, _name, _row)


@app.command("check", help="Coordinate check: are activations and updates the same size at every width under a rule?")
def check(
    rule: Annotated[str, typer.Argument(help="Of transfer: minicpm, standard, standard-embedding, completep.")],
    widths: Annotated[str, typer.Option("--widths", help="Widths to compare.")] = "64,128,256,512",
    depths: Annotated[
        str, typer.Option("--depths", help="Instead: depths, for example 4,8,16,32; fewer than 4 say little.")
    ] = "",
    steps: Annotated[int, typer.Option("--steps", help="Updates to look at.")] = 4,
    seeds: Annotated[int, typer.Option("--seeds")] = 2,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the plot, the table and the numbers.")] = None,
    lang: Lang = "en",
) -> None:
    """Print a table and a verdict; exit code 1 when the rule does not hold, 3 when that cannot be told."""
    from gangpao.atomic import write_json
    from gangpao.sandbox.experiments.check import coordinate_check
    from gangpao.sandbox.experiments.text.check import draw, markdown

    language = language_of(lang)
    if depths:
        deep = _numbers(depths, "--depths")
        result = coordinate_check(rule, layers_list=deep, width=64, steps=steps, seeds=range(seeds))
    else:
        result = coordinate_check(rule, widths=_numbers(widths, "--widths"), steps=steps, seeds=range(seeds))
    text = markdown(result, language)
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        draw(result, out / f"check-{rule}.png", language)
        (out / f"check-{rule}.md").write_text(text, encoding="utf-8")
        write_json(out / f"check-{rule}.json", result.json())
        print(out / f"check-{rule}.png")
    if not result.ok:
        raise typer.Exit(1 if result.answer == "no" else 3)


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} {text!r:.40}: whole numbers with commas between, for example 64,128,256") from error


@app.command(
    "plan", help="From a budget to a recipe: size, tokens, batch, learning rate, predicted loss, time and price."
)
def plan(
    config: Config,
    out: Out,
    budget: Annotated[
        str, typer.Option("--budget", help='"8 h on this machine", "3e19 flops" or "2000 yuan on PROFILE".')
    ],
    toml: Annotated[Path | None, typer.Option("--toml", help="Write the TOML that gangpao train runs.")] = None,
    serve_tokens: Annotated[
        float, typer.Option("--serve-tokens", help="Tokens it will answer, paid from the same budget.")
    ] = 0,
    max_params: Annotated[float | None, typer.Option("--max-params", help="Largest number of parameters.")] = None,
    speed: Annotated[
        float | None, typer.Option("--speed", help="FLOP/s of the machine; none: what the sandbox measured.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", help="GB of the machine that trains; none: all that this one has.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Go further than the data supports.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Set = None,
    lang: Lang = "en",
) -> None:
    """Print the plan, and keep it in the sandbox's folder, so that what comes of it can be compared."""
    import math

    from gangpao.sandbox.experiments.config import load_sandbox_config
    from gangpao.sandbox.plan import plan as planning
    from gangpao.sandbox.plan.budget import machine_of
    from gangpao.sandbox.plan.findings import load_laws
    from gangpao.sandbox.plan.planned import keep
    from gangpao.sandbox.trials.provenance import provenance
    from gangpao.sandbox.trials.trial import Lab

    language = language_of(lang)
    lab = Lab.open(load_sandbox_config(config, tuple(overrides or ())), out)
    laws = load_laws(out, lab)
    if memory is not None and not (math.isfinite(memory) and memory > 0):
        raise ValueError(f"--memory {memory}: GB above zero, for example 16")
    given = None if memory is None else round(memory * 1e9)
    here = machine_of(budget, laws, lab, speed=speed, memory=given)
    limit = math.inf if max_params is None else max_params
    made = planning.make_plan(budget, laws, lab, here=here, serve_tokens=serve_tokens, max_params=limit, force=force)
    print(json.dumps(made.json(), ensure_ascii=False) if as_json else made.markdown(language))
    keep(made, out, provenance(lab, config, overrides or ()))
    if toml is not None:
        planning.write(made, toml)
        print(toml)


@app.command("compare", help="Predicted against came: a finished run of a plan, judged by what the plan said.")
def compare(
    run: Annotated[Path, typer.Argument(help="Folder of the run that `gangpao train` made of the plan.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the sandbox that made the plan.")],
    lang: Lang = "en",
) -> None:
    """Print a table of every prediction of this recipe and what came."""
    from gangpao.sandbox.plan import planned

    language = language_of(lang)
    print(planned.markdown([came.json() for came in planned.compare(run, out)], language))


@app.command("report", help="One HTML page and one Markdown file of all experiments and plans in a folder.")
def report(
    out: Annotated[Path, typer.Option("--out", help="Folder of the sandbox.")],
    lang: Lang = "en",
) -> None:
    """Write report.<lang>.html and report.<lang>.md, and print their names."""
    from gangpao.sandbox.report import write

    for path in write(out, language_of(lang)):
        print(path)


@app.command("worker", help="Take trials of a study until there are none; start one on every machine that joins.")
def worker(
    config: Config,
    out: Out,
    storage: Annotated[
        str, typer.Option("--storage", help="Where the study lives: sqlite:///file or postgresql://...")
    ],
    study: Annotated[str, typer.Option("--study", help="An experiment's name.")],
    overrides: Set = None,
    core: Annotated[
        int | None, typer.Option("--core", help="First core to stay on; none: wherever the system likes.")
    ] = None,
) -> None:
    """Work."""
    from gangpao.sandbox.experiments.config import load_sandbox_config, read_config
    from gangpao.sandbox.trials.queue import join_study, open_storage, pin, work, workers_of
    from gangpao.sandbox.trials.trial import Lab

    if config.suffix == ".json":
        loaded = read_config(config)
    else:
        loaded = load_sandbox_config(config, tuple(overrides or ()))
    if core is not None:  # how many share the machine is counted before this process is told to see a part of it
        loaded = loaded.model_copy(update={"workers": workers_of(loaded)})
        pin(core, loaded.threads)
    lab = Lab.open(loaded, out)
    print(f"{work(lab, *join_study(open_storage(storage), lab, study))} trials")
