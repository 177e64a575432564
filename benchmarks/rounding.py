"""Better rounding against llama-quantize's with its own importance matrix: same types, same bytes, KL divergence on held-out texts.

    python benchmarks/rounding.py MODEL --sizes Q4_K_M Q3_K_M Q2_K --llama-quantize PATH --llama-imatrix PATH
        --calibration FILE ... --texts zh=FILE en=FILE code=FILE --work FOLDER

MODEL is a .gguf file, float or not (dequantized then, and the table says so). Without the two programs give --references, files of
that model which anybody quantized. Both sides see the same calibration texts: llama-imatrix as one file, ours as windows. Our file
is the reference with other numbers in the matrices (compress/rounding/replace.py), so header, types and bytes are equal.
Divergence is that of `gangpao eval perplexity --llama-cpp --float32 --against MODEL`. All of it lies in --work, and a run that
was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gangpao import machine
from gangpao.compress.rounding.config import RoundingConfig
from gangpao.compress.rounding.replace import replaced, types_of
from gangpao.compress.rounding.run import rounded
from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.perplexity.run import run_perplexity
from gangpao.evaluate.perplexity.scorers import open_scorer
from gangpao.evaluate.perplexity.texts import documents, text_files
from gangpao.evaluate.perplexity.windows import Windowing
from gangpao.progress import Progress
from gangpao.text.tokenizer import Tokenizer
from gangpao.tune.base.load import base_tokenizer

Ids = npt.NDArray[np.int64]


def calibration_texts(files: Sequence[str], characters: int) -> list[list[str]]:
    """The documents of every file, its first `characters` altogether."""
    found = []
    for one in text_files(files):
        texts: list[str] = []
        left = characters
        for document in documents([one]):
            if left <= 0:
                break
            texts.append(document.text[:left])
            left -= len(texts[-1])
        found.append(texts)
    return found


def windows(tokenizer: Tokenizer, texts: list[list[str]], count: int, length: int) -> Ids:
    """`count` windows of `length` ids, the files in turn."""
    streams = [np.array([i for text in each for i in tokenizer.encode(text)], np.int64) for each in texts]
    cut = [stream[: len(stream) // length * length].reshape(-1, length) for stream in streams]
    order = [(row, file) for file, rows in enumerate(cut) for row in range(len(rows))]
    chosen = [cut[file][row] for row, file in sorted(order)[:count]]
    if len(chosen) < count:
        raise ValueError(f"the calibration texts give {len(chosen)} windows of {length} ids, {count} are asked for")
    return np.stack(chosen)


def references(args: argparse.Namespace, work: Path, texts: list[list[str]]) -> dict[str, Path]:
    """The files to beat, by name: those given, and llama-quantize's."""
    found = {path.stem: path for path in args.references}
    if not args.sizes:
        return found
    raw, matrix = work / "calibration.txt", work / "imatrix.gguf"
    if not matrix.exists():
        raw.write_text("\n\n".join(text for each in texts for text in each), encoding="utf-8")
        command = [
            args.llama_imatrix,
            "-m",
            args.model,
            "-f",
            raw,
            "-o",
            matrix,
            "-c",
            str(args.length),
            "-t",
            args.threads,
        ]
        subprocess.run([*command, "--process-output"], check=True)
    for size in args.sizes:
        path = work / f"llama-{size}.gguf"
        if not path.exists():
            command = [
                args.llama_quantize,
                "--allow-requantize",
                "--imatrix",
                matrix,
                args.model,
                path,
                size,
                args.threads,
            ]
            subprocess.run(command, check=True)
        found[size] = path
    return found


def measured(path: Path, args: argparse.Namespace, work: Path) -> dict[str, float]:
    """Divergence from the model by language, its mean over them, and the share of equal best tokens."""
    known = work / f"{path.stem}.json"
    if known.exists():
        found: dict[str, float] = json.loads(known.read_text(encoding="utf-8"))
        return found
    options = EngineOptions(threads=int(args.threads), context=args.context)
    model, base = (open_scorer(str(p), options, float32=True) for p in (path, args.model))
    with Progress() as progress:
        result = run_perplexity(
            model, args.texts, windowing=Windowing(args.context), against=base, limit=args.windows, progress=progress,
            out=work / f"measured-{path.stem}",
        )  # fmt: skip
    by_metric = {task.metric: task for task in result.tasks}
    divergence = by_metric["kl_divergence"]
    parts = dict(divergence.parts or {})
    found = {**parts, "mean": float(np.mean(list(parts.values()))), "same_top": by_metric["same_top"].value}
    known.write_text(json.dumps(found), encoding="utf-8")
    return found


