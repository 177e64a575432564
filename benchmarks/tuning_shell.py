"""Does tuning teach? A model learns shell commands from tldr pages, and is asked for commands that it has not seen.

    python benchmarks/tuning_shell.py PAGES.jsonl.zst --out FOLDER [--model smollm2-135m] [--steps 150] [--ask 200] [--seed 0]

A page has a tool and some lines "what it does: the command". One page of ten is kept apart whole (unseen tools); of each other page
one line is (seen tools, unseen lines). The rest are conversations of two turns for `gangpao tune`. Before and after, the engine
answers --ask lines of both kinds, greedily; an answer is right when it is the page's command (white space aside), and token F1 says
how much of it is. The same seed gives the same rows, run and answers. The run goes on where it stopped; the results are written to
FOLDER/results.json and printed as a table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gangpao import catalog, machine
from gangpao.data.sources.files import format_of, read_rows
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.train.progress import read_metrics

GANGPAO = [sys.executable, "-P", "-m", "gangpao.cli"]  # in a checkout too, whose sources are not the installed ones
LINE = re.compile(r"^- (.+?):\n\n`(.+?)`$", re.M)
PLACE = re.compile(r"\{\{(.*?)\}\}")
ANSWER_TOKENS = 64
HELD = 60  # lines of each kind whose loss is measured during the run


class Line(NamedTuple):
    """A line of a page."""

    tool: str
    what: str
    command: str

    @property
    def question(self) -> str:
        """What is asked."""
        return f"Write the command that does this with {self.tool}: {self.what}"

    def row(self) -> dict[str, Any]:
        """A conversation."""
        return {
            "messages": [
                {"role": "user", "content": self.question},
                {"role": "assistant", "content": self.command},
            ]
        }


def lines_of(page: str) -> list[Line]:
    """The lines of a page. A place to fill in keeps its name; of a choice of options the first is taken."""

    def first(match: re.Match[str]) -> str:
        inner = match[1]
        return inner[1:-1].split("|")[0] if inner.startswith("[") and inner.endswith("]") else inner

    tool = page.partition("\n")[0].removeprefix("# ").strip()
    return [Line(tool, what, PLACE.sub(first, command)) for what, command in LINE.findall(page)]


def number_of(seed: int, text: str) -> int:
    """What decides of a text where it goes, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest(), "little")


def split(path: Path, seed: int) -> dict[str, list[Line]]:
    """Lines to learn, and those kept apart of seen and of unseen tools; shuffled by the seed."""
    out: dict[str, list[Line]] = {"train": [], "seen": [], "unseen": []}
    for row in read_rows(path, format_of(path, "auto"), "utf-8", ["text"]):
        found = [] if row.wrong else lines_of(row.value["text"])
        if not found:
            continue
        number = number_of(seed, found[0].tool)
        if number % 10 == 0:
            out["unseen"] += found
            continue
        apart = number // 10 % len(found)
        out["seen"].append(found[apart])
        out["train"] += found[:apart] + found[apart + 1 :]
    for name, lines in out.items():
        random.Random(f"{seed} {name}").shuffle(lines)
    return out


def f1(answer: str, wanted: str) -> float:
    """Twice the shared words over all words of both."""
    mine, theirs = Counter(answer.split()), Counter(wanted.split())
    shared = sum((mine & theirs).values())
    return 2 * shared / max(1, sum(mine.values()) + sum(theirs.values()))


def scores(engine: Engine, lines: Sequence[Line], adapters: dict[str, None]) -> dict[str, float]:
    """Shares of answers that are right, that end by themselves, and the mean F1, all in percent."""
    greedy = SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS, repetition_penalty=1.0)
    right = ended = total = 0.0
    for number, line in enumerate(lines):
        prompt = engine.template.encode(engine.tokenizer, [{"role": "user", "content": line.question}])
        said = engine.generate(prompt, greedy, session=engine.session(adapters))
        answer = "".join(piece.text for piece in said).strip()
        right += answer.split() == line.command.split()
        ended += said.finish_reason == "stop"
        total += f1(answer, line.command)
        if number % 50 == 49:
            print(f"  {number + 1} of {len(lines)} asked", file=sys.stderr)
    n = len(lines)
    return {"exact": 100 * right / n, "f1": 100 * total / n, "ended": 100 * ended / n}


def write_inputs(out: Path, parts: dict[str, list[Line]], options: argparse.Namespace) -> Path:
    """The rows, and the TOML of the run."""
    out.mkdir(parents=True, exist_ok=True)
    kept = {"train": parts["train"], "heldout": [*parts["seen"][:HELD], *parts["unseen"][:HELD]]}
    for name, lines in kept.items():
        text = "".join(json.dumps(line.row(), ensure_ascii=False) + "\n" for line in lines)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
    config = out / "tune.toml"
    config.write_text(
        f'model = "{options.model}"\nsteps = {options.steps}\nseq_len = 256\nbatch_tokens = 1024\nseed = {options.seed}\n\n'
        f'[data]\nfiles = ["train.jsonl"]\nheldout_files = ["heldout.jsonl"]\nseed = {options.seed}\n\n'
        f"[method]\nrank = {options.rank}\n\n[optimizer]\nlr = {options.lr}\n\n[evaluation]\nevery_steps = 50\n",
        encoding="utf-8",
    )
    return config


def main() -> None:
    """Write the rows, tune, ask before and after, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lr", type=float, default=4e-4)
    for name, value in (("steps", 150), ("ask", 200), ("seed", 0), ("rank", 32)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    parts = split(options.pages, options.seed)
    config = write_inputs(options.out, parts, options)
    run = options.out / "run"
    subprocess.run([*GANGPAO, "tune", str(config), "--out", str(run)], check=True)
    engine = Engine.load(catalog.resolve(options.model), context=1024, adapters={"run": run})
    found: dict[str, Any] = {"model": options.model, "machine": machine.cpu_name(), "commit": machine.git_commit()}
    found |= {name: getattr(options, name) for name in ("steps", "seed", "rank", "lr", "ask")}
    found["heldout_loss"] = [m["heldout"]["heldout"] for m in read_metrics(run) if "heldout" in m]
    for kind in ("seen", "unseen"):
        lines = parts[kind][: options.ask]
        found[kind] = {"base": scores(engine, lines, {}), "tuned": scores(engine, lines, {"run": None})}
    (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(
        f"{options.model}, {len(parts['train']):,} lines to learn, {options.steps} steps; {options.ask} asked of each kind"
    )
    print("| tools | | exact % | token F1 % | ended % |\n|-|-|-:|-:|-:|")
    for kind in ("seen", "unseen"):
        for name, s in found[kind].items():
            print(f"| {kind} | {name} | {s['exact']:.1f} | {s['f1']:.1f} | {s['ended']:.1f} |")
    print("held-out loss: " + ", ".join(f"{loss:.3f}" for loss in found["heldout_loss"]))


if __name__ == "__main__":
    main()
