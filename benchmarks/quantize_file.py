"""How fast a model is quantized, in how much memory, beside llama-quantize with as many threads.

    python benchmarks/quantize_file.py MODEL.gguf --llama-quantize build/bin/llama-quantize
    python benchmarks/quantize_file.py MODEL.gguf --to Q4_K_M --to Q2_K --imatrix FILE --rounds 5

MODEL is a file of floats. Each round runs ours and theirs one after the other, each as a process of its own, start and end
included; ratios are made round by round and their medians told. Memory is the process's largest resident set. Without
--llama-quantize only ours runs. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gangpao.formats.gguf import GGUF
from gangpao.units import table


def measured(command: Sequence[str]) -> tuple[float, int]:
    """Seconds and the largest resident set in bytes of a process."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}: {said.read()[-500:].decode(errors='replace')}")
    return time.perf_counter() - begun, usage.ru_maxrss * 1024


def equal_types(a: Path, b: Path) -> float:
    """Share of the tensors that have the same type in both files."""
    with GGUF.open(a) as first, GGUF.open(b) as second:
        same = [second.tensors[name].type == t.type for name, t in first.tensors.items()]
    return sum(same) / len(same)


def compared(arguments: argparse.Namespace, to: str, folder: Path) -> dict[str, object]:
    """A mixture's figures: medians of all rounds."""
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    imatrix = ["--imatrix", arguments.imatrix] if arguments.imatrix else []
    threads = str(arguments.threads)
    model = str(arguments.model)
    mine = [
        sys.executable,
        "-m",
        "gangpao.cli",
        "quantize",
        model,
        str(ours),
        "--to",
        to,
        "--threads",
        threads,
        *imatrix,
    ]
    other = [arguments.llama_quantize, *imatrix, model, str(theirs), to, threads] if arguments.llama_quantize else []
    found: list[tuple[float, int]] = []
    peers: list[tuple[float, int]] = []
    for _ in range(arguments.rounds):
        ours.unlink(missing_ok=True)
        found.append(measured(mine))
        if other:
            peers.append(measured(other))
    seconds = statistics.median(s for s, _ in found)
    out: dict[str, object] = {
        "to": to, "seconds": round(seconds, 3), "peak_bytes": max(peak for _, peak in found),
        "bytes": ours.stat().st_size, "source_bytes_per_second": round(arguments.model.stat().st_size / seconds),
    }  # fmt: skip
    if peers:
        ratios = [theirs[0] / mine[0] for mine, theirs in zip(found, peers, strict=True)]
        out |= {
            "llama_quantize_seconds": round(statistics.median(s for s, _ in peers), 3),
            "llama_quantize_peak_bytes": max(peak for _, peak in peers), "times_as_fast": round(statistics.median(ratios), 3),
            "llama_quantize_bytes": theirs.stat().st_size, "equal_types": equal_types(ours, theirs),
        }  # fmt: skip
    return out


def main() -> None:
    """Measure, then print the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-quantize", default="")
    parser.add_argument("--to", action="append", default=[])
    parser.add_argument("--imatrix", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.model.parent) as folder:
        names = arguments.to or ["Q4_0", "Q8_0", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS", "TQ2_0"]
        results = [compared(arguments, to, Path(folder)) for to in names]
    head = list(results[0])
    print(table(head, [[f"{row[key]}" for key in head] for row in results]))
    print(json.dumps({"model": arguments.model.name, "threads": arguments.threads, "results": results}))


if __name__ == "__main__":
    main()