def ours(name: str, reference: Path, kind: str, ids: Ids, args: argparse.Namespace, work: Path) -> tuple[Path, float]:
    """The reference's types and bytes in our rounding, and seconds that it took (0: it was there)."""
    target = work / f"{kind}-{name}.gguf"
    if target.exists():
        return target, 0.0
    config = replace_config(args, kind)
    begun = time.monotonic()
    with Progress(show=lambda n: f"{n:.0f}") as progress:
        encode = rounded(args.model, types_of(reference), config, ids, folder=work / f"round-{name}", progress=progress)
    replaced(reference, target, encode)
    return target, time.monotonic() - begun


def replace_config(args: argparse.Namespace, kind: str) -> RoundingConfig:
    """The defaults with what --set says."""
    changes = {key: json.loads(value) for key, value in (item.split("=", 1) for item in args.set)}
    return RoundingConfig.model_validate({"kind": kind, **changes})


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sizes", nargs="*", default=[])
    parser.add_argument("--references", nargs="*", type=Path, default=[])
    parser.add_argument("--llama-quantize")
    parser.add_argument("--llama-imatrix")
    parser.add_argument("--calibration", nargs="+", required=True)
    parser.add_argument("--calibration-windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=512, help="ids of a calibration window")
    parser.add_argument("--texts", nargs="+", required=True, help="held out: zh=FILE en=FILE code=FILE")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8, help="of each text")
    parser.add_argument("--kinds", nargs="*", default=["gptq", "learned"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of RoundingConfig")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.sizes and not (args.llama_quantize and args.llama_imatrix):
        parser.error("--sizes needs --llama-quantize and --llama-imatrix; or give --references")
    if not args.sizes and not args.references:
        parser.error("give --sizes or --references")
    return args


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line a file."""
    parts = [key for key in rows[0] if key not in ("size", "rounding", "bytes", "seconds", "ratio", "mean", "same_top")]
    names = ["size", "rounding", "bytes", *parts, "mean", "same_top", "ratio", "seconds"]
    lines = ["| " + " | ".join(names) + " |", "|-" * len(names) + "|"]
    for row in rows:
        cells = [
            f"{row[n]:.5f}" if isinstance(row[n], float) and n not in ("ratio", "seconds") else row[n] for n in names
        ]
        lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else f"{c}" for c in cells) + " |")
    return lines


def main() -> None:
    args = parsed()
    args.work.mkdir(parents=True, exist_ok=True)
    import torch

    torch.set_num_threads(int(args.threads))
    tokenizer, _ = base_tokenizer(args.model)
    # Eight characters a token are more than a window needs; the files give windows in turn.
    each = -(-8 * args.length * args.calibration_windows // len(args.calibration))
    texts = calibration_texts(args.calibration, each)
    ids = windows(tokenizer, texts, args.calibration_windows, args.length)
    rows: list[dict[str, Any]] = []
    for name, reference in references(args, args.work, texts).items():
        theirs = measured(reference, args, args.work)
        size = reference.stat().st_size
        rows.append({"size": name, "rounding": "reference", "bytes": size, **theirs, "ratio": 1.0, "seconds": 0.0})
        for kind in args.kinds:
            path, seconds = ours(name, reference, kind, ids, args, args.work)
            mine = measured(path, args, args.work)
            ratio = mine["mean"] / theirs["mean"]
            row = {
                "size": name,
                "rounding": kind,
                "bytes": path.stat().st_size,
                **mine,
                "ratio": ratio,
                "seconds": seconds,
            }
            rows.append(row)
            print("\n".join(table(rows)), flush=True)
    print(json.dumps({"model": args.model.name, "machine": machine.cpu_name(), "rows": rows}))


if __name__ == "__main__":
    main()
