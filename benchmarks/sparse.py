"""Sparse attention (`--sparse N`) against looking at everything: tokens a second far into a context, and needles found there.

A context of --tokens tokens is made of this repository's own documents, with ten sentences hidden in it at even depths ("The number
of the office in Oslo is 48213."). One engine looks at everything, one at --sparse positions. Both read it once; then single tokens
are decoded behind it, in turn, and each needle is asked for, greedily. Medians over --rounds, ratios round by round.

    python benchmarks/sparse.py qwen2.5-coder-0.5b                      # some ten minutes on two cores
    python benchmarks/sparse.py smollm2-135m --tokens 8000 --dense 2048 --sparse 1024   # a try with a shorter border

The last line is JSON. --out writes benchmarks/results/sparse_<hardware>_<date>.md.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import report
from against_llama import find_model, say

from gangpao.engine.generate import Engine, Session
from gangpao.engine.layers import sparse
from gangpao.engine.sample import SamplingParams

CITIES = ("Oslo", "Lima", "Cairo", "Perth", "Kyoto", "Quito", "Delhi", "Rome", "Accra", "Turin")
HERE = Path(__file__).resolve().parent
DOCUMENTS = HERE.parent / "docs"
ROOM = 200  # tokens for a question and its answer
GOAL = 2.0


def haystack(engine: Engine, tokens: int, seed: int) -> tuple[str, dict[str, str]]:
    """A text of about so many tokens, and the numbers that are hidden in it, by city."""
    rng = random.Random(seed)
    pages = [path.read_text(encoding="utf-8") for path in sorted(DOCUMENTS.glob("*.md")) if ".zh." not in path.name]
    lines = [line for page in pages for line in page.splitlines() if len(line) > 40]
    rng.shuffle(lines)
    counted, count = [], 0
    for line in lines:
        count += len(engine.tokenizer.encode(line + "\n", start=False))
        if count > tokens - ROOM - 20 * len(CITIES):
            break
        counted.append(line)
    numbers = {city: str(rng.randrange(10_000, 99_999)) for city in CITIES}
    for place, (city, number) in enumerate(numbers.items()):
        counted.insert(
            int(len(counted) * (place + 0.5) / len(CITIES)), f"The number of the office in {city} is {number}."
        )
    return "\n".join(counted), numbers


def ids_of(engine: Engine, text: str, city: str) -> list[int]:
    """A prompt that asks for a needle."""
    question = f"{text}\n\nWhat is the number of the office in {city}? Answer with the number alone."
    return engine.prompt_with([{"role": "user", "content": question}])


class Side:
    """One engine with the text in its cache."""

    def __init__(self, name: str, engine: Engine, text: str) -> None:
        self.name, self.engine, self.session = name, engine, Session(engine)
        ids = ids_of(engine, text, CITIES[0])
        begin = time.perf_counter()
        self.session.feed(ids)
        self.prefill_s, self.length = time.perf_counter() - begin, len(ids)
        say(f"{name}: {self.length} tokens read in {self.prefill_s:.0f} s")

    def decode(self, steps: int) -> float:
        """Tokens a second behind all of it; the cache is as before then."""
        begin = time.perf_counter()
        for token in range(100, 100 + steps):
            self.session.feed([token])
        seconds = time.perf_counter() - begin
        self.session.cache.truncate(self.length)
        del self.session.ids[self.length :]
        return steps / seconds

    def found(self, text: str, numbers: dict[str, str]) -> list[bool]:
        """Whether each needle is in the answer."""
        params, out = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=24), []
        for city, number in numbers.items():
            run = self.engine.generate(ids_of(self.engine, text, city), params, session=self.session, speculate=False)
            list(run)
            out.append(number in run.text)
        return out


def measure(model: str, tokens: int, looked_at: int, rounds: int, steps: int, seed: int) -> dict[str, Any]:
    """Both sides, in turn."""
    path = find_model(model)
    engines = {
        "all": Engine.load(path, context=tokens),
        f"{looked_at}": Engine.load(path, context=tokens, sparse=looked_at),
    }
    text, numbers = haystack(engines["all"], tokens, seed)
    sides = [Side(name, engine, text) for name, engine in engines.items()]
    speeds = [[side.decode(steps) for side in sides] for _ in range(rounds)]
    found = [side.found(text, numbers) for side in sides]
    return {
        "model": model, "tokens": sides[0].length, "sparse": looked_at, "dense_below": sparse.blocks_of(looked_at)[0],
        "decode_tok_s": [statistics.median(column) for column in zip(*speeds, strict=True)],
        "ratio": statistics.median(b / a for a, b in speeds), "prefill_s": [side.prefill_s for side in sides],
        "needles": len(numbers), "found": [sum(row) for row in found], "found_at": [list(map(int, row)) for row in found],
    }  # fmt: skip


def markdown(row: dict[str, Any], about: dict[str, str]) -> str:
    """The result as a page."""
    head = "\n".join(f"- {name}: {value}" for name, value in about.items())
    table = "\n".join(
        f"| {name} | {speed:.2f} | {seconds:.0f} | {found} of {row['needles']} |"
        for name, speed, seconds, found in zip(
            ("all", f"{row['sparse']} beyond {row['dense_below']}"),
            row["decode_tok_s"],
            row["prefill_s"],
            row["found"],
            strict=True,
        )
    )
    return "\n".join(
        (
            f"# Sparse attention, {row['model']}, {row['tokens']:,} tokens\n\n{head}\n",
            "| looks at | decode, tok/s | prefill, s | needles found |\n|-|-:|-:|-:|",
            f"{table}\n\nDecode {row['ratio']:.2f} x (goal {GOAL:g}), median of rounds.\n",
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--sparse", type=int, default=4096)
    parser.add_argument("--dense", type=int, help="border below which all is looked at; 8192 if not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="tokens of a sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", action="store_true", help="write the table into results/")
    args = parser.parse_args(argv)
    if args.dense:
        sparse.DENSE = args.dense
    try:
        row = measure(args.model, args.tokens, args.sparse, args.rounds, args.steps, args.seed)
    except ValueError as error:
        say(f"error: {error}")
        return 2
    about = report.environment(HERE.parent)
    page = markdown(row, about)
    print(page)
    if args.out:
        name = f"sparse_{report.hardware_slug()}_{date.today()}.md"
        (HERE / "results" / name).write_text(page, encoding="utf-8")
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
