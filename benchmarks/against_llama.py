"""Ours against llama.cpp, interleaved on the machine at hand: decode, prefill, memory.

For each model and engine the best settings are searched first (threads, flash attention, batch, repacking, mmap; ours
has none to choose). Then rounds: ours, native build, build without AMX where the CPU has it, prebuilt wheel, and again,
each sample in a process of its own, never two at once, with the model file in the page cache, and taken again while
others keep the machine busy. Reported are medians,
and the median and quartiles of ours / best peer taken round by round, because only what is measured close together can
be compared on a shared machine. The best peer is the fastest of all builds, chosen for each number separately.

`make bench`, or `python benchmarks/against_llama.py --help`. Writes benchmarks/results/decode_prefill_<hardware>_<date>.md
and prints one JSON line last.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import builds
import engines
import peers
import report
from engines import Sample, Settings, Test

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODELS = ["qwen2.5-coder-1.5b", "minicpm-2b-random"]


def find_model(name: str) -> Path:
    """A path, the random MiniCPM-2B, or a catalog name, which is pulled if need be."""
    if name == "minicpm-2b-random":
        import random_model

        return random_model.minicpm_2b()
    if name.endswith(".gguf"):
        if not Path(name).exists():
            raise ValueError(f"there is no file {name}")
        return Path(name)
    gangpao = [sys.executable, "-P", "-m", "gangpao.cli"]
    engines.run([*gangpao, "pull", name])
    listed = json.loads(engines.run([*gangpao, "list", "--json"])[0])
    for entry in listed["models"] if isinstance(listed, dict) else listed:
        if entry["name"] == name and entry.get("path"):
            return Path(entry["path"])
    raise ValueError(f"'gangpao list --json' shows no file for {name}")


def run_model(path: Path, names: Sequence[str], tests: Sequence[Test], rounds: int, tune: bool) -> "report.Measured":
    """Settings, then interleaved rounds."""
    warm(path)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings: dict[tuple[str, str], Settings] = {}
    for test in tests:
        for engine in names:
            if tune:
                say(f"  settings of {engine} for {test.kind}")
                settings[engine, test.kind] = engines.best_settings(engine, path, test, cores)
            else:
                settings[engine, test.kind] = {k: v[0] for k, v in engines.knobs(test, cores).items()}
    samples: dict[tuple[str, str], list[Sample]] = {(e, t.kind): [] for e in names for t in tests}
    for number in range(rounds):
        for test in tests:
            for engine in names:
                sample = engines.measure_quietly(engine, path, test, settings[engine, test.kind])
                samples[engine, test.kind].append(sample)
                note = f", others used {sample.others:.0%}" if sample.others > engines.QUIET else ""
                say(f"  round {number + 1} of {rounds}: {test.kind:7} {engine:12} {sample.tps:8.2f} tok/s{note}")
    return report.Measured(path.stem, path.stat().st_size, settings, samples)


def warm(path: Path) -> None:
    """Read the file once, so that it comes from memory for everyone."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 22)
        while file.readinto(buffer):
            pass


def say(text: str) -> None:
    """Progress on stderr; stdout is for the result."""
    print(text, file=sys.stderr, flush=True)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "models", nargs="*", default=DEFAULT_MODELS, help="catalog names, .gguf files or minicpm-2b-random"
    )
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (at least 5 for a claim)")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="tokens of a prefill")
    parser.add_argument("--decode-tokens", type=int, default=64, help="tokens of a decode")
    parser.add_argument(
        "--engines",
        default="",
        help="comma separated, instead of all: gangpao,native,without-amx,xllamacpp; gangpao@COMMIT is an older build of ours",
    )
    parser.add_argument("--quick", action="store_true", help="two rounds with default settings, no result file")
    parser.add_argument("--hardware", default="", help="name of this machine in the result's file name")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the report, print the summary as one JSON line."""
    args = options(argv)
    try:
        known = ["gangpao", *peers.variants(), "xllamacpp"]
        names = args.engines.split(",") if args.engines else known
        older = set(filter(builds.is_build, names))
        for build in older:
            builds.folder(build)
        if unknown := set(names) - set(known) - older:
            raise ValueError(f"no such engine here: {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
        for variant in set(names) & set(peers.VARIANTS):
            peers.llama_bench(variant)
        tests = [Test("prefill", args.prompt_tokens), Test("decode", args.decode_tokens)]
        rounds = 2 if args.quick else args.rounds
        measured = []
        for name in args.models:
            say(f"{name}:")
            measured.append(run_model(find_model(name), names, tests, rounds, tune=not args.quick))
    except ValueError as error:
        say(f"error: {error}")
        return 2
    text = report.markdown(measured, tests, report.environment(ROOT))
    print(text)
    if not args.quick:
        hardware = args.hardware or report.hardware_slug()
        path = ROOT / "benchmarks" / "results" / f"decode_prefill_{hardware}_{date.today().isoformat()}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        say(f"written to {path.relative_to(ROOT)}")
    print(json.dumps({m.name: report.summary(m, tests) for m in measured}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
