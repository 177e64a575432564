"""What configs/train-nano.toml comes to: held-out bits per byte against a cosine run of the same tokens, time, curves.

    gangpao train configs/train-nano.toml --out runs/nano
    gangpao train configs/train-nano.toml --out runs/nano-cosine --set schedule.kind=cosine
    python benchmarks/nano.py runs/nano runs/nano-cosine --out

Both runs see the same data in the same stages; only the learning rate differs. Held-out text was kept back by the data build
and is the same for both. The last line is JSON; --out writes results/nano_<hardware>_<date>.md and draws docs/images/nano.png.
"""

import argparse
import json
import statistics
from datetime import date
from pathlib import Path

import report

from gangpao.train.plot import draw, steps_of
from gangpao.train.progress import read_metrics
from gangpao.train.run_file import read_run

HERE = Path(__file__).resolve().parent
GROUPS = {"Chinese": "zh-", "English": "en-", "code": "code-"}


def bits(heldout: dict[str, float]) -> dict[str, float]:
    """Source -> bits per byte."""
    return {
        name.removesuffix("_bpb"): value
        for name, value in heldout.items()
        if name.endswith("_bpb") and name != "heldout_bpb"
    }


def groups(heldout: dict[str, float]) -> dict[str, float]:
    """Language -> mean over its sources, and the held-out loss in nats a token over everything."""
    each = bits(heldout)
    out = {name: statistics.mean(v for k, v in each.items() if k.startswith(prefix)) for name, prefix in GROUPS.items()}
    return out | {"all, nats a token": heldout["heldout"]}


def summary(run: Path) -> dict:
    """What the metrics of a run say."""
    steps, heldout = steps_of(read_metrics(run))
    known = read_run(run)
    assert known is not None
    speeds = [line["tok_s"] for line in steps]
    tokens = known["config"]["batch_tokens"]
    decay = next((i for i, line in enumerate(steps) if line["stage"] == "decay"), len(steps))
    return {
        "run": run.name,
        "schedule": known["config"]["schedule"]["kind"],
        "parameters": known["parameters"],
        "steps": len(steps),
        "tokens": len(steps) * tokens,
        "minutes": sum(tokens / s for s in speeds) / 60,
        "tok_s": statistics.median(speeds),
        "minutes_at_median": len(steps) * tokens / statistics.median(speeds) / 60,
        "yuan": steps[-1].get("yuan"),
        "decay_begins": decay,
        "heldout": {line["step"]: groups(line["heldout"]) for line in heldout},
        "sources": bits(heldout[-1]["heldout"]),
        "git": known["git"],
        "environment": known["environment"],
    }


def markdown(runs: list[dict]) -> str:
    """The result as text."""
    one, two = runs
    last = [run["heldout"][max(run["heldout"])] for run in runs]
    env, count = one["environment"], one["parameters"]
    lines = [
        "# train-nano: a bilingual model from nothing on two cores", "",
        f"{count['non_embedding']:,} parameters beside the embedding ({count['total']:,} in all), {one['tokens']:,} tokens, "
        f"{env['device']}, {env['threads']} threads, torch {env['torch']}, commit {str(one['git'])[:12]}.", "",
        "| | " + " | ".join(run["schedule"] for run in runs) + " |", "|-|-:|-:|",
    ]  # fmt: skip
    lines += [f"| held-out, {k} | " + " | ".join(f"{v[k]:.3f}" for v in last) + " |" for k in last[0]]
    for name, key in (
        ("steps' time, minutes", "minutes"),
        ("tokens/s, median", "tok_s"),
        ("minutes at that speed", "minutes_at_median"),
    ):
        lines.append(f"| {name} | " + " | ".join(f"{run[key]:,.0f}" for run in runs) + " |")
    lines += [
        "",
        "Bits per byte, each language the mean over its sources. Held-out loss on the way (nats a token, everything):",
        "",
    ]
    steps = sorted(set(one["heldout"]) & set(two["heldout"]))
    lines += ["| step | " + " | ".join(run["schedule"] for run in runs) + " |", "|-:|-:|-:|"]
    key = "all, nats a token"
    lines += [f"| {s} | " + " | ".join(f"{run['heldout'][s][key]:.3f}" for run in runs) + " |" for s in steps]
    before = max(s for s in one["heldout"] if s <= one["decay_begins"])
    drop = one["heldout"][before][key] - one["heldout"][max(one["heldout"])][key]
    share = (one["steps"] - one["decay_begins"]) / one["steps"]
    lines += [
        "",
        f"The decay stage ({share:.0%} of the tokens, from step {one['decay_begins']}) takes {drop:.3f} nats off the loss.",
        "",
    ]
    lines += ["| source | " + " | ".join(run["schedule"] for run in runs) + " |", "|-|-:|-:|"]
    lines += [f"| {s} | " + " | ".join(f"{run['sources'][s]:.3f}" for run in runs) + " |" for s in one["sources"]]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Compare two runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path)
    parser.add_argument("--out", action="store_true", help="write the result and the picture")
    options = parser.parse_args(argv)
    runs = [summary(run) for run in options.runs]
    text = markdown(runs)
    print(text)
    if options.out:
        target = HERE / "results" / f"nano_{report.hardware_slug()}_{date.today().isoformat()}.md"
        target.write_text(text, encoding="utf-8")
        draw(options.runs, HERE.parent / "docs" / "images" / "nano")[1].unlink()
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
