"""Our server against llama.cpp's, over HTTP: eight answers at once, one alone, and the wait for the first token.

The settings of llama-server are searched first, one at a time, by its own figure for eight answers at once. Then rounds: ours,
llama-server, and again, each sample a server process of its own (serving_load.py says what is asked of it), never two
at once, and taken again while others use the machine. Reported are medians and quartiles; ratios are taken round by round.

    eight / one      tok/s of eight streams together, over one stream alone on the same server (goal 2.0)
    ours / theirs    tok/s of eight streams (goal 1.5)
    hit / cold       seconds to the first token with the 512-token system prompt in the cache, over without (goal 0.15)
    same             how many of eight greedy texts are the same alone (goal 8)

Drafts from the text (speculation) are on for a real model on both sides, as both offer them, and off for the random one: what a
random model says repeats itself, which would flatter whoever drafts.

`python benchmarks/serving.py --help`. Writes benchmarks/results/serving_<hardware>_<date>.md and prints one JSON line last.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import engines
import peers
import report
import serving_load
from against_llama import find_model, say, warm
from engines import Settings
from serving_load import STREAMS, Sample, Work

ROOT = Path(__file__).resolve().parent.parent
RANDOM = "minicpm-2b-random"
DEFAULT_MODELS = ["qwen2.5-coder-0.5b", RANDOM]
GOALS = {"eight_over_one": 2.0, "ours_over_theirs": 1.5, "hit_over_cold": 0.15}
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """One model: what was asked, the settings and the samples by engine in the order of the rounds."""

    name: str
    job: Work
    settings: dict[str, Settings]
    samples: dict[str, list[Sample]]

    @property
    def peer(self) -> str | None:
        """The faster of the servers that are not ours."""
        rivals = [e for e in self.samples if e != "gangpao"]
        return max(rivals, key=lambda e: report.quartiles(self.column(e, _batch))[1]) if rivals else None

    def column(self, engine: str, figure: Callable[[Sample], float]) -> list[float]:
        """A figure of each round."""
        return [figure(s) for s in self.samples[engine]]

    def ratios(self) -> list[float]:
        """Ours over the peer, eight at once, round by round; empty where one of them is missing."""
        if self.peer is None or "gangpao" not in self.samples:
            return []
        pairs = zip(self.column("gangpao", _batch), self.column(self.peer, _batch), strict=True)
        return [mine / theirs for mine, theirs in pairs]

    def same(self, engine: str) -> int:
        """Greedy texts that were the same alone, of STREAMS; -1 where it was not asked."""
        return max(s.same for s in self.samples[engine])


def _batch(sample: Sample) -> float:
    return sample.batch_tps


FIGURES: dict[str, Callable[[Sample], float]] = {
    "one_tps": lambda s: s.single_tps,
    "eight_tps": _batch,
    "eight_first_tps": lambda s: s.first_tps,
    "eight_over_one": lambda s: s.batch_tps / s.single_tps,
    "cold_s": lambda s: s.cold_s,
    "hit_s": lambda s: s.hit_s,
    "hit_over_cold": lambda s: s.hit_s / s.cold_s,
}


def run_model(name: str, job: Work, names: Sequence[str], rounds: int, tune: bool) -> Measured:
    """Settings, then interleaved rounds. Texts are compared in the first."""
    warm(job.path)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    options = {e: {} if e == "gangpao" else serving_load.knobs(job, cores) for e in names}
    settings = {e: best_settings(e, job, options[e]) if tune else _first(options[e]) for e in names}
    samples: dict[str, list[Sample]] = {e: [] for e in names}
    for number in range(rounds):
        for engine in names:
            sample = quietly(engine, job, settings[engine], check=number == 0)
            samples[engine].append(sample)
            note = f", others used {sample.others:.0%}" if sample.others > engines.QUIET else ""
            say(
                f"  round {number + 1} of {rounds}: {engine:18} one {sample.single_tps:6.1f}, eight {sample.batch_tps:6.1f} "
                f"tok/s; first token {sample.cold_s:.2f} s, {sample.hit_s:.3f} s on a hit{note}"
            )
    return Measured(name, job, settings, samples)


def _first(options: dict[str, list[str]]) -> Settings:
    return {name: values[0] for name, values in options.items()}


def best_settings(engine: str, job: Work, options: dict[str, list[str]]) -> Settings:
    """Coordinate search by tok/s of eight at once: a change stays when it is more than 1 % faster. A server that does not
    start with some setting is no candidate."""
    best = _first(options)
    tps = 0.0
    for name, values in options.items():
        for value in values if not tps else values[1:]:
            trial = best | {name: value}
            try:
                found = quietly(engine, job, trial, only_batch=True).batch_tps
            except ValueError as error:
                say(f"  {engine}: {name}={value} does not work: {str(error).splitlines()[-1]}")
                continue
            say(f"  {engine}: {name}={value}: {found:.1f} tok/s")
            if found > tps * 1.01:
                best, tps = trial, found
    return best


def quietly(engine: str, job: Work, settings: Settings, *, check: bool = False, only_batch: bool = False) -> Sample:
    """A sample of a quiet moment: taken again, ATTEMPTS times in all, while others use more than QUIET of the machine."""
    taken: list[Sample] = []
    while not taken or (taken[-1].others > engines.QUIET and len(taken) < ATTEMPTS):
        taken.append(serving_load.sample(engine, job, settings, check=check, only_batch=only_batch))
    return min(taken, key=lambda s: s.others)


# --- the result


def summary(one: Measured) -> dict[str, object]:
    """What a program wants to know of one model."""
    out: dict[str, object] = {"tokens": one.job.tokens, "shared": one.job.shared, "peer": one.peer}
    for engine in one.samples:
        row: dict[str, object] = {"same": one.same(engine)}
        for name, figure in FIGURES.items():
            row[name] = round(report.quartiles(one.column(engine, figure))[1], 4)
        out[engine] = row
    if ratios := one.ratios():
        low, middle, high = report.quartiles(ratios)
        out |= {"ours_over_theirs": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3)}
    return out


def markdown(measured: Sequence[Measured], environment: dict[str, str]) -> str:
    """The whole report."""
    lines = [f"# Our server against llama-server: {STREAMS} streams behind one system prompt", "", "| | |", "|-|-|"]
    lines += [f"| {name} | {value} |" for name, value in environment.items()]
    for one in measured:
        drafts = "on" if one.job.speculate else "off"
        lines += [
            "",
            f"## {one.name} ({one.job.path.stat().st_size / 1e6:,.0f} MB)",
            "",
            f"{one.job.tokens} tokens an answer, greedy, behind a system prompt of {one.job.shared} tokens; drafts {drafts}.",
            "",
            *table(one),
            "",
            *verdicts(one),
            *details(one),
        ]
    return "\n".join(lines) + "\n"


def table(one: Measured) -> list[str]:
    """Medians with quartiles of every figure."""
    heads = (
        "tok/s of one",
        "of eight",
        "of eight, first time",
        "eight / one",
        "first token, s",
        "on a hit, s",
        "hit / cold",
    )
    lines = ["| server | " + " | ".join(heads) + " | same | peak MB |", "|-|" + "-:|" * (len(heads) + 2)]
    for engine, rows in one.samples.items():
        cells = []
        for figure in FIGURES.values():
            low, middle, high = report.quartiles(one.column(engine, figure))
            cells.append(f"{middle:.3g} ({low:.3g} to {high:.3g})")
        peak = max(s.peak_bytes for s in rows) / 1e6
        lines.append(f"| {engine} | " + " | ".join(cells) + f" | {one.same(engine)} of {STREAMS} | {peak:,.0f} |")
    return lines


def verdicts(one: Measured) -> list[str]:
    """Our figures beside their goals."""
    lines = []
    if ratios := one.ratios():
        low, middle, high = report.quartiles(ratios)
        lines.append(
            f"- eight streams: **{middle:.2f} x {one.peer}** (quartiles {low:.2f} to {high:.2f} over {len(ratios)} rounds; "
            f"goal {GOALS['ours_over_theirs']})"
        )
    if "gangpao" in one.samples:
        for name, words, sign in (
            ("eight_over_one", "our eight streams over our one", "at least"),
            ("hit_over_cold", "first token on a prefix hit over cold", "at most"),
        ):
            low, middle, high = report.quartiles(one.column("gangpao", FIGURES[name]))
            lines.append(f"- {words}: **{middle:.2f}** (quartiles {low:.2f} to {high:.2f}; goal {sign} {GOALS[name]})")
        lines.append(f"- greedy texts that are the same alone and among eight: **{one.same('gangpao')} of {STREAMS}**")
    return lines


def details(one: Measured) -> list[str]:
    """Settings and every sample."""
    loud = sum(s.others > engines.QUIET for rows in one.samples.values() for s in rows)
    lines = (
        ["", f"**{loud} samples are of moments when others used more than {engines.QUIET:.0%} of the machine.**"]
        if loud
        else []
    )
    lines += [
        "",
        "Samples in the order of the rounds, tok/s of eight; in brackets the share of the machine that others used.",
        "",
    ]
    for engine, rows in one.samples.items():
        lines.append(f"- {engine}: " + ", ".join(f"{s.batch_tps:.1f} ({s.others:.0%})" for s in rows))
    lines += ["", "Settings:", ""]
    for engine, settings in one.settings.items():
        chosen = " ".join(f"{k}={v}" for k, v in settings.items()) or "those that a user gets without asking"
        lines.append(f"- {engine}: {chosen}")
    return lines


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "models", nargs="*", default=DEFAULT_MODELS, help="catalog names, .gguf files or minicpm-2b-random"
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (at least 5 for a claim)")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of an answer")
    parser.add_argument("--shared", type=int, default=512, help="tokens of the system prompt")
    parser.add_argument(
        "--engines", default="", help="comma separated, instead of all: gangpao,server,server-without-amx"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of 16 tokens with default settings, no result file"
    )
    parser.add_argument("--no-tune", action="store_true", help="llama-server with its default settings")
    parser.add_argument("--hardware", default="", help="name of this machine in the result's file name")
    parser.add_argument("--out", type=Path, help="another file for the result")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the report, print the summary as one JSON line."""
    args = options(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped on the way out
    try:
        known = ["gangpao", *peers.server_variants()]
        names = args.engines.split(",") if args.engines else known
        if unknown := set(names) - set(known):
            raise ValueError(f"no such server here: {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
        for variant in set(names) & set(peers.VARIANTS):
            peers.llama_server(variant)
        measured = []
        for name in args.models:
            say(f"{name}:")
            path = find_model(name)
            job = serving_load.work(path, args.shared, 16 if args.quick else args.tokens, speculate=name != RANDOM)
            rounds = 1 if args.quick else args.rounds
            measured.append(run_model(path.stem, job, names, rounds, tune=not (args.quick or args.no_tune)))
    except ValueError as error:
        say(f"error: {error}")
        return 2
    environment = report.environment(ROOT)
    del environment["llama.cpp, wheel"]
    text = markdown(measured, environment)
    print(text)
    if args.out or not args.quick:
        hardware = args.hardware or report.hardware_slug()
        path = args.out or ROOT / "benchmarks" / "results" / f"serving_{hardware}_{date.today().isoformat()}.md"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text, encoding="utf-8")
        say(f"written to {path}")
    print(json.dumps({m.name: summary(m) for m in measured}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
