"""Decode speed by weight type, and of half-size models, in one run: fewer bytes must be fewer seconds.

    python benchmarks/low_bit.py                      # a 2B model, 12 rounds; 8 GB of memory and of disk, five minutes
    python benchmarks/low_bit.py --layers 8 --rounds 5 --threads 1

A random model (speed does not depend on what weights say) of each type, all of them loaded at once and asked in turn, so
that a loud neighbour is loud for everyone. Every matrix is of the type, the head too. Reported: bytes that a token reads,
tok/s, the share of what the memory gives, and tok/s over that of Q4_K round by round: median and quartiles. Half the
layers and half the FFN are measured at Q4_K. The last line is JSON; --out writes results/low_bit_<hardware>_<date>.md.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import gguf
import numpy as np
import report
from gguf import GGMLQuantizationType as Type

from gangpao import kernels
from gangpao.engine.transformer import Transformer
from gangpao.formats import blocks
from gangpao.formats.gguf import GGUF

ROOT = Path(__file__).resolve().parent.parent
BASE = "Q4_K"
GOALS = {"Q3_K": 1.2, "Q2_K": 1.4, "TQ2_0": 1.6}  # tok/s over that of Q4_K
# Where the f16 scales of a block are.
SCALES = {
    "Q4_0": (0,), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,),
    "TQ2_0": (64,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
PROMPT = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama-like model: the 2B class of MiniCPM5."""

    hidden: int = 2048
    ffn: int = 6144
    layers: int = 42
    heads: int = 16
    kv_heads: int = 2
    vocab: int = 130_560

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Name -> (rows, columns) of a layer's matrices."""
        h, kv = self.hidden, self.hidden // self.heads * self.kv_heads
        rows = {"attn_q": h, "attn_k": kv, "attn_v": kv, "attn_output": h, "ffn_gate": self.ffn, "ffn_up": self.ffn}
        return {name: (n, h) for name, n in rows.items()} | {"ffn_down": (h, self.ffn)}


@dataclass(slots=True)
class Case:
    """One model: its name in the table, type and shape, and what was measured, round by round."""

    name: str
    kind: str
    shape: Shape
    model: Transformer
    tps: list[float]


