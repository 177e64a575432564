"""Prefill of long prompts: how much slower a token is behind 16,384 others than behind 512, and llama.cpp in the same rounds.

Every sample is a process of its own (engines.py): ours at each length, then each peer at each length, and again. Reported are
medians in tok/s, each length against the shortest, and ours against the best peer round by round. A length that a model does not
know is left out and named.

`python benchmarks/long_prompts.py --help`; prints one JSON line last.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import engines
import peers
import report
from against_llama import find_model, say, warm
from engines import Test

DEFAULT_MODELS = ["qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b", "smollm2-135m", "minicpm-2b-random"]
LENGTHS = [512, 4096, 16384]
GOAL_LENGTH, GOAL_PEER = 0.6, 2.0  # of the longest against the shortest, and of ours against the best peer
SETTINGS = {"flash": "on", "repack": "1", "load": "mmap", "ubatch": "512"}
Samples = dict[tuple[str, int], list[float]]


def known_lengths(path: Path, lengths: Sequence[int]) -> list[int]:
    """Those that the model's context holds, with the token that is decoded behind them."""
    from gangpao.engine.config import ModelConfig
    from gangpao.formats.gguf import GGUF

    with GGUF.open(path) as gguf:
        limit = ModelConfig.from_gguf(gguf).max_position_embeddings
    return [length for length in lengths if length + 1 <= limit]


def measure(path: Path, names: Sequence[str], lengths: Sequence[int], rounds: int, threads: int) -> Samples:
    """Interleaved: engine by engine and length by length in every round."""
    warm(path)
    found: Samples = {(name, length): [] for name in names for length in lengths}
    for number in range(rounds):
        for length in lengths:
            for name in names:
                sample = engines.measure_quietly(
                    name, path, Test("prefill", length), {**SETTINGS, "threads": str(threads)}
                )
                found[name, length].append(sample.tps)
                say(f"  round {number + 1}: {name} {length}: {sample.tps:.1f} tok/s, others {sample.others:.0%}")
    return found


def summary(samples: Samples, names: Sequence[str], lengths: Sequence[int]) -> dict[str, object]:
    """Medians, each length against the first, and ours against the best peer of each length, as medians of the rounds."""
    median = {key: statistics.median(values) for key, values in samples.items()}
    rivals = [name for name in names if name != "gangpao"]
    out: dict[str, object] = {f"{name} {length}": round(median[name, length], 2) for name, length in samples}
    for length in lengths:
        for name in names:
            pairs = zip(samples[name, length], samples[name, lengths[0]], strict=True)
            out[f"{name} {length} / {lengths[0]}"] = round(statistics.median(a / b for a, b in pairs), 3)
        if rivals and "gangpao" in names:
            peer = max(rivals, key=lambda name, at=length: median[name, at])
            pairs = zip(samples["gangpao", length], samples[peer, length], strict=True)
            out[f"gangpao / {peer} {length}"] = round(statistics.median(a / b for a, b in pairs), 3)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=DEFAULT_MODELS)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of the peers; ours has its own choice")
    parser.add_argument("--engines", default=",".join(["gangpao", *peers.variants(), "xllamacpp"]))
    given = parser.parse_args(argv)
    names, lengths = given.engines.split(","), [int(one) for one in given.lengths.split(",")]
    results: dict[str, object] = {}
    for model in given.models:
        path = find_model(model)
        known = known_lengths(path, lengths)
        say(f"{model}: {', '.join(map(str, known))} tokens; it does not know {sorted({*lengths} - {*known}) or 'none'}")
        if known:
            results[model] = summary(measure(path, names, known, given.rounds, given.threads), names, known)
    print(
        f"goals: the longest >= {GOAL_LENGTH} x the shortest, ours >= {GOAL_PEER} x the best peer; on {report.cpu_name()}"
    )
    for model, one in results.items():
        for name, value in one.items() if isinstance(one, dict) else ():
            print(f"{model:24} {name:32} {value}")
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
