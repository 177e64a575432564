"""Quality and speed of a dense model whose MLPs are cut into experts, against the share of them that a token meets.

    python benchmarks/experts.py MODEL --text HELD.txt ... [--calibrate FILE ...] [--shares 0.75,0.5,0.25] [--out folder] [--speed]

For each share: experts by co-activation, the same at random, and an MLP of that share of the channels, those that carry most,
whose down projection takes over by the same least squares (nothing is routed, and the file is smaller: the honest rival). Loss
and KL to the dense model are of the held-out texts; the calibration text must not be among them. MODEL is a Hugging Face folder
or a .gguf file, which becomes floats. With --speed each experts model is written as Q8_0 and decodes in our engine; run it on an
idle machine. Results go to OUT/experts.json and a table to the terminal; what is there is not computed again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gangpao.compress.experts import run
from gangpao.compress.experts.config import ExpertsConfig
from gangpao.compress.experts.layer import Problem, shares
from gangpao.compress.importance.config import CalibrationConfig
from gangpao.deploy import gguf as writer
from gangpao.engine.transformer import Transformer as Engine
from gangpao.engine.transformer import greedy
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from gangpao.model.transformer import Transformer
from gangpao.tune.base.load import Base, load_base

LENGTH = 256


def held_out(base: Base, files: list[Path], windows: int) -> np.ndarray:
    """Windows [windows, LENGTH], the files in equal parts, from their beginnings."""
    each = -(-windows // len(files))
    rows = []
    for path in files:
        ids = base.tokenizer.encode(path.read_text(encoding="utf-8")[: each * LENGTH * 12])
        rows += [ids[i * LENGTH : (i + 1) * LENGTH] for i in range(min(each, len(ids) // LENGTH))]
    return np.array(rows[:windows])


@torch.no_grad()
def measured(model: Transformer, dense: Transformer, ids: np.ndarray) -> dict[str, float]:
    """Mean loss of the next token, mean KL(dense || model) and how often both have the same first choice."""
    loss = divergence = same = 0.0
    for row in ids:
        t = torch.from_numpy(row)[None]
        p, q = (m.logits(m(t).hidden)[0, :-1].log_softmax(-1) for m in (dense, model))
        loss += float(F.nll_loss(q, t[0, 1:]))
        divergence += float((p.exp() * (p - q)).sum(-1).mean())
        same += float((p.argmax(-1) == q.argmax(-1)).float().mean())
    return {"loss": loss / len(ids), "kl": divergence / len(ids), "same_first": same / len(ids)}


@torch.no_grad()
def pruned(source: Path, config: ExpertsConfig, share: float) -> Transformer:
    """The model with that share of the channels in every MLP."""
    base = load_base(source, storage="fp32", dtype=torch.float32)
    model = base.model
    hidden, cos, sin = run.start(model, torch.from_numpy(run.windows(base, config)))
    for block in model.model.layers:
        inputs = run.attended(block, hidden, cos, sin)
        dense, samples = run.sampled(block, hidden, inputs)
        inner = dense.inner(samples.x)
        carried = shares(inner, dense)[~samples.measured].mean(0)
        kept = carried.argsort(descending=True, stable=True)[: round(share * len(carried))].sort().values
        problem = Problem(dense, samples, inner, kept[None], kept[:0])
        columns = problem.flat(dense.down[None][:, :, kept])
        down = problem.spread(problem.taken_over(columns, torch.ones(len(samples.x), 1)))[0]
        for name, value in (("gate", dense.gate[kept]), ("up", dense.up[kept]), ("down", down)):
            block.mlp.get_submodule(f"{name}_proj").weight = nn.Parameter(value.contiguous(), requires_grad=False)
        for at in run.pieces(hidden):
            hidden[at] += block.mlp(inputs[at]) * block.residual_scale
    return model


def speed(folder: Path, target: Path, tokens: int) -> dict[str, float]:
    """Tokens a second of decoding in our engine, and the bytes that one reads."""
    if not target.is_file():
        writer.export(folder, target, "Q8_0", check=False)
    with GGUF.open(target) as gguf:
        engine = Engine.load(gguf)
        greedy(engine, [1, 2, 3], 8)
        began = time.perf_counter()
        greedy(engine, [1, 2, 3], tokens)
        seconds = time.perf_counter() - began
        out = {"tokens_per_s": tokens / seconds, "bytes_per_token": engine.bytes_per_token, "bytes": engine.nbytes}
        del engine
    return out


def variants(shares: list[float], experts: int) -> Iterator[tuple[str, float, dict[str, object]]]:
    """Name, share and what is asked of the step (nothing: pruning)."""
    for share in shares:
        active = max(1, round(share * experts))
        yield f"experts {share:g}", share, {"active": active}
        yield f"random {share:g}", share, {"active": active, "clustering": "random"}
        yield f"pruned {share:g}", share, {}


def main() -> None:
    a = arguments()
    torch.set_num_threads(a.threads)
    a.out.mkdir(parents=True, exist_ok=True)
    results = a.out / "experts.json"
    found = json.loads(results.read_text()) if results.is_file() else {}
    base = load_base(a.model, storage="fp32", dtype=torch.float32)
    ids = held_out(base, a.text, a.held)
    calibration = CalibrationConfig(files=tuple(map(str, a.calibrate)), windows=a.windows, length=LENGTH)
    found.setdefault("dense", {"share": 1.0} | measured(base.model, base.model, ids))
    for name, share, fields in variants(a.shares, a.experts):
        config = ExpertsConfig(experts=a.experts, calibration=calibration, threads=a.threads, **fields)
        folder = a.out / name.replace(" ", "-")
        if name not in found and fields:
            result = run.run_step(config, a.model, a.model, folder)
            facts = {key: result.facts[key] for key in ("held", "routed", "error", "active_parameters")}
            found[name] = {"share": share} | measured(weights.load(result.path), base.model, ids) | facts
        elif name not in found:
            found[name] = {"share": share} | measured(pruned(a.model, config, share), base.model, ids)
        if a.speed and fields and "tokens_per_s" not in found[name]:
            found[name] |= speed(folder / "model", folder / "model.gguf", a.tokens)
        results.write_text(json.dumps(found, indent=1) + "\n")
        print(row(name, found[name]), flush=True)
    print("\n".join(["", "| | share | loss | perplexity | KL | same first | tok/s |", "|-|-|-|-|-|-|-|"]))
    print("\n".join(row(name, values) for name, values in found.items()))


def row(name: str, values: dict[str, float]) -> str:
    """A line of the table."""
    rate = f"{values['tokens_per_s']:.1f}" if "tokens_per_s" in values else ""
    cells = [f"{values['share']:.0%}", f"{values['loss']:.3f}", f"{math.exp(values['loss']):.2f}", f"{values['kl']:.3f}",
             f"{values['same_first']:.1%}", rate]  # fmt: skip
    return f"| {name} | {' | '.join(cells)} |"


def arguments() -> argparse.Namespace:
    """What is typed."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--text", type=Path, nargs="+", required=True, help="held-out texts, a file a language")
    p.add_argument("--calibrate", type=Path, nargs="*", default=[], help="none: the texts that ship with gangpao")
    p.add_argument("--shares", type=lambda text: [float(x) for x in text.split(",")], default=[0.75, 0.5, 0.25])
    p.add_argument("--experts", type=int, default=8)
    p.add_argument("--windows", type=int, default=64, help="of calibration, 256 tokens each")
    p.add_argument("--held", type=int, default=24, help="windows of held-out text")
    p.add_argument("--tokens", type=int, default=128, help="decoded for the speed")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--speed", action="store_true")
    p.add_argument("--out", type=Path, default=Path("experts-results"))
    return p.parse_args()


if __name__ == "__main__":
    main()
