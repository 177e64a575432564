"""Small trials side by side: two of one thread at once against one of two threads, and what a trial costs beside its steps.

    python benchmarks/packing.py --rounds 3 --out

Each round trains the same trials twice, in folders of their own and in turns: with a worker for each core, then with one worker
that has all cores. Measured is what a user of `gangpao sandbox` waits for: from the call to the last result, start of the
workers included. The text is made up (configs/data-tiny.toml), so that anyone can run it.
The last line is JSON; --out writes results/packing_<hardware>_<date>.md.
"""

import argparse
import json
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import report

from gangpao import machine
from gangpao.sandbox.trials.config import SandboxConfig
from gangpao.sandbox.trials.driver import Driver

ROOT = Path(__file__).resolve().parent.parent


def config(data: Path, *, workers: int, threads: int, arguments: argparse.Namespace) -> SandboxConfig:
    """Trials as in configs/sandbox-nano.toml."""
    return SandboxConfig.model_validate(
        {
            "data": str(ROOT / "configs/data-tiny.toml"), "data_dir": str(data), "workers": workers, "threads": threads,
            "seq_len": 256, "head_dim": 16, "heldout_tokens": 8192, "micro_tokens": 2048,
            "base": {"width": 64, "layers": 4, "batch_tokens": 1024},
            "common": {"width": arguments.width, "layers": arguments.layers, "batch_tokens": 1024, "tokens": arguments.tokens},
        }
    )  # fmt: skip


def measure(wanted: SandboxConfig, out: Path, number: int) -> dict[str, float]:
    """Seconds of all trials from the call to the last result, and of their steps; of a trial's time what is not steps: of the
    middle one, and of the worst, which is a worker's first and pays for torch's own start."""
    driver = Driver(wanted, out)
    specs = [driver.lab.spec(lr=0.004 + 0.001 * i) for i in range(number)]
    begin = time.perf_counter()
    found = driver.submit("lr", specs)
    wall = time.perf_counter() - begin
    driver.close()
    overheads = sorted(1 - r.busy / r.seconds for r in found)
    return {
        "wall": wall,
        "busy": sum(r.busy for r in found),
        "overhead": statistics.median(overheads),
        "most": overheads[-1],
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=6, help="of each arm in a round")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=262_144)
    parser.add_argument("--out", action="store_true", help="write a file under results/")
    arguments = parser.parse_args()
    cores = machine.physical_cores()
    arms = {"packed": (cores, 1), "alone": (1, cores)}
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        for i in range(arguments.rounds):
            found = {}
            for name, (workers, threads) in arms.items():
                wanted = config(data, workers=workers, threads=threads, arguments=arguments)
                found[name] = measure(wanted, Path(folder) / f"{name}-{i}", arguments.trials)
            ratio = found["alone"]["wall"] / found["packed"]["wall"]
            print(
                f"round {i + 1}: packed {found['packed']['wall']:.1f} s, alone {found['alone']['wall']:.1f} s, {ratio:.2f} x",
                flush=True,
            )
            rounds.append(found)
    per_hour = {name: statistics.median(3600 * arguments.trials / r[name]["wall"] for r in rounds) for name in arms}
    ratios = [r["alone"]["wall"] / r["packed"]["wall"] for r in rounds]
    overhead, most = ([r["packed"][name] for r in rounds] for name in ("overhead", "most"))
    waiting = [1 - r["packed"]["busy"] / (cores * r["packed"]["wall"]) for r in rounds]
    result = {
        "trials_per_hour": per_hour, "ratio": statistics.median(ratios), "ratios": ratios,
        "overhead_of_a_trial": statistics.median(overhead), "of_a_first_trial": statistics.median(most),
        "not_in_steps_of_all": statistics.median(waiting),
        "trial": f"{arguments.width}x{arguments.layers}, {arguments.tokens:,} tokens", "cores": cores,
    }  # fmt: skip
    if arguments.out:
        write(result)
    print(json.dumps(result))


def write(result: dict) -> None:
    """The result as a page."""
    rounds, each = ", ".join(f"{r:.2f}" for r in result["ratios"]), result["trials_per_hour"]
    lines = [
        "# Trials side by side",
        "",
        f"{report.cpu_name()}, {date.today()}. `python benchmarks/packing.py --rounds {len(result['ratios'])}`.",
        f"Trials of {result['trial']}.",
        "",
        "| | trials an hour |",
        "|-|-|",
        f"| {result['cores']} workers of one thread | {each['packed']:.0f} |",
        f"| one worker of {result['cores']} threads | {each['alone']:.0f} |",
        "",
        f"Ratio {result['ratio']:.2f} (rounds {rounds}).",
        "",
        f"Of a trial's time {result['overhead_of_a_trial']:.1%} is not its steps: building the model, held-out loss, saving;",
        f"of a worker's first trial {result['of_a_first_trial']:.1%}, because torch itself has to start.",
        f"Of the time of all cores from the call to the last result {result['not_in_steps_of_all']:.1%} is not steps: that, the",
        "start of the workers, and the end, when one of them has nothing left.",
    ]
    path = Path(__file__).parent / "results" / f"packing_{report.hardware_slug()}_{date.today()}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
