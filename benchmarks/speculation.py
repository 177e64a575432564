"""What drafts are worth: real prompts by class, with drafts against our own plain decoding, interleaved, texts compared.

    python benchmarks/speculation.py                                  # qwen2.5-coder-1.5b, drafts from the text and earlier answers
    python benchmarks/speculation.py --draft qwen2.5-coder-0.5b       # and a third variant with that small model
    python benchmarks/speculation.py smollm2-135m --prompts-of-class 1 --tokens 64 --rounds 1
    python benchmarks/speculation.py --set chat=arena-hard-v2.jsonl --set code=livecodebench.jsonl     # rows {"turns": [...]}
    python benchmarks/speculation.py --temperature 0.7 --out

Each round answers every prompt with every variant, in an order that changes from prompt to prompt; answers of earlier rounds help
nobody. A ratio is one of tokens a second of decoding (the first token is not in it), of medians over prompts and rounds. Beside it
stands what does not depend on the neighbours of the machine: the steps of each kind times what a step of so many rows was seen
to cost, against one step a token ("by steps"). Every text has to be the plain one. The last line is JSON.

Without --set the prompts are those of speculation_prompts.toml, written for this.
"""

import argparse
import itertools
import json
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import report

from gangpao import machine
from gangpao.commands.model.loading import load_engine
from gangpao.engine.answer import Stats
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions
from gangpao.engine.sample import SamplingParams
from gangpao.engine.speculate.heads.head import DraftHead
from gangpao.engine.speculate.pool import Pools
from gangpao.engine.speculate.speculation import Speculation, StepCosts

HERE = Path(__file__).resolve().parent
PROMPTS = HERE / "speculation_prompts.toml"
PLAIN = "plain"
GOALS = {"edit": 2.0, "quote": 2.0, "code": 1.4}
LOWEST = 0.98


class Counted(StepCosts):
    """Costs that also keep the rows of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def take(self, rows: int, seconds: float) -> None:
        """A step."""
        super().take(rows, seconds)
        self.rows.append(rows)


@dataclass(slots=True)
class Sample:
    """One answer: its counts and seconds, the rows of its steps, and seconds of guesses by the draft model."""

    text: str
    stats: Stats
    rows: list[int]
    guesses: int


@dataclass(slots=True)
class Class:
    """What the prompts of a class came to, by variant."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def tps(self, variant: str) -> float:
        """Median tokens a second."""
        return statistics.median(one.stats.decode_tps for one in self.samples[variant])

    def ratio(self, variant: str) -> float:
        """Tokens a second against plain ones."""
        return self.tps(variant) / self.tps(PLAIN)

    def by_steps(self, variant: str, costs: StepCosts, guess: float) -> float:
        """The same, counted: steps of one row that the tokens would take, over what the steps and guesses cost."""
        ratios = []
        for one in self.samples[variant]:
            cost = sum(costs.of(rows) for rows in one.rows) + one.guesses * guess
            ratios.append(one.stats.decode_steps / cost if cost else 1.0)
        return statistics.median(ratios)

    def accepted(self, variant: str) -> tuple[float, float]:
        """Right guesses a step, and the share of the proposed that was right."""
        stats = [one.stats for one in self.samples[variant]]
        steps = sum(len(one.rows) for one in self.samples[variant])
        drafted = sum(s.drafted for s in stats)
        right = sum(s.accepted for s in stats)
        return right / max(1, steps), right / max(1, drafted)

    def identical(self, variant: str) -> bool:
        """Whether every text is the plain one."""
        pairs = zip(self.samples[variant], self.samples[PLAIN], strict=True)
        return all(a.text == b.text for a, b in pairs)


def read_prompts(sets: Sequence[str], most: int) -> dict[str, list[str]]:
    """Prompts by class, `most` of each. Raises ValueError for a set that is not CLASS=FILE, or has other rows."""
    if not sets:
        with PROMPTS.open("rb") as file:
            return {name: prompts[:most] for name, prompts in tomllib.load(file).items()}
    found: dict[str, list[str]] = {}
    for one in sets:
        name, equals, path = one.partition("=")
        if not equals:
            raise ValueError(f"--set {one}: write CLASS=FILE.jsonl, with rows that have turns or a prompt")
        with Path(path).expanduser().open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in itertools.islice(file, most)]
        try:
            found[name] = [row["turns"][0] if "turns" in row else row["prompt"] for row in rows]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"--set {one}: a row has neither turns nor a prompt") from None
    return found


def answer(engine: Engine, shared: Speculation, prompt: str, params: SamplingParams, variant: str) -> Sample:
    """One answer of a variant."""
    counted = shared.costs
    assert isinstance(counted, Counted)
    engine.speculation, counted.rows = shared, []
    engine.model.reader = (
        shared.draft if isinstance(shared.draft, DraftHead) else None
    )  # which costs something in every step
    before = shared.draft.guesses_made if shared.draft else 0
    ids = engine.prompt_with([{"role": "user", "content": prompt}])
    generation = engine.generate(ids, params, stop=engine.template.stop, speculate=variant != PLAIN)
    for _ in generation:
        pass
    guesses = (shared.draft.guesses_made if shared.draft else 0) - before
    return Sample(generation.text, generation.stats, counted.rows, guesses)