def draw(rng: np.random.Generator, kind: str, rows: int, cols: int) -> np.ndarray:
    """Random blocks uint8 [rows, row bytes] with a weight deviation of about 1 / sqrt(cols)."""
    block = blocks.BY_NAME[kind]
    raw = rng.integers(0, 256, (rows, cols // block.block_size, block.type_size), dtype=np.uint8)
    if kind == "TQ2_0":  # its values are 0, 1, 2
        raw[..., :64] &= 0xAA
    for factor in (1.0, None):
        if factor is None:
            factor = 1 / (blocks.dequantize(raw[:8].reshape(8, -1), kind).std() * cols**0.5)
        for at in SCALES[kind]:
            raw[..., at : at + 2] = np.float16(factor).reshape(1).view(np.uint8)
    return raw.reshape(rows, -1)


def write(path: Path, kind: str, s: Shape) -> None:
    """A model file in which every matrix has the type; all layers share what was drawn for the first."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(s.hidden)
    writer.add_feed_forward_length(s.ffn)
    writer.add_block_count(s.layers)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(s.hidden // s.heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(s.vocab)
    writer.add_tokenizer_model("llama")
    rng = np.random.default_rng(0)
    ones = np.ones(s.hidden, np.float32)
    wide = draw(rng, kind, s.vocab, s.hidden)
    layer = {name: draw(rng, kind, rows, cols) for name, (rows, cols) in s.matrices().items()}
    tensors = {"token_embd.weight": wide, "output.weight": wide, "output_norm.weight": ones}
    for i in range(s.layers):
        tensors |= {f"blk.{i}.{name}.weight": raw for name, raw in layer.items()}
        tensors |= {f"blk.{i}.{name}.weight": ones for name in ("attn_norm", "ffn_norm")}
    for name, raw in tensors.items():
        if raw.dtype == np.uint8:
            writer.add_tensor_info(name, raw.shape, raw.dtype, raw.nbytes, Type[kind])
        else:
            writer.add_tensor_info(name, raw.shape, raw.dtype, raw.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for raw in tensors.values():
        writer.write_tensor_data(raw)
    writer.close()


def load(folder: Path, name: str, kind: str, shape: Shape) -> Case:
    """Writes a model, packs it, and forgets the file (the open mapping keeps its embedding)."""
    say(f"  {name}")
    path = folder / "model.gguf"
    write(path, kind, shape)
    model = Transformer.load(GGUF.open(path))
    path.unlink()
    return Case(name, kind, shape, model, [])


def decode(model: Transformer, tokens: int, clock: Callable[[], float]) -> float:
    """tok/s of so many tokens behind a short prompt."""
    cache = model.new_cache(PROMPT + tokens + 1)
    model.forward(list(range(1, PROMPT + 2)), cache)
    begin = clock()
    for i in range(tokens):
        model.forward([i + 2], cache)
    return tokens / (clock() - begin)


def bandwidth(clock: Callable[[], float]) -> float:
    """GB/s that the kernels' own reading loop gets by this clock: it reads half a GB at least three times and says its best."""
    begin, cpu = time.perf_counter(), clock()
    best = kernels.read_bandwidth(0.1)
    return best if clock is time.perf_counter else best * (time.perf_counter() - begin) / (clock() - cpu)


def measure(cases: list[Case], rounds: int, tokens: int, clock: Callable[[], float]) -> list[float]:
    """Every case once a round, in an order that turns. Returns what the memory gave in each round, GB/s."""
    gave = []
    for i in range(rounds):
        gave.append(bandwidth(clock))
        for case in cases[i % len(cases) :] + cases[: i % len(cases)]:
            case.tps.append(decode(case.model, tokens, clock))
        say(f"  round {i + 1} of {rounds}: memory {gave[-1]:.1f} GB/s")
    return gave


def rows_of(cases: list[Case], gave: list[float]) -> list[dict[str, object]]:
    """What the table and the JSON say of each case."""
    base = next(c for c in cases if c.name == BASE)
    out: list[dict[str, object]] = []
    for case in cases:
        ratios = [a / b for a, b in zip(case.tps, base.tps, strict=True)]
        low, middle, high = report.quartiles(ratios)
        tps, read = statistics.median(case.tps), case.model.bytes_per_token
        shares = [t * read / 1e9 / g for t, g in zip(case.tps, gave, strict=True)]
        weights = (
            case.shape.layers * sum(r * c for r, c in case.shape.matrices().values())
            + case.shape.vocab * case.shape.hidden
        )
        out.append(
            {
                "name": case.name, "bits": read * 8 / weights, "bytes_per_token": read, "tps": tps, "gb_per_s": tps * read / 1e9,
                "share_of_memory": statistics.median(shares), "ratio": middle, "quartiles": [low, high],
                "bytes_ratio": base.model.bytes_per_token / read, "goal": GOALS.get(case.name),
            }
        )  # fmt: skip
    return out


def markdown(rows: list[dict[str, object]], gave: list[float], args: argparse.Namespace) -> str:
    """The report."""
    clock = "CPU time of the thread" if args.cpu_time else "time of the clock"
    memory = f"{statistics.median(gave):.1f} GB/s ({min(gave):.1f} to {max(gave):.1f})"
    lines = [
        "# Decode speed by weight type", "",
        f"{report.cpu_name()}, {kernels.isa_name()} kernels, {kernels.num_threads()} threads; memory read at {memory} between",
        f"the rounds; {clock}; commit {report.commit(ROOT)}; {date.today().isoformat()}.", "",
        f"A random Llama model: {args.layers} layers, hidden 2048, FFN 6144, vocabulary 130,560; every matrix of the type, the",
        f"head too. {args.rounds} rounds of {args.tokens} tokens, all models in turn. Ratios are to {BASE}, round by round: median",
        "(quartiles).", "",
        "| model | bits a weight in memory | MB a token | tok/s | GB/s | of the memory | fewer bytes | faster | wanted |",
        "|-|-|-|-|-|-|-|-|-|",
    ]  # fmt: skip
    for r in rows:
        low, high = r["quartiles"]
        goal = f">= {r['goal']}" if r["goal"] else ""
        lines.append(
            f"| {r['name']} | {r['bits']:.3f} | {r['bytes_per_token'] / 1e6:,.0f} | {r['tps']:.1f} | {r['gb_per_s']:.1f} | "
            f"{r['share_of_memory']:.0%} | {r['bytes_ratio']:.2f} x | {r['ratio']:.2f} x ({low:.2f} to {high:.2f}) | {goal} |"
        )
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    """Progress on stderr; stdout is for the result."""
    print(text, file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--types", default="Q3_K,Q2_K,TQ2_0,TQ1_0,IQ4_XS,Q4_0,IQ4_NL", help="beside Q4_K, comma separated"
    )
    parser.add_argument("--layers", type=int, default=Shape.layers, help="fewer layers need less memory and time")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=8, help="decoded tokens of a sample")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread, timed while it runs: for a machine that others use"
    )
    parser.add_argument("--out", action="store_true", help="write the result file")
    args = parser.parse_args()
    args.threads = 1 if args.cpu_time else args.threads
    if args.layers < 2:
        parser.error("--layers: at least 2, because half of them are measured too")
    if unknown := set(args.types.split(",")) - set(SCALES):
        parser.error(f"no such types here: {', '.join(sorted(unknown))}; choose from {', '.join(SCALES)}")
    return args


def main() -> None:
    """Measure and report."""
    args = options()
    kernels.set_num_threads(args.threads)
    full = replace(Shape(), layers=args.layers)
    wanted = [(kind, kind, full) for kind in [BASE, *(k for k in args.types.split(",") if k != BASE)]]
    wanted.append((f"{BASE}, half the layers", BASE, replace(full, layers=args.layers // 2)))
    wanted.append((f"{BASE}, half the FFN", BASE, replace(full, ffn=full.ffn // 2)))
    say("writing and loading:")
    with tempfile.TemporaryDirectory() as folder:
        cases = [load(Path(folder), *one) for one in wanted]
        gave = measure(cases, args.rounds, args.tokens, time.thread_time if args.cpu_time else time.perf_counter)
    rows = rows_of(cases, gave)
    text = markdown(rows, gave, args)
    print(text)
    if args.out:
        path = ROOT / "benchmarks" / "results" / f"low_bit_{report.hardware_slug()}_{date.today().isoformat()}.md"
        path.write_text(text, encoding="utf-8")
        say(f"written to {path.relative_to(ROOT)}")
    print(json.dumps({"memory_gb_per_s": statistics.median(gave), "threads": args.threads, "models": rows}))


if __name__ == "__main__":
    main()
