"""The law of loss over model size N and tokens D, from one stable run a size, and a test of it on larger runs.

The idea (MiniCPM, arXiv:2404.06395, section 4): a stable run can be decayed at any point, so one run a size gives the losses of
all token counts, at a cost that grows with the longest one and not with their sum. On these points
L(N, D) = E + A / N^alpha + B / D^beta is fitted. Beside it, if asked, a plain Chinchilla fit: a cosine run for each point, with
as many of them as cost no more than the stable runs and their decays did.

A law is worth what it predicts: the losses of larger runs are written to predictions.json, with the time and the fingerprint of
the points, before those runs are submitted, and are never changed afterwards.

What it gives up: one learning rate for all sizes (the transfer rule's), one batch size.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gangpao import cost, machine
from gangpao.atomic import read_json, write_json
from gangpao.sandbox.experiments import scaling_text
from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.outcome import Outcome, Submit
from gangpao.sandbox.experiments.scaling_study import Fitted, Study, fits_of, seed_noise, size_of
from gangpao.sandbox.laws import fit
from gangpao.sandbox.laws.coupled import CoupledFit
from gangpao.sandbox.trials.config import ExperimentTable, Size, of_each, pairs_once
from gangpao.sandbox.trials.field_types import Once, Positive, Seed, Some, Tokens
from gangpao.sandbox.trials.queue import workers_of
from gangpao.sandbox.trials.trial import Lab, Result, Spec, cost_of

PREDICTIONS = "predictions.json"
MIN_POINTS = 6
Kind = Literal["stable", "branch", "cosine"]


class Ladder(Size):
    """A size of the law, with token counts of its own where small models are to be followed further than large ones."""

    tokens: Once[Tokens] = Field(default=(), description="Where its decays end; empty: at those of all sizes.")


class ScalingConfig(ExperimentTable):
    """One stable run a size, decays branched at several token counts, and a law of loss over N and D."""

    sizes: Some[Ladder] = (Ladder(width=64, layers=2), Ladder(width=96, layers=3), Ladder(width=128, layers=4))
    tokens: Some[Tokens] = Field(default=(500_000, 1_000_000, 2_000_000, 4_000_000), description="Where decays end.")
    cosine: bool = Field(
        default=False, description="Also cosine runs, one for each point: a plain Chinchilla fit beside ours."
    )
    floor: tuple[Annotated[float, Field(ge=0)], Positive] | None = Field(
        default=None,
        description="Bits per byte that no model is expected to get below, and the standard deviation of that: also a law of "
        "coupled terms (gangpao.sandbox.laws.coupled).",
    )
    targets: tuple[Size, ...] = Field(default=(), description="Larger runs, predicted before they start, then run.")
    target_tokens: tuple[Tokens, ...] = Field(
        default=(), description="Of each target, or one number for all; empty: the largest of tokens."
    )
    seeds: Some[Seed] = (0,)

    @field_validator("target_tokens")
    @classmethod
    def _belong(cls, tokens: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if len(tokens) == 1 or not info.data.get("targets"):  # without targets it is not looked at
            return tokens
        return of_each(tokens, info, "targets", ", or one for all")

    @model_validator(mode="after")
    def _differ(self) -> ScalingConfig:
        several = self.target_tokens if self.targets and len(self.target_tokens) > 1 else ()
        pairs_once("targets", self.targets, several)
        return self


def run(lab: Lab, submit: Submit) -> Outcome:
    """See the module. Raises ValueError for a grid from which no decay or no law can come."""
    grid, targets = specs_of(lab), later(lab)
    order = [(kind, spec) for kind in grid for spec in grid[kind]]
    found: dict[str, list[Result]] = {"stable": [], "branch": [], "cosine": []}
    for (kind, _), result in zip(order, submit([spec for _, spec in order]), strict=True):
        found[kind].append(result)
    study = Study(**found)
    fits = fits_of(study, floor=lab.config.table(ScalingConfig).floor)
    predicted = predict(lab, fits, targets) if targets else None
    ran = submit(targets) if targets else []
    return outcome_of(lab, study, fits, predicted, ran)


# --- which trials


def specs_of(lab: Lab) -> dict[Kind, list[Spec]]:
    """Stable runs, their decays, and cosine runs of the same lengths with the same warmup; large ones first."""
    c = lab.config.table(ScalingConfig)
    shape = lab.config.common.schedule if lab.config.common.schedule.startswith("wsd") else "wsd"
    ladder = _ladder(lab)
    out: dict[Kind, list[Spec]] = {"stable": [], "cosine": [], "branch": []}  # parents first, short decays last
    for size, horizons in ladder.items():
        starts, warmup = _starts(lab, horizons)
        for seed in c.seeds:
            one = {"width": size.width, "layers": size.layers, "seed": seed}
            stable = lab.stable_run(starts.values(), warmup, **one, schedule=shape)
            out["stable"].append(stable)
            for h in reversed(horizons):
                out["branch"].append(lab.branch(stable, starts[h], h - starts[h]))
                if c.cosine:
                    out["cosine"].append(lab.spec(**one, schedule="cosine", steps=h, warmup=warmup / h))
    return out


def _ladder(lab: Lab) -> dict[Size, list[int]]:
    """Sizes, large ones first, and the steps at which their decays end. Raises ValueError where no law can come from them."""
    c = lab.config.table(ScalingConfig)
    found: dict[Size, set[int]] = {}
    for size in sorted(c.sizes, key=lambda s: -s.width * s.width * s.layers):
        steps = {lab.spec(tokens=tokens).steps for tokens in size.tokens or c.tokens}
        found.setdefault(Size(width=size.width, layers=size.layers), set()).update(steps)
    points = sum(map(len, found.values()))
    if len(found) < 2 or len(set().union(*found.values())) < 2 or points < MIN_POINTS:
        counts = f"{len(found)} sizes with {points} token counts in all"
        raise ValueError(f"scaling: {counts} are too few for a law: two or more of both, and {MIN_POINTS} points")
    return {size: sorted(steps) for size, steps in found.items()}


def _starts(lab: Lab, horizons: list[int]) -> tuple[dict[int, int], int]:
    """Where the decays of a stable run begin, by their ends, and its steps of warmup."""
    common = lab.config.common
    starts = {h: h - round(common.decay * h) for h in horizons}
    short = [h for h in horizons if not 0 < starts[h] < h]
    if short:
        raise ValueError(
            f"scaling.tokens: {short[0]} steps with common.decay {common.decay:g} leave no stable part or no decay; take longer "
            "runs, a smaller batch, or a decay between 0 and 1"
        )
    warmup = round(common.warmup * horizons[-1])
    if starts[horizons[0]] <= warmup:
        raise ValueError(
            f"scaling.tokens: the shortest run begins to decay at step {starts[horizons[0]]}, within the {warmup} steps of warmup "
            "(common.warmup of the longest): take a larger smallest count or a shorter warmup"
        )
    return starts, warmup


def later(lab: Lab) -> list[Spec]:
    """The runs to predict, which are asked for when the laws are known: ordinary ones, with the common schedule."""
    c = lab.config.table(ScalingConfig)
    if not c.targets:
        return []
    tokens = c.target_tokens or (max(c.tokens),)
    if len(tokens) not in (1, len(c.targets)):
        raise ValueError(
            f"scaling.target_tokens has {len(tokens)} numbers for {len(c.targets)} targets: give one for each, or one for all"
        )
    counts = tokens if len(tokens) == len(c.targets) else tokens * len(c.targets)
    seed = c.seeds[0]
    return [
        lab.spec(width=size.width, layers=size.layers, tokens=count, seed=seed)
        for size, count in zip(c.targets, counts, strict=True)
    ]


# --- predictions


def predict(lab: Lab, fits: dict[str, Fitted], targets: Sequence[Spec]) -> dict[str, Any]:
    """What the laws say about the targets, on disk before a target is submitted.

    A file for the same points, floor and targets is kept as it is. For others it is moved aside, but not when all targets have
    run by then: what is said so late is no prediction, and is not written. With further targets for the same points, what was
    said of the old ones stays; under another floor that of the laws without one stays. For each target, `stamps` says when that
    was and `before` whether its result was unknown; `coupled` the same of the law with a floor, and under which.
    """
    path = lab.out / "scaling" / PREDICTIONS
    asked: list[dict[str, Any]] = []
    for q in targets:
        N, _, flops = cost_of(lab, q)
        asked.append({"size": f"{q.width}x{q.layers}", "N": N, "D": q.tokens, "seed": q.seed, "flops": flops})
    floor = lab.config.table(ScalingConfig).floor
    record = _said_now(fits, asked, [lab.result(spec) is None for spec in targets], floor)
    late = not any(record["before"])
    old = read_json(path) if path.exists() else None
    if old is not None and old["points_sha256"] == record["points_sha256"]:
        if old.get("digest", record["digest"]) == record["digest"] and old["targets"] == asked:
            return dict(old)
        _keep(record, old)
    if old is not None and late:
        return record
    if old is not None:
        path.rename(path.with_name(f"predictions-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return record


def _said_now(
    fits: dict[str, Fitted], asked: list[dict[str, Any]], before: list[bool], floor: tuple[float, float] | None
) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    points = fingerprint({name: f.results for name, f in fits.items()})
    known = list(floor) if floor else None
    own = {"stamps": [now for _ in asked], "before": list(before), "floors": [known for _ in asked]}
    return {
        "written": now,
        "points_sha256": points,
        "digest": hashlib.sha256(json.dumps([points, known]).encode()).hexdigest(),
        "targets": asked,
        "stamps": [now for _ in asked],
        "before": before,
        **({"coupled": own} if floor else {}),
        "laws": {
            name: [_predicted(f.law, t["N"], t["D"]) for t in asked]
            for name, f in fits.items()
            if f.law is not None and name != "total"
        },
    }


def _keep(record: dict[str, Any], old: dict[str, Any]) -> None:
    """What was said of a target from the same points stays as it was, with its time; that of the law with a floor under the same
    floor only, or under one that an older version did not write."""
    stamps = old.get("stamps", [old["written"] for _ in old["targets"]])
    own = old.get("coupled", {"stamps": stamps, "before": old["before"], "floors": [None for _ in old["targets"]]})
    for i, asked in enumerate(record["targets"]):
        if asked not in old["targets"]:
            continue
        j = old["targets"].index(asked)
        record["stamps"][i], record["before"][i] = stamps[j], old["before"][j]
        for name in record["laws"].keys() & old["laws"].keys() - {"coupled"}:
            record["laws"][name][i] = old["laws"][name][j]
        both = "coupled" in record["laws"] and "coupled" in old["laws"]
        if both and own["floors"][j] in (None, record["coupled"]["floors"][i]):
            record["laws"]["coupled"][i] = old["laws"]["coupled"][j]
            for key in own:
                record["coupled"][key][i] = own[key][j]


def fingerprint(groups: dict[str, list[Result]]) -> str:
    """sha256 of the points that the laws are fitted to."""
    points = {name: sorted([r.N, r.D, r.bpb] for r in results) for name, results in groups.items()}
    return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()


def _predicted(law: fit.ScalingFit | CoupledFit, N: float, D: float) -> dict[str, float]:
    low, high = law.interval(N, D)
    return {"bpb": law.predict(N, D), "low": low, "high": high}


def judged(record: dict[str, Any], fits: dict[str, Fitted], ran: Sequence[Result]) -> list[dict[str, Any]]:
    """Predicted against actual, for each target and law; the actual loss is None where a target did not end well. said: when it
    was predicted; floor: under which, None for laws without one or where it was not written. study_share: what the trials of the
    law cost, of the target's cost."""
    out = []
    for i, (asked, result) in enumerate(zip(record["targets"], ran, strict=True)):
        for name, values in record["laws"].items():
            p, actual = values[i], result.bpb
            own = record.get(name, record)  # the law with a floor may have been asked at another time
            out.append({
                "law": name, **asked, "predicted": p["bpb"], "low": p["low"], "high": p["high"], "actual": actual,
                "error": None if actual is None else 100 * (p["bpb"] / actual - 1),
                "inside": None if actual is None else p["low"] <= actual <= p["high"],
                "before": own["before"][i], "said": own.get("stamps", [record["written"]] * (i + 1))[i],
                "floor": own["floors"][i] if "floors" in own else None, "study_share": fits[name].flops / asked["flops"],
            })  # fmt: skip
    return out


