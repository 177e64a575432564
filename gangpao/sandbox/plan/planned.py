"""Plans that are kept beside their sandbox, and what came of them: predicted against came.

A plan is written to plans/<name>/plan.json with its time when it is made, and never changed; a plan of the same recipe that
predicts something else has another name. A run of `gangpao train` is known as a plan's by its configuration, whatever its seed:
several seeds of one plan stand below one another. What came of a run is kept beside the plan (runs.json), where the report
finds it.

What it gives up: nobody watches the run; it is compared when asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gangpao.atomic import read_json, write_json
from gangpao.sandbox.bilingual import Language, Text
from gangpao.sandbox.experiments.text.page import show
from gangpao.sandbox.plan.plan import UNSURE, Plan
from gangpao.train.config import TrainConfig
from gangpao.train.progress import read_metrics
from gangpao.train.run_file import FREE, read_run

PLANS, PLAN, RUNS = "plans", "plan.json", "runs.json"
# Where files lie, and what makes another run of the same recipe. Data are compared by their fingerprint.
_NOT_RECIPE = FREE | {"data", "data_set", "seed", "device"}


def keep(plan: Plan, out: Path, made: dict[str, Any]) -> Path:
    """Write a plan into the sandbox's folder, unless the same one is there; its folder. made: of `provenance`."""
    said = plan.json()
    decides = [_recipe(said["config"]), made["data_fingerprint"], said["choice"]["loss"], list(said["interval"])]
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
    folder = out / PLANS / name
    if not (folder / PLAN).exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = {"en": plan.markdown("en"), "zh": plan.markdown("zh")}
        write_json(folder / PLAN, {"name": name, "written": made["when"], "made": made, "text": text, **said})
    return folder


def plans(out: Path) -> list[dict[str, Any]]:
    """What was planned in a sandbox, the newest first, each with its runs: a list of `Came` as JSON under "runs"."""
    found = []
    for path in sorted((out / PLANS).glob(f"*/{PLAN}")):
        runs = read_json(path.with_name(RUNS)) if path.with_name(RUNS).exists() else []
        found.append({**read_json(path), "runs": runs})
    return sorted(found, key=lambda plan: str(plan["written"]), reverse=True)


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _NOT_RECIPE}


@dataclass(frozen=True, slots=True)
class Came:
    """A run against what was predicted of it. bpb: held-out bits per byte at its end; low, high: 95 % interval of the prediction;
    before: was it written before the run began? wide: is the interval so wide that it says little?"""

    run: str
    plan: str
    size: str
    N: int
    D: int
    seed: int
    predicted: float
    low: float
    high: float
    bpb: float
    said: str
    started: str

    @property
    def inside(self) -> bool:
        return self.low <= self.bpb <= self.high

    @property
    def before(self) -> bool:
        return self.said <= self.started

    @property
    def error(self) -> float:
        """Percent of what came."""
        return 100 * (self.predicted / self.bpb - 1)

    @property
    def wide(self) -> bool:
        return self.high - self.low > 2 * UNSURE * self.predicted

    def json(self) -> dict[str, Any]:
        """Plain data."""
        names = ("run", "plan", "size", "N", "D", "seed", "predicted", "low", "high", "bpb", "said", "started")
        own = {name: getattr(self, name) for name in names}
        return own | {"error": self.error, "inside": self.inside, "before": self.before, "wide": self.wide}


def compare(run: Path, out: Path) -> list[Came]:
    """A finished run against every prediction of its recipe, the newest last; also written beside the plans.

    Raises ValueError for a folder without a finished run, a sandbox without plans, and a run that no plan describes.
    """
    known = read_run(run)
    if known is None:
        raise ValueError(f"{run}: there is no run; `gangpao train PLAN.toml --out {run}` makes one")
    there = plans(out)
    if not there:
        raise ValueError(f"{out / PLANS}: no plan is kept here; `gangpao sandbox plan ... --out {out}` keeps one")
    bpb = _final(run, known)
    differ = {plan["name"]: _differing(plan, known) for plan in there}
    mine = [plan for plan in reversed(there) if not differ[plan["name"]]]
    if not mine:
        name, keys = min(differ.items(), key=lambda item: len(item[1]))
        raise ValueError(
            f"{run}: no plan in {out / PLANS} describes this run; the nearest is {name}, which has another {', '.join(keys[:4])}: "
            "give the run of that plan, or make a plan of this configuration"
        )
    came = [_came(run, known, plan, bpb) for plan in mine]
    for one, plan in zip(came, mine, strict=True):
        others = [r for r in plan["runs"] if r["run"] != one.run]
        write_json(out / PLANS / one.plan / RUNS, [*others, one.json()])
    return came


