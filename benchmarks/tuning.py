"""A tuning step of ours against transformers with peft: the same base, rows, adapter, AdamW, threads; in turn, medians, ratios.

    python benchmarks/tuning.py --data ROWS.jsonl [--model smollm2-135m] [--storages auto fp32] [--rounds 3] [--steps 6]

Rows are rendered and packed once by `gangpao tune`'s own code and given to both sides: nothing is padded on either, and documents
of a row do not see one another (transformers keeps them apart by their positions). The adapter of the first step is one folder of
peft's form, which both read. The peer has the GGUF file's weights in float32, which is all that transformers can do with one.
Every sample is a process of its own. Losses of every step must agree to 1e-3, or nothing is reported. Memory is the largest
resident size after the model was loaded (VmHWM, reset then).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gangpao import catalog, machine
from gangpao.data.tokens.pack import Batch
from gangpao.formats.adapters import write_peft
from gangpao.train.loop import Job, Stage, Training
from gangpao.train.progress import Report
from gangpao.train.step.lanes import lanes_for
from gangpao.train.step.optim import Optimizer
from gangpao.tune.base.load import load_base
from gangpao.tune.config import typed_config
from gangpao.tune.data.prepare import prepare
from gangpao.tune.methods import MethodConfig, apply
from gangpao.tune.objectives.build import objective_of
from gangpao.tune.objectives.logps import Settings
from gangpao.tune.run import rule_of

LR, CLIP = 2e-4, 1.0
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Work:
    """What one child process does. side: gangpao or peft; storage: of our base; rows: of a step, micro_rows of them at a time."""

    side: str
    model: str
    folder: str
    storage: str
    rank: int
    rows: int
    micro_rows: int
    steps: int
    threads: int
    recompute: bool = False


class Memory:
    """Batches that were packed before, one step after the other."""

    def __init__(self, folder: Path) -> None:
        self.arrays = dict(np.load(folder / "rows.npz"))
        self.at = 0

    def take(self, rows: int, rank: int = 0, world: int = 1) -> Batch:
        """The next rows."""
        part = {name: x[self.at : self.at + rows] for name, x in self.arrays.items()}
        self.at += rows
        return Batch(part["ids"], part["labels"], part["documents"])

    def state(self) -> dict[str, Any]:
        """Nothing that would be gone on from."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing."""


class Kept(Report):
    """A report that keeps losses and seconds."""

    def __init__(self) -> None:
        super().__init__(None)
        self.losses: list[float] = []
        self.times: list[float] = []

    def step(self, step: int, stage: str, values: dict[str, float], tokens: int, seconds: float) -> None:
        super().step(step, stage, values, tokens, seconds)
        self.losses.append(values["loss"])
        self.times.append(seconds)