# --- the outcome


def outcome_of(
    lab: Lab, study: Study, fits: dict[str, Fitted], record: dict[str, Any] | None, ran: list[Result]
) -> Outcome:
    """Table, verdict, picture, and all that a plan needs."""
    noise = seed_noise(study)
    tests = judged(record, fits, ran) if record else []
    everything = [*study.stable, *study.branch, *study.cosine, *ran]
    excluded = [
        (f"{size_of(r)} {r.D:,} {r.spec.schedule} seed {r.spec.seed}", f"{r.state}: {r.why}".strip(": "))
        for r in everything
        if r.state != "done"
    ] + [(f"{p} in law {name}", why) for name, f in fits.items() if f.additive for p, why in f.additive.excluded]
    ratios = [size.width / size.layers for size in lab.config.table(ScalingConfig).sizes]
    facts = {
        "points": {name: [[r.N, r.N_total, r.D, r.bpb] for r in f.results] for name, f in fits.items()},
        "laws": {name: f.law.json() if f.law else {"why": f.why} for name, f in fits.items()},
        "flops": {name: f.flops for name, f in fits.items() if name != "total"} | {"separate": study.separate_flops},
        "noise": noise and noise.sigma, "targets": tests, "predictions": record, "conditions": conditions(lab),
        "aspects": [min(ratios), max(ratios)], "speed": _speed(lab, study),
        "train_tokens": sum(shards.num_tokens for shards in lab.built.train.values()),
    }  # fmt: skip
    return Outcome(
        name="scaling",
        title={"en": "The law of loss over size and tokens", "zh": "损失随规模与 token 数的规律"},
        columns=scaling_text.COLUMNS,
        rows=scaling_text.rows(study, fits, tests),
        verdicts=scaling_text.verdicts(fits, tests, noise),
        verdict=scaling_text.told(study, fits, tests, noise),
        draw=lambda figure, language: scaling_text.draw(figure, language, fits, tests),
        facts=facts,
        excluded=excluded,
        results=everything,
    )


def _speed(lab: Lab, study: Study) -> float | None:
    """FLOP/s of the machine: of the largest size's trials, times the trials that ran at a time when they did, never more than this
    machine has cores."""
    timed = [r for r in (*study.stable, *study.branch) if r.busy > 0 and r.state == "done"]
    most = max((r.N for r in timed), default=0)
    largest = [r for r in timed if most == r.N]
    busy, cores = sum(r.busy for r in largest), machine.physical_cores()
    return sum(r.flops * min(cores, _at_a_time(lab, r)) for r in largest) / busy if busy else None


def _at_a_time(lab: Lab, r: Result) -> float:
    """How many trials shared the machine. An older version wrote it only as the share of the price; else as many as would now."""
    if r.workers:
        return r.workers
    share = cost.yuan(cost.get_profile(lab.config.cost_profile)[1], r.seconds) / r.yuan if r.yuan else 0.0
    same_price = share >= 0.99 and abs(share - round(share)) < 0.01
    return round(share) if same_price else workers_of(lab.config)
