"""What tuning does to a chat model: conversations (SFT) or preferences (DPO), with rows and prompts that are held out.

    python benchmarks/tuning_chat.py FILE... --out FOLDER [--objective sft|dpo] [--model qwen2.5-coder-0.5b] [--steps 60]
        [--tokens 2048] [--seq-len 512] [--text NAME=PATH ...] [--ask 60] [--limit 40] [--lr RATE] [--seed 0]
        [--apart 20] [--most 64]

Of each file one row of --apart is held out, by the hash of its first question, and --most of these are used. Before and
after: the objective's loss on held-out rows (of preferences also the share of pairs in the right order), the first questions of
--ask held-out rows answered greedily (share that the model ends by itself, mean length, repeated 4-grams, answers that loop), and
the perplexity of --limit windows of every --text. A run goes on where it stopped; results are written to
FOLDER/results.json and printed as tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from tuning_shell import GANGPAO, number_of

from gangpao import machine
from gangpao.compress.compare.answers import Asking, answer, summaries
from gangpao.data.sources.files import format_of, read_rows
from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.journal import Journal
from gangpao.evaluate.models.gguf import EngineModel
from gangpao.evaluate.models.load import load
from gangpao.train.progress import read_metrics

ANSWER_TOKENS = 256


def split(paths: list[Path], out: Path, seed: int, apart: int, most: int) -> list[dict[str, Any]]:
    """Write train.jsonl and heldout.jsonl; returns the held-out rows, those of the files in turn."""
    kept: list[str] = []
    held: list[list[dict[str, Any]]] = []
    for path in paths:
        held.append([])
        for row in read_rows(path, format_of(path, "auto"), "utf-8", ["messages", "chosen", "rejected"]):
            if row.wrong:
                continue
            first = next(turn["content"] for turn in row.value["messages"] if turn["role"] == "user")
            text = json.dumps(row.value, ensure_ascii=False)
            if number_of(seed, first) % apart:
                kept.append(text)
            else:
                held[-1].append(row.value)
    longest = max(len(rows) for rows in held)
    mixed = [rows[i] for i in range(longest) for rows in held if i < len(rows)][:most]
    (out / "train.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in mixed)
    (out / "heldout.jsonl").write_text(text, encoding="utf-8")
    return mixed


def tune(options: argparse.Namespace, run: Path) -> None:
    """The run, by the command that a person types."""
    config = options.out / "tune.toml"
    rows = f"batch_answers = {options.pairs}" if options.objective == "dpo" else f"batch_tokens = {options.tokens}"
    rate = f"[optimizer]\nlr = {options.lr}\n\n" if options.lr else ""
    config.write_text(
        f'model = "{options.model}"\nsteps = {options.steps}\nseq_len = {options.seq_len}\n{rows}\nmicro_batch_size = '
        f"{options.micro}\nseed = {options.seed}\n\n"
        f'[data]\nfiles = ["train.jsonl"]\nheldout_files = ["heldout.jsonl"]\ntoo_long = "cut"\nseed = {options.seed}\n\n'
        f'[objective]\nkind = "{options.objective}"\n\n{rate}[evaluation]\nevery_steps = {max(1, options.steps // 2)}\n',
        encoding="utf-8",
    )
    command = [*GANGPAO, "tune", str(config), "--out", str(run)]
    subprocess.run(command, check=True)


def asked(options: argparse.Namespace, rows: list[dict[str, Any]], adapter: Path | None) -> dict[str, Any]:
    """What becomes of greedy answers to held-out first questions."""
    adapters = {"run": (adapter, 1.0)} if adapter else None
    model = load(options.model, EngineOptions(context=2048), batch=8, adapters=adapters)
    assert isinstance(model, EngineModel)
    firsts = [next(turn for turn in row["messages"] if turn["role"] == "user") for row in rows[: options.ask]]
    asking = Asking([[turn] for turn in firsts], ANSWER_TOKENS, 0, {})
    name = "after" if adapter else "before"
    try:
        with Journal(options.out / f"answers-{name}", {"of": name, "model": options.model}) as journal:
            said = answer(model, asking, journal, model.engine.tokenizer, None, lambda *_: None)
    finally:
        model.close()
    found = summaries(said)[0]
    count = found.asked
    return {
        "asked": count, "ended": 100 * found.ended / count, "tokens": found.tokens, "repeated": 100 * found.repeated,
        "loops": 100 * found.loops / count, "answers": [one.text for one in said[:4]],
    }  # fmt: skip


def perplexities(options: argparse.Namespace, adapter: Path | None) -> dict[str, float]:
    """Of every part of the texts."""
    if not options.text:
        return {}
    command = [*GANGPAO, "eval", "perplexity", "-m", options.model, *options.text]
    command += ["--context", "512", "--limit", str(options.limit), *(["--adapter", str(adapter)] if adapter else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    (found,) = (task for task in result["tasks"] if task["metric"] == "perplexity")
    return found["parts"] or {found["task"]: found["value"]}


def main() -> None:
    """Split, tune, ask and measure before and after, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--objective", choices=("sft", "dpo"), default="sft")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--lr", type=float, help="peak learning rate; that of the command if not given")
    numbers = {
        "steps": 60, "tokens": 2048, "seq-len": 512, "pairs": 8, "micro": 2, "ask": 60, "limit": 40, "seed": 0,
        "apart": 20, "most": 64,
    }  # fmt: skip
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows, run = split(options.files, options.out, options.seed, options.apart, options.most), options.out / "run"
    tune(options, run)
    found: dict[str, Any] = {"machine": machine.cpu_name(), "commit": machine.git_commit()}
    found |= {name: value for name, value in vars(options).items() if name not in ("out", "files", "text")}
    found["files"] = [path.name for path in options.files]
    found["heldout"] = [m["heldout"] for m in read_metrics(run) if "heldout" in m]
    for name, adapter in (("before", None), ("after", run)):
        found[name] = asked(options, rows, adapter) | {"perplexity": perplexities(options, adapter)}
    (options.out / "results.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{options.model}, {options.objective}, {options.steps} steps; {found['before']['asked']} questions")
    print("| | ended % | tokens | repeated % | loops % |\n|-|-:|-:|-:|-:|")
    for name in ("before", "after"):
        s = found[name]
        print(f"| {name} | {s['ended']:.1f} | {s['tokens']:.0f} | {s['repeated']:.1f} | {s['loops']:.1f} |")
    for name in found["before"]["perplexity"]:
        pair = [found[when]["perplexity"][name] for when in ("before", "after")]
        print(f"perplexity of {name}: {pair[0]:.3f} before, {pair[1]:.3f} after")
    for values in found["heldout"]:
        print(", ".join(f"{key} {value:.4f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
