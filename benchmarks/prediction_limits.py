"""How well can a study of a twentieth of a target predict it at all? configs/sandbox-prediction.toml again and again, synthetic.

    python benchmarks/prediction_limits.py --rounds 20

Truth is the law fitted to all points of the result file, targets among them; points scatter about it as the real ones do. Each
round fits them as the study did, with what the study took the floor to be, and with the floor known. Printed is the error at each
target in percent: its mean over the rounds, and its standard deviation. The last line is JSON.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

from gangpao.sandbox.experiments.config import load_sandbox_config
from gangpao.sandbox.laws.coupled import CoupledFit, fit_coupled
from gangpao.sandbox.laws.scaling_law import Point

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"\| (wsd|target, law coupled) \| \S+ \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) ")


def points_of(file: Path) -> tuple[list[Point], list[Point]]:
    """The fitted points and the targets of a result file."""
    found: dict[str, list[Point]] = {"wsd": [], "target, law coupled": []}
    for kind, N, D, loss in ROW.findall(file.read_text(encoding="utf-8")):
        found[kind].append(Point(int(N.replace(",", "")), int(D.replace(",", "")), float(loss)))
    return found["wsd"], found["target, law coupled"]


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--file", type=Path, help="a result file; the newest of sandbox_prediction_* where not given")
    arguments = parser.parse_args()
    fitted, targets = points_of(
        arguments.file or max((ROOT / "benchmarks/results").glob("sandbox_prediction_*.md"), key=_date)
    )
    taken = load_sandbox_config(ROOT / "configs/sandbox-prediction.toml").scaling.floor
    assert taken is not None
    truth = fit_coupled([*fitted, *targets], floor=taken)
    lines = {"the study": fit_coupled(fitted, floor=taken), "all points": truth}
    for name, fit in lines.items():
        errors = ", ".join(f"{100 * (fit.predict(t.N, t.D) / t.loss - 1):+.2f}" for t in targets)
        print(f"{name}: E {fit.best[0]:.2f}, p {fit.best[5]:.2f}, scatter {fit.sigma:.2%}; errors {errors} %")
    low, high = truth.bounds("E")
    known = (float(truth.draws[:, 0].mean()), (high - low) / 4)
    rng = np.random.default_rng(0)
    out = {}
    for name, floor in (("floor as the study took it", taken), ("floor known", known)):
        errors = np.array([_errors(truth, fitted, targets, floor, rng) for _ in range(arguments.rounds)])
        mean, spread = errors.mean(0), errors.std(0)
        print(
            f"{name} ({floor[0]:.2f} ± {floor[1]:.2f}):",
            ", ".join(f"{m:+.1f} ± {s:.1f}" for m, s in zip(mean, spread, strict=True)),
        )
        out[name] = {"mean": mean.round(3).tolist(), "sd": spread.round(3).tolist(), "floor": floor}
    print(json.dumps(out))


def _date(file: Path) -> str:
    return file.stem.rpartition("_")[2]


def _errors(
    truth: CoupledFit, fitted: list[Point], targets: list[Point], floor: tuple[float, float], rng: np.random.Generator
) -> list[float]:
    """Percent by which a fit of new points about the truth misses it at the targets."""
    scatter = 1 + truth.sigma * rng.standard_normal(len(fitted))
    again = [Point(p.N, p.D, truth.predict(p.N, p.D) * s) for p, s in zip(fitted, scatter, strict=True)]
    fit = fit_coupled(again, floor=floor)
    return [100 * (fit.predict(t.N, t.D) / truth.predict(t.N, t.D) - 1) for t in targets]


if __name__ == "__main__":
    main()
