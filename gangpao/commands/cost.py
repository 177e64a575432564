"""`gangpao cost`: tokens for a yuan at a speed on a machine, every assumption in a line, and what each of them does to it.

The speed is measured (--bench), said (--speed), or a phone's of the MiniCPM README (--device); the machine is a cost profile.
--against draws quality against price over runs of `gangpao eval`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gangpao import config, cost
from gangpao.commands import options as opt
from gangpao.evaluate import results
from gangpao.evaluate.pricing import against, api, devices, measured, plots, text
from gangpao.evaluate.pricing.workload import INPUTS, SPEED, Workload, changed, sensitivity, yuan_per_million
from gangpao.options import command_of, option

PHONE_PROFILE = "old-phone"  # a phone of the table is no desktop: without --cost-profile it costs this


@dataclass(frozen=True, slots=True)
class SpeedOptions:
    """Where the speed is from."""

    bench: Path | None = option(None, "What `gangpao bench` printed, or the folder of a suite or a run.")
    speed: float | None = option(None, "Tokens of an answer a second, instead of a measurement.")
    device: str | None = option(None, "A phone of the MiniCPM README's table; --devices lists them.")
    prefill_speed: float | None = option(None, "Tokens of prompts a second, for --input-share.")
    input_share: float = option(0.0, "Tokens of prompts among all that are counted, 0 to 1.")
    served: bool = option(False, "Count all answers of a server together (batch_tps) instead of one.")
    model: str | None = option(None, "Which model of a suite.")
    context: int | None = option(None, "Which context length of a suite; the shortest if not given.")
    batch: int | None = option(None, "Which batch size of a suite; the largest if not given.")


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """What the machine is taken to cost."""

    cost_profile: str | None = option(None, "The machine whose price and power make the yuan.")
    set: tuple[str, ...] = option((), "Change a figure of the profile, NAME=VALUE; repeatable.")
    range: tuple[str, ...] = option((), "Low and high value of an assumption, NAME=LOW:HIGH; repeatable.")


Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the tornado (or --against) into FILE.svg or FILE.png.")]
Against = Annotated[
    list[str] | None,
    typer.Option(
        "--against",
        metavar="RUN[=BENCH]",
        help="Quality against price of runs, with a speed measured apart; repeatable.",
    ),
]
List = Annotated[bool, typer.Option("--devices", help="List the phones and their speeds, and nothing else.")]


@command_of()
def price(
    *,
    speed: SpeedOptions,
    machine: MachineOptions,
    against_runs: Against = None,
    plot: Plot = None,
    list_devices: List = False,
    as_json: opt.Json = False,
) -> None:
    """Say what tokens cost on a machine, and which assumption moves that most."""
    if plot is not None:
        plots.check_format(plot)
    if list_devices:
        found: dict[str, Any] = devices.load().model_dump()
        print(json.dumps(found, ensure_ascii=False) if as_json else text.devices_table(devices.load()))
        return
    facts = compared(against_runs, speed, machine, plot) if against_runs else priced(speed, machine, plot)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print(text.comparison(facts) if against_runs else text.report(facts))


def priced(speed: SpeedOptions, machine: MachineOptions, plot: Path | None = None) -> dict[str, Any]:
    """Everything that the report says of one speed on one machine: yuan, tokens a second, shares."""
    found = speed_of(speed)
    name, profile, changes = machine_of(machine, PHONE_PROFILE if speed.device else None)
    work = work_of(found, speed)
    ranges = ranges_of(machine.range)
    measured_range = found.batch_range if speed.served else found.decode_range
    if measured_range and SPEED not in ranges:
        ranges[SPEED] = (measured_range[0] / work.decode_tps, measured_range[1] / work.decode_tps)
    swings, fixed = sensitivity(profile, work, ranges)
    price = yuan_per_million(profile, work)
    if plot is not None:
        plots.save_tornado(swings, price, plot, title=f"{found.what.partition(': ')[0]} on {name}")
    prices = api.load()
    return {
        "speed": {"from": found.what, **{k: v for k, v in asdict(found).items() if k != "what" and v is not None}},
        "counted": {"served": speed.served, "input_share": speed.input_share, "tokens_per_second": work.tps},
        "cost_profile": name,
        "changed": changes,
        "machine": profile.model_dump(),
        "yuan_per_million": price,
        "tokens_per_yuan": cost.tokens_per_yuan(profile, work.tps) if price else None,
        "ways": ways(found, profile, speed),
        "report_example": _example(prices, name, changes, work),
        "sensitivity": [asdict(swing) for swing in swings],
        "not_varied": fixed,
        "apis": _apis(prices, speed.input_share, price),
        "prices_file": str(api.user_file()),
        "plot": str(plot) if plot else None,
    }


def compared(runs: list[str], speed: SpeedOptions, machine: MachineOptions, plot: Path | None = None) -> dict[str, Any]:
    """Scores and prices of several runs on one machine."""
    if speed.bench or speed.speed is not None or speed.device:
        raise ValueError("--against takes the speed that each run measured: leave --bench, --speed and --device out")
    name, profile, changes = machine_of(machine, None)
    shown, speeds = runs_of(runs, speed)
    found = against.compare(shown, speeds, profile, api.load(), input_share=speed.input_share, served=speed.served)
    score = f"mean of {', '.join(found.tasks)}, %"
    if plot is not None:
        plots.save_quality_price(found.points, plot, score_name=score)
    front = plots.pareto(found.points)
    return {
        "cost_profile": name,
        "changed": changes,
        "machine": profile.model_dump(),
        "tasks": found.tasks,
        "models": [
            {"name": n, "score": s, "yuan_per_million": p, "best_at_its_price": best}
            for (n, s, p), best in zip(found.points, front, strict=True)
        ],
        "notes": found.notes,
        "plot": str(plot) if plot else None,
    }


def runs_of(texts: list[str], speed: SpeedOptions) -> tuple[dict[str, results.RunResult], dict[str, measured.Measured]]:
    """Runs by the name to show, and the speeds of those given as RUN=BENCH."""
    pairs = [(text, "") if Path(text).exists() else text.partition("=")[::2] for text in dict.fromkeys(texts)]
    read = [(run, bench, results.read_run(Path(run))) for run, bench in pairs]
    names = [result.model.name for _, _, result in read]
    shown, speeds = {}, {}
    for run, bench, result in read:
        model = result.model.name
        name = model if names.count(model) == 1 else f"{model} ({run})"
        shown[name] = result
        if bench:
            speeds[name] = measured.read(Path(bench), model=model, context=speed.context, batch=speed.batch)
    return shown, speeds


def speed_of(speed: SpeedOptions) -> measured.Measured:
    """The speed that the options mean. Raises ValueError where they mean none, or several."""
    given = [
        name
        for name, there in (("--bench", speed.bench), ("--speed", speed.speed), ("--device", speed.device))
        if there is not None
    ]
    if len(given) != 1:
        raise ValueError(
            f"{' and '.join(given) or 'no speed'}: give one of --bench FILE (what `gangpao bench MODEL` printed), "
            "--speed TOKENS_A_SECOND or --device NAME (`gangpao cost --devices` lists them)"
        )
    _check_choice(speed)
    if speed.bench is not None:
        found = measured.read(speed.bench, model=speed.model, context=speed.context, batch=speed.batch)
    elif speed.device is not None:
        row, table = devices.get(speed.device), devices.load()
        found = measured.Measured(f"{row.title}, {row.soc}: {table.model} ({table.source})", row.tok_s)
    else:
        found = measured.Measured("--speed", speed.speed)
    return replace(found, prefill_tps=speed.prefill_speed) if speed.prefill_speed is not None else found


def _check_choice(speed: SpeedOptions) -> None:
    """Raises ValueError for options that choose among measurements where there are none to choose from."""
    if speed.bench is not None:
        return
    source = "--device" if speed.device is not None else "--speed"
    options = {
        "--served": speed.served or None, "--model": speed.model, "--context": speed.context, "--batch": speed.batch,
    }  # fmt: skip
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"{' and '.join(given)}: chooses among what was measured, and {source} is one speed: leave it out, or give --bench"
        )


def work_of(found: measured.Measured, speed: SpeedOptions) -> Workload:
    """What is counted of that speed. Raises ValueError for what was not measured."""
    if found.decode_tps is None and not speed.served:
        raise ValueError(f"{found.what}: only the speed of many answers together was measured: add --served")
    return against.workload(found, input_share=speed.input_share, served=speed.served)


def ways(found: measured.Measured, profile: cost.CostProfile, speed: SpeedOptions) -> list[dict[str, Any]]:
    """One answer at a time and many together, where both were measured."""
    out = []
    for what, tps in (("one answer at a time", found.decode_tps), (f"{found.batch} answers together", found.batch_tps)):
        if tps is not None and found.batch is not None:
            price = yuan_per_million(profile, Workload(tps, found.prefill_tps, speed.input_share))
            out.append({"what": what, "answers_tps": tps, "yuan_per_million": price})
    return out


def machine_of(machine: MachineOptions, default: str | None) -> tuple[str, cost.CostProfile, list[str]]:
    """Name of the profile, the profile with the changes of --set, and those changes. Raises ValueError naming a wrong one."""
    name, profile = cost.get_profile(machine.cost_profile or default)
    values: dict[str, Any] = {}
    for one in machine.set:
        values = config.merge(values, config.parse_override(one))
    return name, changed(profile, values, "--set"), list(machine.set)


def ranges_of(texts: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """NAME=LOW:HIGH by name. Raises ValueError for anything else."""
    out = {}
    for one in texts:
        name, _, values = one.partition("=")
        low, _, high = values.partition(":")
        if name not in INPUTS:
            raise ValueError(f"--range {one!r:.60}: there is no {name!r:.30}; there are {', '.join(INPUTS)}")
        try:
            out[name] = (float(low), float(high))
        except ValueError:
            raise ValueError(f"--range {one!r:.60}: write NAME=LOW:HIGH, for example price_yuan=300:1200") from None
        if not -math.inf < out[name][0] <= out[name][1] < math.inf:
            raise ValueError(f"--range {one!r:.60}: the low value comes first, and both are finite")
    return out


def _example(prices: api.ApiPrices, name: str, changes: list[str], work: Workload) -> dict[str, Any] | None:
    """The report's own figure beside ours, where this is its example."""
    example = prices.example
    if (name, work.tps) != (example.profile, example.tok_s) or changes:
        return None
    printed = example.printed_tokens_per_yuan
    return {
        "printed_tokens_per_yuan": printed,
        "printed_yuan_per_million": 1e6 / printed,
        "fits_tokens_per_second": work.tps * printed / cost.tokens_per_yuan(cost.get_profile(name)[1], work.tps),
        "source": example.source,
    }


def _apis(prices: api.ApiPrices, input_share: float, ours: float) -> list[dict[str, Any]]:
    out = []
    for name, row in prices.prices.items():
        price = prices.yuan_per_million(name, input_share)
        out.append(
            {
                "name": name,
                **row.model_dump(exclude_none=True, exclude={"scores"}),
                "yuan_per_million": price,
                "times_ours": price / ours if ours else None,
                "rate": prices.rate_line(name),
            }
        )
    return out
