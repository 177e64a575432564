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
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gangpao.atomic import read_json, write_json
from gangpao.sandbox import fit, plan, plot
from gangpao.sandbox.experiment import Language, Outcome, Submit, Text, join
from gangpao.sandbox.config import Size
from gangpao.sandbox.sweep import workers_of
from gangpao.sandbox.trial import Lab, Result, Spec, cost_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREDICTIONS = "predictions.json"
MIN_POINTS = 6
Kind = Literal["stable", "branch", "cosine"]


@dataclass(frozen=True, slots=True)
class Study:
    """The trials that the laws are fitted to."""

    stable: list[Result]
    branch: list[Result]
    cosine: list[Result]

    @property
    def flops(self) -> float:
        """What the stable runs and their decays cost."""
        return sum(r.flops for r in {r.key: r for r in (*self.stable, *self.branch)}.values())

    @property
    def separate_flops(self) -> float:
        """What a run of its own for each decay would have cost."""
        return sum(whole_flops(r) for r in self.branch)


def whole_flops(result: Result) -> float:
    """Of a branch together with the part of its parent that led to it; of other runs their own."""
    q = result.spec
    return result.flops * (q.parent_step + q.steps) / q.steps


def _size(result: Result) -> str:
    return f"{result.spec.width}x{result.spec.layers}"


def run(lab: Lab, submit: Submit) -> Outcome:
    """See the module. Raises ValueError for a grid from which no decay or no law can come."""
    grid, targets = specs_of(lab), target_specs(lab)
    order = [(kind, spec) for kind in grid for spec in grid[kind]]
    found: dict[str, list[Result]] = {"stable": [], "branch": [], "cosine": []}
    for (kind, _), result in zip(order, submit([spec for _, spec in order]), strict=True):
        found[kind].append(result)
    study = Study(**found)
    fits = fits_of(study)
    predicted = predict(lab, fits, targets) if targets else None
    ran = submit(targets) if targets else []
    return outcome_of(lab, study, fits, predicted, ran)


# --- which trials


def specs_of(lab: Lab) -> dict[Kind, list[Spec]]:
    """Stable runs, their decays, and cosine runs of the same lengths with the same warmup; large ones first."""
    c = lab.config.scaling
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
    c = lab.config.scaling
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


def target_specs(lab: Lab) -> list[Spec]:
    """The runs to predict: ordinary ones, with the common schedule."""
    c = lab.config.scaling
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


# --- the laws


@dataclass(frozen=True, slots=True)
class Fitted:
    """A law with the trials it comes from and their cost, or the reason why there is none."""

    law: fit.ScalingFit | None
    results: list[Result]
    flops: float
    why: str = ""


def fits_of(study: Study) -> dict[str, Fitted]:
    """wsd: the law. total: the same with N of all parameters. cosine: of all cosine runs. equal: of as many cosine runs as cost
    what the stable runs and decays did."""
    branch = [r for r in study.branch if r.bpb is not None]
    out = {"wsd": _fit(branch, study.flops), "total": _fit(branch, study.flops, total=True)}
    if out["wsd"].law is None:
        raise ValueError(f"scaling: no law from {len(branch)} trials: {out['wsd'].why}")
    cosine = [r for r in study.cosine if r.bpb is not None]
    if cosine:
        out["cosine"] = _fit(cosine, sum(r.flops for r in cosine))
        chosen = affordable(cosine, study.flops, out["wsd"].law.law)
        out["equal"] = _fit(chosen, sum(r.flops for r in chosen))
    return out


def _fit(results: Sequence[Result], flops: float, *, total: bool = False) -> Fitted:
    try:
        return Fitted(fit.fit_scaling(points_of(results, total=total)), list(results), flops)
    except ValueError as error:  # too few points, or all alike: the outcome says so
        return Fitted(None, list(results), flops, str(error))


def points_of(results: Sequence[Result], *, total: bool = False) -> list[fit.Point]:
    """N, D and held-out bits per byte of finished trials."""
    return [fit.Point(N=r.N_total if total else r.N, D=r.D, loss=r.bpb) for r in results if r.bpb is not None]


