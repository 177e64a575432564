"""What adapters cost: decode steps of the base and of the same model with adapters of rank 16 on all seven linear layers.

    python benchmarks/adapters.py                     # smollm2-135m, 15 rounds, some minutes
    python benchmarks/adapters.py MODEL --rounds 3

Each round measures, one after the other: one answer and eight answers of the base, one with an adapter, eight with an adapter each,
eight with the same. Ratios are made round by round, and their medians told, so that what others do meanwhile counts in both. The
last line is JSON: tokens a second, bytes of an adapter, and the share of the base's speed that is left.
"""

import argparse
import json
import statistics
import time

import numpy as np

from gangpao import machine
from gangpao.commands.model.loading import load_engine
from gangpao.engine.adapters import module_shapes
from gangpao.engine.config import Mix
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions
from gangpao.engine.transformer import Segment
from gangpao.formats.adapters import Adapter, Part

STREAMS = 8
CONTEXT = 256
ONE: Mix = ((0, 1.0),)
CASES: dict[str, list[Mix]] = {
    "1 base": [()],
    "1 adapter": [ONE],
    f"{STREAMS} base": [()] * STREAMS,
    f"{STREAMS} with {STREAMS} adapters": [((i, 1.0),) for i in range(STREAMS)],
    f"{STREAMS} with one adapter": [ONE] * STREAMS,
}


def random_adapter(engine: Engine, rank: int, seed: int) -> Adapter:
    """On every linear layer but the head."""
    rng = np.random.default_rng(seed)
    parts = {
        name: Part(
            rng.normal(size=(rank, cols)).astype(np.float32) / np.float32(cols**0.5),
            rng.normal(size=(rows, rank)).astype(np.float32) / 100,
            1.0,
        )
        for name, (rows, cols) in module_shapes(engine.model.config).items()
        if ".layers." in name
    }
    return Adapter(parts)


def measure(engine: Engine, mixes: list[Mix], steps: int) -> float:
    """Tokens a second of that many answers at once, from the median of the steps."""
    pool = engine.model.new_pool(CONTEXT, "f16", CONTEXT * len(mixes))
    caches = [pool.new(mix) for mix in mixes]
    seconds = []
    for i in range(steps + 4):
        if not all(cache.reserve(1) for cache in caches):
            raise ValueError("too many steps for the context of this measurement")
        begin = time.perf_counter()
        engine.model.step([Segment(cache, [i + 5], 1) for cache in caches])
        seconds.append(time.perf_counter() - begin)
    return len(mixes) / statistics.median(seconds[4:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    engine = load_engine(arguments.model, options=EngineOptions(context=CONTEXT, threads=arguments.threads))
    for i in range(STREAMS):
        engine.model.add_adapter(f"a{i}", random_adapter(engine, arguments.rank, i))
    watch = machine.Watch()
    found: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(arguments.rounds):
        for name, mixes in CASES.items():
            found[name].append(measure(engine, mixes, arguments.steps))
    ratios = {
        name: statistics.median(a / b for a, b in zip(found[name], found[f"{name.split()[0]} base"], strict=True))
        for name in CASES
        if "base" not in name
    }
    size = engine.model.adapters["a0"].nbytes
    print(
        f"{engine.name}: {engine.model.nbytes / 1e6:.1f} MB of weights, {size / 1e6:.1f} MB an adapter; {watch.read()}"
    )
    for name, values in found.items():
        share = f"   {ratios[name]:.3f} of the base" if name in ratios else ""
        print(f"{name:24} {statistics.median(values):8.1f} tok/s{share}")
    tps = {name: round(statistics.median(values), 1) for name, values in found.items()}
    print(json.dumps({"tps": tps, "ratios": {k: round(v, 4) for k, v in ratios.items()}, "adapter_bytes": size}))


if __name__ == "__main__":
    main()