def _came(run: Path, known: Mapping[str, Any], plan: Mapping[str, Any], bpb: float) -> Came:
    choice, (low, high) = plan["choice"], plan["interval"]
    return Came(
        run=str(run), plan=plan["name"], size=f"{choice['width']}x{choice['layers']}", N=choice["N"], D=choice["D"],
        seed=known["config"]["seed"], predicted=choice["loss"], low=low, high=high, bpb=bpb, said=plan["written"],
        started=known["started"],
    )  # fmt: skip


def _final(run: Path, known: Mapping[str, Any]) -> float:
    """Held-out bits per byte at the end of a run. Raises ValueError where it has not ended, or was not judged."""
    steps = sum(TrainConfig.model_validate(known["config"]).stage_steps())
    lines = read_metrics(run) if (run / "metrics.jsonl").exists() else []
    last = max((line["step"] for line in lines if "loss" in line), default=0)
    if last < steps:
        raise ValueError(
            f"{run}: the run is at step {last} of {steps}; go on with the same `gangpao train` line, then compare"
        )
    ends = [line["heldout"] for line in lines if isinstance(line.get("heldout"), dict) and line["step"] == steps]
    if not ends or "heldout_bpb" not in ends[-1]:
        raise ValueError(f"{run}: its end was not judged on held-out text, so there is nothing to compare")
    return float(ends[-1]["heldout_bpb"])


def _differing(plan: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Names of what a run was told otherwise than its plan."""
    wanted, there = _recipe(plan["config"]), _recipe(known["config"])
    if wanted.get("precision") == "auto":  # decided when the run began
        there["precision"] = "auto"
    differ = [key for key in wanted if wanted[key] != there.get(key)]
    judged = "limit_tokens"
    if plan["config"]["evaluation"][judged] != known["config"]["evaluation"].get(judged):
        differ.append(f"evaluation.{judged}")
    if plan["made"]["data_fingerprint"] != known["data"]["fingerprint"]:
        differ.append("data")
    return differ


# --- shown

_COLUMNS: dict[str, Text] = {
    "run": Text("run", "训练"),
    "size": Text("size", "尺寸"),
    "D": Text("D, tokens", "D（token）"),
    "seed": Text("seed", "种子"),
    "predicted": Text("predicted bpb", "预测 bpb"),
    "interval": Text("95 % interval", "95 % 区间"),
    "bpb": Text("came", "实际"),
    "error": Text("error, %", "误差（%）"),
    "inside": Text("in the interval", "在区间内"),
    "said": Text("predicted at", "预测时间"),
}
_YES: dict[bool, Text] = {True: Text("yes", "是"), False: Text("no", "否")}


def table(runs: Sequence[Mapping[str, Any]], language: Language) -> list[list[str]]:
    """Rows of cells, the headings first. runs: of `Came.json`."""
    rows = [[heading.of(language) for heading in _COLUMNS.values()]]
    for r in runs:
        cells = {
            **r, "inside": _YES[r["inside"]], "interval": f"{r['low']:.4f} .. {r['high']:.4f}", "run": Path(r["run"]).name,
            "predicted": f"{r['predicted']:.4f}", "bpb": f"{r['bpb']:.4f}", "error": f"{r['error']:+.2f}",
        }  # fmt: skip
        rows.append([show(cells[key], language) for key in _COLUMNS])
    return rows


def markdown(runs: Sequence[Mapping[str, Any]], language: Language) -> str:
    """The table, and a sentence for each run."""
    head, *rest = ["| " + " | ".join(cells) + " |" for cells in table(runs, language)]
    lines = [head, "|" + "-|" * len(_COLUMNS), *rest, ""]
    return "\n".join([*lines, *(f"- {sentence(r).of(language)}" for r in runs)]) + "\n"


def sentence(r: Mapping[str, Any]) -> Text:
    """What was predicted and what came."""
    numbers = f"{r['predicted']:.4f} ({r['low']:.4f} .. {r['high']:.4f})"
    came = f"{r['bpb']:.4f}"
    where = Text("inside", "内") if r["inside"] else Text("outside", "外")
    en = f"{r['size']}, seed {r['seed']}: predicted {numbers}, came {came}, {where.en} the interval."
    zh = f"{r['size']}，种子 {r['seed']}：预测 {numbers}，实际 {came}，在区间{where.zh}。"
    if r["inside"] and r["wide"]:
        en, zh = f"{en} It is so wide that this says little.", f"{zh}区间过宽，说明不了多少。"
    if not r["before"]:
        en, zh = f"{en} Said after the run began, it is no prediction.", f"{zh}在训练开始之后给出，不算预测。"
    return Text(en, zh)
