"""Which learning rate? Full tuning and LoRA at several rates, and LoRA on float weights beside LoRA on the same weights in 4 bits.

    python benchmarks/tuning_rates.py PAGES.jsonl.zst --out FOLDER [--model smollm2-135m] [--steps 60] [--seeds 0]
        [--full 1e-5,2e-5,...] [--lora 1e-4,2e-4,...] [--types Q4_K_M,Q4_0] [--at 4e-4]

The rows are those of tuning_shell.py, the measure is the loss of rows that are held out (tools that were seen, and others),
before the first step and after the last. FOLDER/float holds the file's weights as a Hugging Face folder in float32, which full
tuning needs; for each of --types these weights are quantized by `gangpao quantize`, and LoRA runs at --at on the folder and on
every file. A run goes on where it stopped and is not repeated; results are written to FOLDER/rates.json and printed as tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch
import tuning_shell

from gangpao import catalog, machine
from gangpao.model import weights
from gangpao.train.progress import read_metrics
from gangpao.tune.base.load import base_tokenizer_files, load_base


def float_folder(folder: Path, model: Path) -> Path:
    """The weights of a file as a Hugging Face folder in float32."""
    if not folder.is_dir():
        base = load_base(model, storage="fp32", dtype=torch.float32)
        weights.save(folder, base.config, weights.state(base.model), extra=base_tokenizer_files(model))
    return folder


def quantized(folder: Path, source: Path, kind: str) -> Path:
    """The same weights as a file of one mixture."""
    path = folder / f"{kind}.gguf"
    if not path.is_file():
        _gangpao("quantize", str(source), str(path), "--to", kind)
    return path


def _gangpao(*said: str) -> None:
    subprocess.run([*tuning_shell.GANGPAO, *said], check=True)


def losses(name: str, base: Path, method: str, rate: float, seed: int, options: argparse.Namespace) -> list[float]:
    """Held-out losses before and after one run, which is made if it is not there."""
    out = options.out / f"{name}-{rate:g}-{seed}"
    table = {
        "steps": options.steps, "seq_len": 256, "batch_tokens": 1024, "seed": seed, "data.seed": seed, "method.kind": method,
        "optimizer.lr": rate, "evaluation.every_steps": options.steps, "save.every_steps": options.steps,
    }  # fmt: skip
    folder = options.out / f"rows-{seed}"
    sets = [f"--set={key}={value}" for key, value in table.items()]
    config = folder / "tune.toml"
    config.write_text(
        f'model = "{base.resolve()}"\n[data]\nfiles = ["train.jsonl"]\nheldout_files = ["heldout.jsonl"]\n',
        encoding="utf-8",
    )
    _gangpao("tune", str(config), "--out", str(out), *sets)
    return [m["heldout"]["heldout"] for m in read_metrics(out) if "heldout" in m]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All runs: {"rates": [...], "bases": [...]}, each with its losses a seed."""
    file = catalog.resolve(options.model)
    folder = float_folder(options.out / "float", file)
    for seed in options.seeds:
        tuning_shell.write_inputs(
            options.out / f"rows-{seed}",
            tuning_shell.split(options.pages, seed),
            argparse.Namespace(model=options.model, steps=options.steps, seed=seed, rank=32, lr=1e-4),
        )
    found: dict[str, Any] = {"model": options.model, "steps": options.steps, "machine": machine.cpu_name()}
    found |= {"commit": machine.git_commit(), "rates": [], "bases": []}

    def add(part: str, name: str, base: Path, method: str, rate: float) -> None:
        runs = [losses(name, base, method, rate, seed, options) for seed in options.seeds]
        found[part].append({"name": name, "rate": rate, "losses": runs})
        (options.out / "rates.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    for rate in options.lora:
        add("rates", "lora", file, "lora", rate)
    for rate in options.full:
        add("rates", "full", folder, "full", rate)
    if options.types:
        add("bases", "lora-float", folder, "lora", options.at)
        for kind in options.types:
            add("bases", f"lora-{kind}", quantized(options.out, folder, kind), "lora", options.at)
    return found


def _table(rows: list[dict[str, Any]]) -> list[str]:
    out = ["| run | rate | before | after |", "|-|-:|-:|-:|"]
    for row in rows:
        before, after = (statistics.mean(run[i] for run in row["losses"]) for i in (0, -1))
        each = "" if len(row["losses"]) == 1 else " (" + ", ".join(f"{run[-1]:.4f}" for run in row["losses"]) + ")"
        out.append(f"| {row['name']} | {row['rate']:g} | {before:.4f} | {after:.4f}{each} |")
    return out


def _list(kind: type) -> Any:
    return lambda text: [kind(part) for part in text.split(",") if part]


def main() -> None:
    """Run what is missing, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=_list(int), default=[0])
    parser.add_argument("--full", type=_list(float), default=[1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4])
    parser.add_argument("--lora", type=_list(float), default=[1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3])
    parser.add_argument("--types", type=_list(str), default=["Q4_K_M", "Q4_0"])
    parser.add_argument("--at", type=float, default=4e-4)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = measure(options)
    print("\n".join([f"{options.model}, {options.steps} steps of 1,024 tokens", *_table(found["rates"])]))
    if found["bases"]:
        print("\n".join(_table(found["bases"])))


if __name__ == "__main__":
    main()