def affordable(results: Sequence[Result], flops: float, law: fit.ScalingLaw) -> list[Result]:
    """Trials that together cost no more than `flops` and still tell most about a law: from all of them, the one is dropped that
    takes the least information (determinant, at the law that is known) for its cost, until they fit; what fits again comes back.

    So the cheaper study is given its best chance; "the longest that fit" would leave it one token count.
    """
    rows = np.array([_sensitivity(law, r) for r in results])

    def information(kept: set[int]) -> float:
        picked = rows[sorted(kept)]
        return float(np.linalg.slogdet(picked.T @ picked + 1e-12 * np.eye(rows.shape[1]))[1])

    def cost(kept: set[int]) -> float:
        return sum(results[i].flops for i in kept)

    kept = set(range(len(results)))
    while cost(kept) > flops:
        now = information(kept)
        kept.remove(min(kept, key=lambda i: (now - information(kept - {i})) / results[i].flops))
    while back := [i for i in range(len(results)) if i not in kept and cost(kept | {i}) <= flops]:
        kept.add(max(back, key=lambda i: information(kept | {i})))
    return [results[i] for i in sorted(kept)]


def _sensitivity(law: fit.ScalingLaw, r: Result) -> list[float]:
    """Gradient of log L by E, log A, log B, alpha, beta."""
    loss, n, d = law.predict(r.N, r.D), law.A * r.N**-law.alpha, law.B * r.D**-law.beta
    return [v / loss for v in (1.0, n, d, -n * math.log(r.N), -d * math.log(r.D))]


# --- predictions


