"""From a model file to the first token, ours against llama.cpp's, interleaved; and the memory that is resident then.

Each sample is a process of its own; the clock starts when everything is imported and stops with the first token behind a prompt of
eight. The file is in the page cache for everyone. Ours twice: packed from the file, and with `--packed-cache` (the second start;
packed weights lie in a folder of this benchmark). llama.cpp (xllamacpp) with and without repacking, mapped: the faster one counts.

    python benchmarks/loading.py                             # qwen2.5-coder-1.5b, seven rounds
    python benchmarks/loading.py --rounds 1 smollm2-135m     # a try

The last line is JSON: medians of seconds, ratio ours / llama.cpp round by round, resident bytes over the file's.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import engines
from against_llama import find_model, say, warm

PROMPT = list(range(100, 108))
OURS, PACKED, REPACKED, MAPPED = "gangpao", "gangpao packed", "llama.cpp", "llama.cpp without repacking"


def worker(engine: str, model: str, threads: int) -> dict[str, float]:
    """One sample in this process: seconds to have it loaded and to its first token, and resident bytes."""
    return _ours(model, threads, engine == PACKED) if engine in (OURS, PACKED) else _theirs(engine, model, threads)


def _ours(model: str, threads: int, packed: bool) -> dict[str, float]:
    from gangpao.engine.generate import Engine
    from gangpao.engine.sample import SamplingParams

    start = time.perf_counter()
    engine = Engine.load(model, context=512, num_threads=threads, packed=10**12 if packed else 0)
    loaded = time.perf_counter()
    generation = engine.generate(PROMPT, SamplingParams(temperature=0, max_tokens=1))
    for _ in generation:
        pass
    end = time.perf_counter()
    return {"load_s": loaded - start, "first_s": end - start, **resident()}


def _theirs(engine: str, model: str, threads: int) -> dict[str, float]:
    import xllamacpp
    from xllamacpp_worker import parameters

    settings = {"ubatch": "512", "threads": str(threads), "flash": "on", "load": "mmap"}
    start = time.perf_counter()
    server = xllamacpp.Server(parameters(model, 512, settings | {"repack": str(int(engine == REPACKED))}))
    loaded = time.perf_counter()
    server.handle_completions({"prompt": PROMPT, "n_predict": 1, "temperature": 0, "cache_prompt": False})
    end = time.perf_counter()
    return {"load_s": loaded - start, "first_s": end - start, **resident()}


def resident() -> dict[str, float]:
    """Resident bytes of this process: all, those of its own (anonymous), and those of files."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if ":" in line
    )
    sizes = {name: int(fields[key].split()[0]) * 1024 for name, key in
             (("rss", "VmRSS"), ("anonymous", "RssAnon"), ("of_files", "RssFile"))}  # fmt: skip
    return {name: float(size) for name, size in sizes.items()}


def sample(engine: str, model: Path, threads: int, home: str) -> dict[str, float]:
    """The same in a process of its own."""
    os.environ["GANGPAO_HOME"] = home
    command = [sys.executable, "-P", __file__, "--worker", engine, "--threads", str(threads), str(model)]
    out, _, _ = engines.run([sys.executable, *command[2:]])
    found: dict[str, float] = json.loads(out.strip().splitlines()[-1])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-1.5b")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--worker", choices=[OURS, PACKED, REPACKED, MAPPED])
    args = parser.parse_args(argv)
    if args.worker:
        print(json.dumps(worker(args.worker, args.model, args.threads)))
        return 0
    path = find_model(args.model)
    warm(path)
    names = [OURS, PACKED, REPACKED, MAPPED]
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as home:
        sample(PACKED, path, args.threads, home)  # writes the packed weights
        for number in range(args.rounds):
            rounds.append({name: sample(name, path, args.threads, home) for name in names})
            say(f"round {number + 1}: " + ", ".join(f"{name} {rounds[-1][name]['first_s']:.2f} s" for name in names))
    size = path.stat().st_size
    print(f"{path.name}, {size / 1e6:,.0f} MB, {args.threads} threads\n")
    print(f"{'':30} {'load s':>7} {'first s':>8} {'resident':>9} {'its own':>8} {'of files':>9}   (of the file's size)")
    for name in names:
        load, first, rss, own, files = (
            statistics.median(one[name][key] for one in rounds)
            for key in ("load_s", "first_s", "rss", "anonymous", "of_files")
        )
        print(f"{name:30} {load:7.2f} {first:8.2f} {rss / size:9.2f} {own / size:8.2f} {files / size:9.2f}")
    ratios = {
        name: statistics.median(
            one[name]["first_s"] / min(one[REPACKED]["first_s"], one[MAPPED]["first_s"]) for one in rounds
        )
        for name in (OURS, PACKED)
    }
    resident_share = {name: statistics.median(one[name]["rss"] for one in rounds) / size for name in names}
    print(json.dumps({"model": path.name, "first_token_over_llama": ratios, "resident_over_file": resident_share}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
