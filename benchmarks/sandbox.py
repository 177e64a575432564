"""The sandbox's proof on real text as a page: what configs/sandbox-{nano,prediction,prose}.toml came to.

    for name in lr schedule batch; do gangpao sandbox $name configs/sandbox-nano.toml --out runs/sandbox-nano; done
    python benchmarks/sandbox.py nano runs/sandbox-nano --out
    gangpao sandbox scaling configs/sandbox-prediction.toml --out runs/prediction
    python benchmarks/sandbox.py prediction runs/prediction --out
    gangpao sandbox lr configs/sandbox-prose.toml --out runs/prose
    python benchmarks/sandbox.py prose runs/prose --out

The experiments write their own tables and verdicts; this puts them together with the machine, the time stamp of the predictions and
the goals, and says of each goal whether it was met. --out writes results/sandbox_<name>_<hardware>_<date>.md and copies the plots
to docs/images. The last line is JSON.
"""

import argparse
import json
import math
import shutil
from datetime import date
from pathlib import Path

import report

from gangpao.atomic import read_json
from gangpao.sandbox.laws.verdict import BELOW_ZERO, Answer, about, decide
from gangpao.sandbox.report import outcomes
from gangpao.units import show_seconds

HERE = Path(__file__).resolve().parent
_MET: dict[Answer, bool | None] = {"yes": True, "no": False, "cannot tell": None}


def goals(found: dict[str, dict]) -> list[tuple[str, str, bool | None]]:
    """(goal, what came, met or not, None: the interval cannot tell)."""
    out: list[tuple[str, str, bool | None]] = []
    if "lr" in found:
        shifts = {s["rule"]: s for s in found["lr"]["facts"]["shifts"] if s["axis"] == "width"}
        for rule, wanted in (("minicpm", "yes"), ("standard", "no")):
            s = shifts[rule]
            moved = f"x {s['factor']:.2f} from {s['small']} to {s['large']}, a step is x {s['step']:.2f}"
            met = None if s["answer"] == "cannot tell" else s["answer"] == wanted
            out.append((f"best rate within a step under {rule}: {wanted}", moved, met))
    out += predictions(found.get("scaling", {}).get("facts", {}).get("targets", []))
    for c in found.get("batch", {}).get("facts", {}).get("checks", []):
        text = "outside the grid" if c["lost"] is None else f"{c['lost']:+.2f} %"
        met = _MET[decide(*about(c["lost"], c["error"]), (-math.inf, 0.3))]
        out.append((f"{c['size']}, batch of the law of {c['law']}: within 0.3 % of the grid's best", text, met))
    for h in found.get("schedule", {}).get("facts", {}).get("horizons", []):
        best = h["shapes"].get(h["best"])
        if best and h["cosine"] is not None:
            text = f"{best['bpb']:.4f} ({h['best']}, {best['best_share']:.1%}) against {h['cosine']:.4f}"
            answer = decide(*about(best["bpb"] - h["cosine"], found["schedule"]["facts"]["wide"]), BELOW_ZERO)
            out.append((f"{h['D']:,} tokens: WSD at or below the tuned cosine", text, _MET[answer]))
    return out


def predictions(tests: list[dict]) -> list[tuple[str, str, bool | None]]:
    """Of each target: within 1 %, and half the error of cosine runs of equal cost."""
    out: list[tuple[str, str, bool | None]] = []
    laws = {(t["size"], t["law"]): t for t in tests if t["actual"] is not None}
    for size in dict.fromkeys(size for size, _ in laws):
        t, plain = laws.get((size, "coupled")) or laws[size, "wsd"], laws.get((size, "equal"))
        text = f"{t['error']:+.2f} % ({t['predicted']:.3f}, came {t['actual']:.3f}); study {t['study_share']:.2%} of the target"
        out.append((f"{size} predicted within 1 %, law {t['law']}", text, abs(t["error"]) <= 1))
        if plain:
            text = f"{abs(t['error']):.2f} % against {abs(plain['error']):.2f} %"
            half = abs(t["error"]) <= abs(plain["error"]) / 2
            out.append((f"{size}: at most half the error of a Chinchilla fit on cosine runs of equal cost", text, half))
    return out


def main() -> None:
    """Report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("nano", "prediction", "prose"), help="of the configuration")
    parser.add_argument("box", type=Path)
    parser.add_argument("--out", action="store_true", help="write under results/ and docs/images/")
    arguments = parser.parse_args()
    found = {o["name"]: o for o in outcomes(arguments.box)}
    rows = goals(found)
    words = {True: "met", False: "missed", None: "cannot tell"}
    table = ["| goal | came | |", "|-|-|-|", *(f"| {goal} | {text} | {words[met]} |" for goal, text, met in rows)]
    print("\n".join(table))
    if arguments.out:
        write(arguments.name, arguments.box, found, table)
    print(json.dumps([{"goal": goal, "came": text, "met": met} for goal, text, met in rows]))


def write(config: str, box: Path, found: dict[str, dict], table: list[str]) -> None:
    """The page and the pictures."""
    root, name = HERE.parent, f"sandbox_{config}_{report.hardware_slug()}_{date.today().isoformat()}.md"
    pictures = "sandbox" if config == "nano" else f"sandbox-{config}"
    hours = sum(o["busy"] for o in found.values())
    flops = sum(o["flops"] for o in found.values())
    lines = [
        "# The sandbox's proof on real text",
        "",
        f"{report.cpu_name()}, commit {report.commit(root)}. `configs/sandbox-{config}.toml`:",
    ]
    lines[-1] += f" {flops:.3g} FLOPs in {show_seconds(hours)} of one core's steps."
    stamp = box / "scaling" / "predictions.json"
    if stamp.exists():
        known = read_json(stamp)
        lines += [
            "",
            f"Predictions, from points with the sha256 {known['points_sha256'][:16]}: ",
        ]
        each = {p["target"]["size"]: p for p in known["predictions"]}
        lines[-1] += "; ".join(
            f"{size} written {p['when']}, {'before' if p['unknown_then'] else 'after'} its result was known"
            for size, p in each.items()
        )
        lines[-1] += (
            ". The mark below holds for each target alone; docs/sandbox.md says which were planned and which were added."
        )
    lines += ["", *table]
    for key in found:
        lines += [
            "",
            (box / key / "report.en.md").read_text(encoding="utf-8").strip(),
            "",
            f"![{key}](../../docs/images/{pictures}-{key}.png)",
        ]
        for language, end in (("en", ""), ("zh", ".zh")):
            shutil.copyfile(box / key / f"plot.{language}.png", root / "docs/images" / f"{pictures}-{key}{end}.png")
    (HERE / "results" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(HERE / "results" / name)


if __name__ == "__main__":
    main()