def reset_peak() -> None:
    """Forget the largest resident size so far."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The largest resident size since then."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def ours(work: Work) -> dict[str, Any]:
    """Losses, seconds and memory of our steps."""
    base = load_base(Path(work.model), storage=work.storage, dtype=torch.float32)
    applied = apply(base.model, MethodConfig(rank=work.rank, alpha=float(work.rank)), seed=0)
    reset_peak()
    settings = Settings(dtype=torch.float32, recompute=work.recompute, device=torch.device("cpu"))
    objective = objective_of(typed_config(_said(work.model)).objective, settings, off=applied.off)
    options = typed_config((*_said(work.model), f"optimizer.lr={LR}")).optimizer_config()
    gradients = sum(4 * p.numel() for p in applied.trainable.values())
    lanes = lanes_for(work.threads, work.micro_rows, gradients, separable=True)
    report = Kept()
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(lanes):
        job = Job(
            Path(folder), base.model, Optimizer(base.model.named_parameters(), rule_of(applied), options), objective,
            [Stage("tune", work.steps, lambda before: Memory(Path(work.folder)))], clip=CLIP, learning_rate=lambda step: LR,
            rows=work.rows, micro_rows=work.micro_rows, report=report, lanes=lanes,
        )  # fmt: skip
        Training(job).fit()
    return {"losses": report.losses, "times": report.times, "peak": peak_bytes()}


def theirs(work: Work) -> dict[str, Any]:
    """The same of transformers with peft."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = Path(work.model)
    where: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
    root = path.parent if path.is_file() else path
    plain = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32, attn_implementation="sdpa", **where)
    plain.config.use_cache = False
    if work.recompute:
        plain.gradient_checkpointing_enable({"use_reentrant": False})
    model = PeftModel.from_pretrained(plain, Path(work.folder) / "adapter", is_trainable=True)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, betas=(0.9, 0.999), fused=True)
    reset_peak()
    source, losses, times = Memory(Path(work.folder)), [], []
    for _ in range(work.steps):
        start = time.monotonic()
        batches = [source.take(work.micro_rows) for _ in range(work.rows // work.micro_rows)]
        count = sum(int((b.labels != -100).sum()) for b in batches)
        total = 0.0
        for batch in batches:
            loss = model(
                input_ids=torch.from_numpy(batch.ids), position_ids=torch.from_numpy(positions(batch.documents)),
                labels=torch.from_numpy(batch.labels), shift_labels=torch.from_numpy(batch.labels), num_items_in_batch=count,
            ).loss  # fmt: skip
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        times.append(time.monotonic() - start)
    return {"losses": losses, "times": times, "peak": peak_bytes()}


def positions(documents: np.ndarray) -> np.ndarray:
    """Places inside of each document, [B, T]."""
    steps = np.arange(documents.shape[1])
    first = np.ones_like(documents, dtype=bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    out: np.ndarray = steps - np.maximum.accumulate(np.where(first, steps, 0), axis=1)
    return out


def _said(model: str, data: str = "rows.jsonl") -> tuple[str, ...]:
    return (f"model={json.dumps(model)}", f"data.files={json.dumps([data])}")


def write_inputs(folder: Path, path: Path, options: argparse.Namespace) -> int:
    """Rows and the first adapter, for both sides. Returns the labels in the rows."""
    config = typed_config((*_said(str(path), options.data), "data.heldout=0"))
    base = load_base(path)
    prepared = prepare(config.data, base.tokenizer, base.chat_template, options.seq_len)
    batch = prepared.train().take(options.rows * options.steps)
    np.savez(folder / "rows.npz", ids=batch.ids, labels=batch.labels, documents=batch.documents)
    applied = apply(base.model, MethodConfig(rank=options.rank, alpha=float(options.rank)), seed=0)
    write_peft(folder / "adapter", applied.adapter(), base=str(path))
    return int((batch.labels != -100).sum())


def sample(work: Work) -> dict[str, Any]:
    """What a process of its own measured."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", json.dumps(asdict(work))], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(storage: str, folder: Path, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of both sides for one storage of our base."""
    speeds: dict[str, list[float]] = {"gangpao": [], "peft": []}
    peaks: dict[str, int] = {}
    losses: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for side in speeds:
            work = Work(
                side, str(path), str(folder), storage, options.rank, options.rows, options.micro_rows, options.steps,
                options.threads, options.recompute,
            )  # fmt: skip
            found = sample(work)
            tokens = options.rows * options.seq_len
            speeds[side].append(tokens / statistics.median(found["times"][1:]))
            peaks[side], losses[side] = found["peak"], found["losses"]
            print(f"  {storage} round {number + 1} {side}: {speeds[side][-1]:.0f} tok/s", file=sys.stderr)
    far = max(abs(a - b) for a, b in zip(losses["gangpao"], losses["peft"], strict=True))
    if far > TOLERANCE:
        raise SystemExit(f"{storage}: losses differ by {far:.2g}: {losses}")
    medians = {side: statistics.median(values) for side, values in speeds.items()}
    return {
        "storage": storage, "tok_s": medians, "peak_mb": {side: round(v / 2**20) for side, v in peaks.items()},
        "speed": round(medians["gangpao"] / medians["peft"], 2), "memory": round(peaks["gangpao"] / peaks["peft"], 2),
        "largest_loss_difference": far, "steps": options.steps,
    }  # fmt: skip


def main() -> None:
    """Write the inputs, take turns, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker")
    parser.add_argument("--data")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--storages", nargs="+", default=["auto", "fp32"])
    for name, value in (("rank", 32), ("rows", 4), ("micro-rows", 2), ("seq-len", 512), ("steps", 6), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=machine.physical_cores())
    parser.add_argument("--recompute", action="store_true")
    options = parser.parse_args()
    if options.worker:
        work = Work(**json.loads(options.worker))
        torch.set_num_threads(work.threads)
        print(json.dumps(ours(work) if work.side == "gangpao" else theirs(work)))
        return
    given = Path(options.model)
    path = given if given.exists() else catalog.resolve(options.model)
    with tempfile.TemporaryDirectory() as folder:
        labels = write_inputs(Path(folder), path, options)
        print(f"{path.name}, {machine.cpu_name()}, {options.threads} threads, rank {options.rank}, {labels} labels")
        found = [compare(storage, Path(folder), path, options) for storage in options.storages]
    for row in found:
        print(
            f"{row['storage']:>6}: {row['tok_s']['gangpao']:.0f} against {row['tok_s']['peft']:.0f} tok/s, {row['speed']} x; "
            f"{row['peak_mb']['gangpao']} against {row['peak_mb']['peft']} MB, {row['memory']} x; losses differ by at most "
            f"{row['largest_loss_difference']:.1e} in {row['steps']} steps"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