def measure(
    engine: Engine, prompts: dict[str, list[str]], params: SamplingParams, rounds: int
) -> tuple[dict[str, Class], dict[str, Speculation]]:
    """Every prompt with every variant, round by round."""
    costs, draft = Counted(), engine.speculation.draft
    shared = {PLAIN: Speculation(costs=costs), "text": Speculation(costs=costs)}
    if draft is not None:
        shared["text + model"] = Speculation(draft, costs=costs)
    found = {name: Class({variant: [] for variant in shared}) for name in prompts}
    for round_ in range(rounds):
        for one in shared.values():
            one.pools = Pools()
        for name, texts in prompts.items():
            for at, text in enumerate(texts):
                order = list(shared)[(round_ + at) % len(shared) :] + list(shared)[: (round_ + at) % len(shared)]
                for variant in order:
                    sample = answer(engine, shared[variant], text, params, variant)
                    found[name].samples[variant].append(sample)
            print(f"round {round_ + 1}: {name}", flush=True)
    return found, shared


def document(found: dict[str, Class], costs: StepCosts, guess: float) -> dict[str, dict[str, dict[str, float | bool]]]:
    """What the last line says of classes and variants."""
    out: dict[str, dict[str, dict[str, float | bool]]] = {}
    for name, one in found.items():
        out[name] = {}
        for variant in one.samples:
            row: dict[str, float | bool] = {"tps": round(one.tps(variant), 2)}
            if variant != PLAIN:
                a_step, share = one.accepted(variant)
                row |= {
                    "ratio": round(one.ratio(variant), 3),
                    "by_steps": round(one.by_steps(variant, costs, guess), 3),
                    "accepted_a_step": round(a_step, 3),
                    "share_right": round(share, 3),
                    "identical": one.identical(variant),
                }
            out[name][variant] = row
    return out


def markdown(result: dict[str, dict[str, dict[str, float | bool]]]) -> list[str]:
    """The table."""
    lines = [
        "| class | drafts | plain tok/s | with drafts | ratio | by steps | right a step | share right | text the same | goal |",
        "|-|-|-:|-:|-:|-:|-:|-:|-|-:|",
    ]
    for name, variants in result.items():
        for variant, row in variants.items():
            if variant != PLAIN:
                lines.append(
                    f"| {name} | {variant} | {variants[PLAIN]['tps']} | {row['tps']} | **{row['ratio']}** | {row['by_steps']} | "
                    f"{row['accepted_a_step']} | {row['share_right']} | {'yes' if row['identical'] else 'NO'} | "
                    f"{GOALS.get(name, LOWEST)} |"
                )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-1.5b")
    parser.add_argument("--draft", help="a small model of the same vocabulary, a draft head, or auto")
    parser.add_argument("--set", action="append", default=[], help="CLASS=FILE.jsonl of prompts; repeatable")
    parser.add_argument("--classes", help="only these, with commas")
    parser.add_argument("--prompts-of-class", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=256, help="of an answer at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", action="store_true", help="write the table into results/")
    arguments = parser.parse_args()
    prompts = read_prompts(arguments.set, arguments.prompts_of_class)
    if arguments.classes:
        prompts = {name: prompts[name] for name in arguments.classes.split(",")}
    options = EngineOptions(context=4096, threads=arguments.threads, draft=arguments.draft)
    engine = load_engine(arguments.model, options=options)
    params = engine.recommended(temperature=arguments.temperature, seed=1, max_tokens=arguments.tokens)
    watch = machine.Watch()
    found, shared = measure(engine, prompts, params, arguments.rounds)
    busy = str(watch.read())
    last = list(shared.values())[-1]
    draft, plain_s = last.draft, last.costs.plain_s
    guess = draft.seconds((), plain_s).first / plain_s if draft is not None else 0.0
    result = document(found, last.costs, guess)
    rows = {n: round(cost, 2) for n, cost in last.costs.measured().items()}
    small = f", asking {draft.name} costs {guess:.2f} of a step" if draft else ""
    lines = [
        f"{engine.name}, temperature {arguments.temperature}, {arguments.tokens} tokens at most, {arguments.rounds} rounds; {busy}",
        "",
        f"A step of so many rows costs, in steps of one row: {', '.join(f'{n}: {cost}' for n, cost in rows.items())}{small}.",
        "",
        *markdown(result),
    ]
    print("\n".join(lines))
    if arguments.out:
        facts = [f"| {key} | {value} |" for key, value in report.environment(HERE.parent).items()]
        path = HERE / "results" / f"speculation-{engine.name}_{report.hardware_slug()}_{date.today().isoformat()}.md"
        path.write_text(
            "\n".join(["# Drafts against plain decoding", "", "| | |", "|-|-|", *facts, "", *lines, ""]), "utf-8"
        )
        print(f"written: {path}")
    print(json.dumps({"model": engine.name, "rows": rows, "guess": round(guess, 3), "classes": result}))


if __name__ == "__main__":
    main()
