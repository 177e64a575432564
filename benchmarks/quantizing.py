"""How fast rows are written as GGUF blocks, and what they lose: `kernels.quantize_rows` on one large matrix, type by type.

    python benchmarks/quantizing.py [--llama LIBRARY] [--threads 2] [--rounds 5] [--types Q4_K,Q6_K]

LIBRARY is a shared library that exports llama.cpp's ggml_quantize_chunk (libggml-base.so of a build, or the extension module of the
xllamacpp package); its rows are cut among the same number of threads, and the two sides take turns, so that a loud machine slows
both. Errors are squared, as shares of the squares; with importance they are weighed by it.
"""

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gangpao import kernels
from gangpao.formats.blocks import BY_NAME, TYPES, dequantize

ROWS, COLS = 1024, 2048
Write = Callable[[np.ndarray, str, np.ndarray | None], np.ndarray]


def library(path: str, threads: int) -> Write:
    """llama.cpp's quantizer with rows cut among threads."""
    chunk = ctypes.CDLL(path).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    pool = ThreadPoolExecutor(threads)

    def write(values: np.ndarray, kind: str, importance: np.ndarray | None) -> np.ndarray:
        block = BY_NAME[kind]
        out = np.zeros((len(values), block.row_bytes(values.shape[1])), np.uint8)
        weights = None if importance is None else importance.ctypes.data

        def part(i: int) -> None:
            begin, end = len(values) * i // threads, len(values) * (i + 1) // threads
            chunk(
                block.id,
                values.ctypes.data,
                out.ctypes.data,
                begin * values.shape[1],
                end - begin,
                values.shape[1],
                weights,
            )

        list(pool.map(part, range(threads)))
        return out

    return write


def share(values: np.ndarray, raw: np.ndarray, kind: str, importance: np.ndarray | None) -> float:
    weights = np.ones(values.shape[1]) if importance is None else importance.astype(np.float64)
    lost = np.square(dequantize(raw, kind).astype(np.float64) - values) @ weights
    return float(lost.sum() / (np.square(values.astype(np.float64)) @ weights).sum())


def timed(write: Write, *arguments: object) -> tuple[float, np.ndarray]:
    begin = time.perf_counter()
    raw = write(*arguments)  # type: ignore[arg-type]
    return time.perf_counter() - begin, raw


def row(values: np.ndarray, kind: str, importance: np.ndarray | None, theirs: Write | None, rounds: int) -> str:
    """One line of the table: millions of weights a second (medians), the median of the ratios, and what is lost."""
    sides: list[Write] = [kernels.quantize_rows, *([theirs] if theirs else [])]
    seconds: list[list[float]] = [[] for _ in sides]
    raws = [side(values, kind, importance) for side in sides]
    for _ in range(rounds):
        for side, times in zip(sides, seconds, strict=True):
            times.append(timed(side, values, kind, importance)[0])
    speeds = [f"{values.size / statistics.median(times) / 1e6:.0f}" for times in seconds]
    errors = [share(values, raw, kind, importance) for raw in raws]
    cells = [kind, "yes" if importance is not None else "", *speeds, *(f"{e:.3e}" for e in errors)]
    if theirs:
        cells += [
            f"{statistics.median(b / a for a, b in zip(*seconds, strict=True)):.2f}",
            f"{errors[0] / errors[1]:.3f}",
        ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", help="A shared library with ggml_quantize_chunk.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--types", default=",".join(t.name for t in TYPES if t.block_size > 1))
    given = parser.parse_args()
    kernels.set_num_threads(given.threads)
    theirs = library(given.llama, given.threads) if given.llama else None
    rng = np.random.default_rng(0)
    values = rng.standard_t(5, size=(ROWS, COLS)).astype(np.float32) * np.float32(0.03)
    importance = rng.lognormal(0, 1, COLS).astype(np.float32)
    names = [
        "type",
        "importance",
        "M/s",
        *(["llama M/s"] if theirs else []),
        "lost",
        *(["llama lost"] if theirs else []),
    ]
    names += ["speed ratio", "loss ratio"] if theirs else []
    print(f"{kernels.describe()}; {given.threads} threads; {ROWS} x {COLS}, Student's t with 5 degrees of freedom")
    print("| " + " | ".join(names) + " |\n|" + "-|" * len(names))
    for kind in given.types.split(","):
        for weights in (None, importance):
            print(row(values, kind, weights, theirs, given.rounds))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
