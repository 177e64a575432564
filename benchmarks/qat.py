"""What quantization-aware training gives back of what rounding lost, and the curve of loss against tokens.

    python benchmarks/qat.py --model FOLDER --data TEXTS.jsonl --to Q4_0 --tokens 400_000 --out RUNS/q4_0
    python benchmarks/qat.py --model FOLDER --data TEXTS.jsonl --to TQ2_0 --tokens 50_000_000 --out RUNS/ternary

One run a call: Ctrl-C or a kill loses nothing, the same command goes on, to 50 M tokens or as far as time allows, and the table so
far is printed each time (also with --table alone, while it trains). "lost" is the student's cross-entropy on held-out text minus
the float model's, in nats a token; perplexity loss is exp of it minus 1. The first row is plain rounding: no step was made.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from gangpao.compress.qat.config import QatConfig
from gangpao.compress.qat.run import run_step
from gangpao.compress.step import Stopped
from gangpao.train.progress import read_metrics


def table(out: Path) -> None:
    """The held-out lines of a run, one a row."""
    lines = read_metrics(out / "run")
    tokens = {line["step"]: line["tokens"] for line in lines if "tokens" in line}
    print(
        f"{'tokens':>12}  {'ce':>8}  {'float':>8}  {'lost':>8}  {'ppl loss':>8}  {'KL':>8}  {'top-1':>6}  of rounding's loss"
    )
    first = None
    for line in lines:
        if "heldout" not in line:
            continue
        held = {key.removeprefix("heldout_"): value for key, value in line["heldout"].items()}
        lost = held["ce"] - held["teacher_ce"]
        first = lost if first is None else first
        share = f"{math.expm1(lost) / math.expm1(first):.3f}" if first > 0 else "-"
        print(
            f"{tokens.get(line['step'], 0):>12,}  {held['ce']:>8.4f}  {held['teacher_ce']:>8.4f}  {lost:>8.4f}  "
            f"{math.expm1(lost):>8.2%}  {held['kl']:>8.4f}  {held['top1']:>6.1%}  {share}"
        )


def main() -> None:
    """Read the command line, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="float model: a folder or a .gguf file")
    parser.add_argument("--data", nargs="+", help="texts or conversations")
    parser.add_argument("--to", default="Q4_0")
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", default="{}", help="more of the step's configuration, as JSON")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    args = parser.parse_args()
    if not args.table:
        config = QatConfig.model_validate(
            {"to": args.to, "tokens": args.tokens, "data": {"files": args.data}, **json.loads(args.set)}
        )
        try:
            result = run_step(config, args.model, args.model, args.out, stream=sys.stderr)
            print(json.dumps(dict(result.facts), indent=1))
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
    table(args.out)


if __name__ == "__main__":
    main()