def predict(lab: Lab, fits: dict[str, Fitted], targets: Sequence[Spec]) -> dict[str, Any]:
    """What the laws say about the targets, on disk before a target is submitted.

    A file for the same points and targets is kept as it is. For others it is moved aside, but not when all targets have
    run by then: what is said so late is no prediction, and is not written. `before` says for each target whether its result was
    unknown.
    """
    path = lab.out / "scaling" / PREDICTIONS
    asked: list[dict[str, Any]] = []
    for q in targets:
        N, _, flops = cost_of(lab, q)
        asked.append({"size": f"{q.width}x{q.layers}", "N": N, "D": q.tokens, "seed": q.seed, "flops": flops})
    digest = fingerprint({name: f.results for name, f in fits.items()})
    old = read_json(path) if path.exists() else None
    if old is not None and old["points_sha256"] == digest and old["targets"] == asked:
        return dict(old)
    record = {
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "points_sha256": digest,
        "targets": asked,
        "before": [lab.result(spec) is None for spec in targets],
        "laws": {
            name: [_predicted(f.law, t["N"], t["D"]) for t in asked]
            for name, f in fits.items()
            if f.law is not None and name != "total"
        },
    }
    if old is not None and not any(record["before"]):
        return record
    if old is not None:
        path.rename(path.with_name(f"predictions-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return record


def fingerprint(groups: dict[str, list[Result]]) -> str:
    """sha256 of the points that the laws are fitted to."""
    points = {name: sorted([r.N, r.D, r.bpb] for r in results) for name, results in groups.items()}
    return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()


def _predicted(law: fit.ScalingFit, N: float, D: float) -> dict[str, float]:
    low, high = law.interval(N, D)
    return {"bpb": law.predict(N, D), "low": low, "high": high}


def judged(record: dict[str, Any], fits: dict[str, Fitted], ran: Sequence[Result]) -> list[dict[str, Any]]:
    """Predicted against actual, for each target and law; the actual loss is None where a target did not end well. study_share:
    what the trials of the law cost, of the target's cost."""
    out = []
    for i, (asked, result) in enumerate(zip(record["targets"], ran, strict=True)):
        for name, values in record["laws"].items():
            p, actual = values[i], result.bpb
            out.append({
                "law": name, **asked, "predicted": p["bpb"], "low": p["low"], "high": p["high"], "actual": actual,
                "error": None if actual is None else 100 * (p["bpb"] / actual - 1),
                "inside": None if actual is None else p["low"] <= actual <= p["high"],
                "before": record["before"][i], "study_share": fits[name].flops / asked["flops"],
            })  # fmt: skip
    return out


# --- the outcome


def outcome_of(
    lab: Lab, study: Study, fits: dict[str, Fitted], record: dict[str, Any] | None, ran: list[Result]
) -> Outcome:
    """Table, verdict, picture, and all that a plan needs."""
    law = fits["wsd"].law
    assert law is not None
    noise = seed_noise(study)
    tests = judged(record, fits, ran) if record else []
    everything = [*study.stable, *study.branch, *study.cosine, *ran]
    excluded = [
        (f"{_size(r)} {r.D:,} {r.spec.schedule} seed {r.spec.seed}", f"{r.state}: {r.why}".strip(": "))
        for r in everything
        if r.state != "done"
    ] + [(f"{p} in law {name}", why) for name, f in fits.items() if f.law for p, why in f.law.excluded]
    ratios = [size.width / size.layers for size in lab.config.scaling.sizes]
    facts = {
        "points": {name: [[r.N, r.N_total, r.D, r.bpb] for r in f.results] for name, f in fits.items()},
        "laws": {name: f.law.json() if f.law else {"why": f.why} for name, f in fits.items()},
        "flops": {name: f.flops for name, f in fits.items() if name != "total"} | {"separate": study.separate_flops},
        "noise": noise and noise.sigma, "targets": tests, "predictions": record, "conditions": plan.conditions(lab),
        "aspects": [min(ratios), max(ratios)], "speed": _speed(lab, study),
        "train_tokens": sum(shards.num_tokens for shards in lab.built.train.values()),
    }  # fmt: skip
    return Outcome(
        name="scaling",
        title={"en": "The law of loss over size and tokens", "zh": "损失随规模与 token 数的规律"},
        columns=_COLUMNS,
        rows=[*_rows("wsd", study.branch, fits["wsd"]), *_rows("cosine", study.cosine, fits.get("cosine"))]
        + [_target_row(t) for t in tests],
        verdict=join([*_law_said(fits, noise), *_cost_said(study, fits), *_tests_said(tests, noise)]),
        draw=lambda figure, language: _draw(figure, language, fits, tests),
        facts=facts,
        excluded=excluded,
        results=everything,
    )


def seed_noise(study: Study) -> fit.Noise | None:
    """Of one trial, from those that differ by the seed only; None with one seed."""
    groups: dict[tuple[int, int, str], list[float]] = {}
    for r in (*study.branch, *study.cosine):
        if r.bpb is not None:
            groups.setdefault((r.N, r.D, r.spec.schedule), []).append(r.bpb)
    return fit.seed_noise(list(groups.values()))


def _speed(lab: Lab, study: Study) -> float | None:
    """FLOP/s of the machine: of the largest size's trials, times the trials that ran at a time."""
    timed = [r for r in (*study.stable, *study.branch) if r.busy > 0 and r.state == "done"]
    most = max((r.N for r in timed), default=0)
    largest = [r for r in timed if most == r.N]
    busy = sum(r.busy for r in largest)
    return sum(r.flops for r in largest) / busy * workers_of(lab.config) if busy else None


_COLUMNS: dict[str, Text] = {
    "kind": {"en": "run", "zh": "训练"},
    "size": {"en": "size", "zh": "尺寸"},
    "N": {"en": "N", "zh": "N"},
    "D": {"en": "D, tokens", "zh": "D（token）"},
    "bpb": {"en": "bpb", "zh": "bpb"},
    "law": {"en": "the law says", "zh": "规律给出"},
    "error": {"en": "law's error, %", "zh": "规律误差（%）"},
    "interval": {"en": "95 % interval", "zh": "95 % 区间"},
    "flops": {"en": "FLOPs", "zh": "FLOPs"},
}


def _rows(kind: str, results: Sequence[Result], fitted: Fitted | None) -> list[dict[str, Any]]:
    rows = []
    for r in sorted(results, key=lambda r: (r.N, r.D, r.spec.seed)):
        law = fitted.law.predict(r.N, r.D) if fitted and fitted.law else None
        error = 100 * (law / r.bpb - 1) if law is not None and r.bpb is not None else None
        row = {"kind": kind, "size": _size(r), "N": r.N, "D": r.D, "bpb": r.bpb}
        rows.append({**row, "law": law, "error": error, "flops": r.flops})
    return rows


def _target_row(t: dict[str, Any]) -> dict[str, Any]:
    row = {"kind": f"target, law {t['law']}", "bpb": t["actual"], "law": t["predicted"]}
    interval = f"{t['low']:.4f} .. {t['high']:.4f}"
    return {**row, "interval": interval, **{key: t[key] for key in ("size", "N", "D", "error", "flops")}}


# --- what is said


_NAMES = {
    "wsd": ("Decays of stable runs", "由稳定段的退火"),
    "total": ("With N of all parameters", "若 N 取全部参数"),
    "cosine": ("All cosine runs", "由全部余弦训练"),
    "equal": ("Cosine runs of equal cost", "由同等开销的余弦训练"),
}


def _law_said(fits: dict[str, Fitted], noise: fit.Noise | None) -> list[tuple[str, str]]:
    said = []
    for name, f in fits.items():
        en, zh = _NAMES[name]
        if f.law is None:
            said.append((f"{en} give no law: {f.why}.", f"{zh}得不到规律：{f.why}。"))
            continue
        law, C = f.law.law, max(6 * p.N * p.D for p in f.law.points)
        formula = f"L = {law.E:.4g} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}"
        ranges = ", ".join(
            f"{key} {low:.3f} .. {high:.3f}" for key in ("alpha", "beta") for low, high in [f.law.bounds(key)]
        )
        ratio = "{:.3g} ({:.3g} .. {:.3g})".format(law.ratio(C), *f.law.ratio_interval(C))
        at, bound = f"6ND = {C:.3g}", ", ".join(f.law.undetermined)
        en = f"{en} ({len(f.law.points)} points): {formula}, 95 % intervals {ranges}; the best D/N at {at} is {ratio}."
        zh = f"{zh}（{len(f.law.points)} 个点）：{formula}，95 % 区间 {ranges}；{at} 时最优 D/N 为 {ratio}。"
        en += f" The points do not determine {bound}: run a wider range." if bound else ""
        said.append((en, zh + (f"这些点定不出 {bound}：请扩大范围。" if bound else "")))
    said += _held_out_said(fits["wsd"])
    if noise is None:
        en = "One seed: the noise between seeds is not known, and the intervals come from the scatter around the law."
        return [*said, (en, "只有一个种子：种子间噪声未知，区间来自各点对规律的离散。")]
    return [
        *said,
        (f"Noise between seeds: {noise.sigma:.4f} bits per byte.", f"种子间噪声：每字节 {noise.sigma:.4f} 比特。"),
    ]


def _held_out_said(f: Fitted) -> list[tuple[str, str]]:
    """Evidence that does not rest on the intervals, where there are sizes enough."""
    try:
        h = fit.held_out(points_of(f.results))
    except ValueError:
        return []
    worst, inside = f"{100 * h.worst:.2f} %", f"{h.inside:.0%}"
    en = f"Fitted without the largest size, the law misses it by at most {worst}; {inside} of its points lie in the intervals."
    return [(en, f"不用最大尺寸拟合时，规律对它的误差最大 {worst}，其中 {inside} 的点落在区间内。")]


def _cost_said(study: Study, fits: dict[str, Fitted]) -> list[tuple[str, str]]:
    one, each = study.flops, study.separate_flops
    en = f"Stable runs and decays cost {one:.3g} FLOPs, a run for every point {each:.3g}: {each / one:.2f} times as much."
    zh = f"稳定段与退火共 {one:.3g} FLOPs，每个点单独训练共 {each:.3g}：是前者的 {each / one:.2f} 倍。"
    said = [(en, zh)]
    if "equal" in fits:
        f = fits["equal"]
        tokens: dict[str, list[str]] = {}
        for r in f.results:
            tokens.setdefault(_size(r), []).append(f"{r.D:,}")
        which, n = "; ".join(f"{size} {' '.join(counts)}" for size, counts in tokens.items()), len(f.results)
        en = f"Of the cosine runs, {n} ({f.flops:.3g} FLOPs) cost no more and determine a law best: {which}."
        said.append((en, f"余弦训练中取 {n} 个（{f.flops:.3g} FLOPs），开销不超过前者且最能确定规律：{which}。"))
    return said


def _tests_said(tests: list[dict[str, Any]], noise: fit.Noise | None) -> list[tuple[str, str]]:
    if not tests:
        en = "No larger run was predicted: name scaling.targets to test the law."
        return [(en, "没有预测更大的训练：请给出 scaling.targets 来检验规律。")]
    said = []
    for t in tests:
        en, zh = _NAMES[t["law"]]
        where = f"{t['size']} {t['D']:,}"
        if t["actual"] is None:
            said.append((f"The target {where} did not end well.", f"目标 {where} 没有正常结束。"))
            continue
        numbers = f"{t['predicted']:.4f} ({t['low']:.4f} .. {t['high']:.4f})"
        inside = ("inside", "之内") if t["inside"] else ("outside", "之外")
        late = ("", "") if t["before"] else (" Said after the run, it is no prediction.", "在训练之后给出，不算预测。")
        share, error = f"{t['study_share']:.1%}", f"{t['error']:+.2f} %"
        en = f"Target {where}, {en}: predicted {numbers}, came {t['actual']:.4f}, error {error}, {inside[0]} the interval;"
        zh = f"目标 {where}，{zh}：预测 {numbers}，实际 {t['actual']:.4f}，误差 {error}，在区间{inside[1]}；"
        en = f"{en} the study cost {share} of this run.{late[0]}"
        said.append((en, f"{zh}研究的开销为该训练的 {share}。{late[1]}"))
    if noise is not None:
        two = f"{noise.wide():.4f}"
        en = f"A target is one run, so {two} of a difference may be its seed."
        said.append((en, f"每个目标只训练一次，{two} 的差异可能来自种子。"))
    return said


# --- the picture

_WORDS: dict[str, Text] = {
    "D": {"en": "D, tokens", "zh": "D（token）"},
    "bpb": {"en": "bits per byte", "zh": "每字节比特"},
    "predicted": {"en": "predicted bits per byte", "zh": "预测的每字节比特"},
    "actual": {"en": "actual bits per byte", "zh": "实际的每字节比特"},
    "fitted": {"en": "fitted", "zh": "参与拟合"},
}


def _draw(figure: Figure, language: Language, fits: dict[str, Fitted], tests: list[dict[str, Any]]) -> None:
    """Left: loss against D for each size with the law. Right: what the law says against what came."""
    word = plot.words(_WORDS, language)
    left, right = figure.subplots(1, 2)
    law = fits["wsd"].law
    assert law is not None
    results = fits["wsd"].results
    ends = [min(r.D for r in results) / 1.3, 1.3 * max([r.D for r in results] + [t["D"] for t in tests])]
    for i, N in enumerate(sorted({r.N for r in results})):
        here = [r for r in results if r.N == N]
        left.plot([r.D for r in here], [r.bpb for r in here if r.bpb is not None], f"C{i}o")
        grid = np.geomspace(ends[0], ends[1], 50)
        name = f"{_size(here[0])}  N = {N:,}"
        left.plot(grid, [law.predict(N, float(D)) for D in grid], f"C{i}-", label=name)
    right.plot([law.predict(r.N, r.D) for r in results], [r.bpb for r in results], "C7.", label=word["fitted"])
    for name, marker in (("wsd", "*"), ("cosine", "x"), ("equal", "+")):
        done = [t for t in tests if t["law"] == name and t["actual"] is not None]
        if not done:
            continue
        spread = [[t["predicted"] - t["low"] for t in done], [t["high"] - t["predicted"] for t in done]]
        x, y = [t["predicted"] for t in done], [t["actual"] for t in done]
        right.errorbar(x, y, xerr=np.maximum(spread, 0), fmt=marker, label=name)
        if name == "wsd":
            left.plot([t["D"] for t in done], y, "k*", markersize=10)
    low, high = right.get_xlim()
    right.plot([low, high], [low, high], "k:", linewidth=0.8)
    for axes, across, up in ((left, "D", "bpb"), (right, "predicted", "actual")):
        axes.set(xlabel=word[across], ylabel=word[up])
        axes.legend(fontsize=8)
    left.set_xscale("log")
    plot.set_font(figure, language)
