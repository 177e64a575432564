"""What a second start costs that finds its system prompt on the disk: seconds to restore it against seconds to compute it.

In one process, so that both see the same machine: a prompt of so many tokens is computed and saved, and in every round computed
anew in an empty cache and restored into another. Reported are medians and their ratio (the goal is below 0.05), and the bytes of
the file. The file is in the page cache, as after a restart of a server; `--cold` asks the system to forget it first.

`python benchmarks/second_start.py --help`; prints one JSON line last.
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

from against_llama import find_model, say

GOAL = 0.05
DEFAULT_MODELS = ["qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b", "smollm2-135m"]


def measure(path: Path, tokens: int, rounds: int, kv: str, *, cold: bool) -> dict[str, float]:
    from gangpao.commands.speed.sample import random_ids
    from gangpao.engine.generate import Engine
    from gangpao.engine.saved import session as file

    engine = Engine.load(path, context=tokens + 16, kv_dtype=kv)  # type: ignore[arg-type]
    ids = random_ids(engine, tokens)
    computed, restored = [], []
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "prompt.kv"
        for number in range(rounds):
            session, start = engine.session(), time.perf_counter()
            expected = session.feed(ids)
            computed.append(time.perf_counter() - start)
            if not number:
                start = time.perf_counter()
                file.save(kept, session)
                saved = time.perf_counter() - start
            if cold:
                with kept.open("rb") as opened:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            session, start = engine.session(), time.perf_counter()
            file.restore(kept, session)
            session.reuse(ids)
            found = session.feed(ids[-1:])
            restored.append(time.perf_counter() - start)
            if not (found == expected).all():
                raise ValueError("a restored cache gave other logits")
            say(f"  round {number + 1}: computed {computed[-1]:.2f} s, restored with one token {restored[-1]:.3f} s")
        size = kept.stat().st_size
    ratio = statistics.median(b / a for a, b in zip(computed, restored, strict=True))
    return {
        "compute_s": round(statistics.median(computed), 4), "restore_s": round(statistics.median(restored), 4),
        "ratio": round(ratio, 5), "save_s": round(saved, 4), "bytes": size,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=DEFAULT_MODELS)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--cold", action="store_true", help="have the system forget the file before it is read")
    given = parser.parse_args(argv)
    found = {
        name: measure(find_model(name), given.tokens, given.rounds, given.kv, cold=given.cold) for name in given.models
    }
    for name, one in found.items():
        print(f"{name:24} {one['ratio']:.2%} of the prefill (goal: below {GOAL:.0%}); {one['bytes'] / 1e6:.0f} MB")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
