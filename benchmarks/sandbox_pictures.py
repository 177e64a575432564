"""Draws the picture of the prediction anew from what is committed: the table of results and the stamps of the predictions.

    python benchmarks/sandbox_pictures.py

The law in the left panel is fitted to the losses as the table prints them, with four digits; what was predicted is taken from the
stamps, as it was written before the targets ran. The last line is JSON.
"""

import json
import re
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gangpao.atomic import read_json
from gangpao.sandbox.experiments.scaling import curves
from gangpao.sandbox.experiments.study.predictions import Prediction, Target, judged
from gangpao.sandbox.experiments.study.study import Study, fits_of
from gangpao.sandbox.experiments.text import scaling as words
from gangpao.sandbox.trials.trial import Result, Spec

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "sandbox_prediction_amd-epyc-avx512f-2c_2026-11-24.md"
STAMPS = HERE / "results" / "sandbox_prediction_stamps" / "predictions.json"
FLOOR = (1.15, 0.15)  # of configs/sandbox-prediction.toml when the predictions were written


def rows() -> list[dict[str, str]]:
    """Of the table of runs."""
    lines = [line for line in RESULTS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    begin = next(i for i, line in enumerate(lines) if line.startswith("| run |"))
    keys, *cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[begin:]]
    return [dict(zip(keys, row, strict=True)) for row in cells]


def result(row: dict[str, str]) -> Result:
    """A run of the table."""
    width, layers = map(int, row["size"].split("x"))
    N, D = (int(row[key].replace(",", "")) for key in ("N", "D, tokens"))
    kind = "cosine" if row["run"] == "cosine" else "wsd"
    spec = Spec(
        width=width, layers=layers, rule="minicpm", lr=0.006, batch_tokens=1024, steps=D // 1024, schedule=kind, decay=0.2,
        warmup=0.02, weight_decay=0.0, optimizer="adamw", seed=0,
    )  # fmt: skip
    name = f"{row['run']} {row['size']} {D}"
    return Result(
        key=name, spec=spec, state="done", N=N, N_total=N, D=D, flops=float(row["FLOPs"]), bpb=float(row["bpb"]), workers=1.0,
    )  # fmt: skip


def stamped() -> list[Prediction]:
    """What was written before the targets ran. The committed file is of a time when predictions were lists side by side."""
    record = read_json(STAMPS)
    return [
        Prediction(
            target=Target(**target), law=law, value=values[i]["bpb"], low=values[i]["low"], high=values[i]["high"],
            when=record["stamps"][i], unknown_then=record["before"][i], floor=FLOOR if law == "coupled" else None,
        )
        for i, target in enumerate(record["targets"])
        for law, values in record["laws"].items()
    ]  # fmt: skip


def main() -> None:
    """Draw in both languages."""
    found = rows()
    branch, cosine = ([result(row) for row in found if row["run"] == kind] for kind in ("wsd", "cosine"))
    fits = fits_of(Study(stable=[], branch=branch, cosine=cosine), floor=FLOOR)
    predictions = stamped()
    came = {row["size"]: float(row["bpb"]) for row in found if row["run"] == "target, law coupled"}
    # The text has a digit more than the table.
    said = re.findall(r"Target (\S+) .*?came (\d\.\d{4}),", RESULTS.read_text(encoding="utf-8"))
    came |= {size: float(bpb) for size, bpb in said}
    ran = {p.target: branch[0].model_copy(update={"bpb": came[p.target.size]}) for p in predictions}
    tests = judged(predictions, fits, ran)
    facts = {"picture": curves(fits, tests), "targets": tests}
    for language, end in (("en", ""), ("zh", ".zh")):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        FigureCanvasAgg(figure)
        words.draw(figure, language, facts)
        out = HERE.parent / "docs" / "images" / f"sandbox-prediction-scaling{end}.png"
        figure.savefig(out, format="png", dpi=110)
        print(out.name)
    print(json.dumps([{key: t[key] for key in ("law", "size", "predicted", "actual", "inside")} for t in tests]))


if __name__ == "__main__":
    main()
