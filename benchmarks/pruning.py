"""A trained model pruned and healed with T tokens against one of the same shape trained from nothing with 4 T on the same data.

    gangpao train configs/train-nano.toml --out runs/nano
    python benchmarks/pruning.py runs/nano --work runs/nano-half --tokens 200_000 --out

The first run is the model that is pruned: its configuration, data and held-out text are those of all runs here, and both sides see
the mixture of its last stage throughout. What is counted: forward passes of importance and of every measurement, training of
healing (with the teacher's forward passes, where it is a distillation) and of the runs from nothing, each by gangpao.model.count,
and beside them what the first run itself took. Both sides may be given several learning rates, and the best of each counts. Call it
again after a kill: whatever is there is not made again. The last line is JSON; --out writes results/pruning_<model>_<date>.md.

--distil heals by a distillation step, too, on the same rows as text; conversations lose their marks there.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from gangpao.compress.prune.config import PruneConfig
from gangpao.compress.prune.run import run_step
from gangpao.data.build import Built, open_built
from gangpao.data.tokens.pack import Loader
from gangpao.model.config import ModelConfig
from gangpao.model.count import flops_per_token, parameters
from gangpao.text.tokenizer import Tokenizer
from gangpao.train.config import StageConfig, TrainConfig
from gangpao.train.plot import steps_of
from gangpao.train.pretrain import run_config
from gangpao.train.progress import read_metrics
from gangpao.train.run_file import read_run

HERE = Path(__file__).resolve().parent
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def data_of(run: Path) -> tuple[TrainConfig, Path, ModelConfig]:
    """What a finished run was told, where its data lies, and its shape."""
    known = read_run(run)
    if known is None or not (run / "export").is_dir():
        raise SystemExit(f"{run}: no finished run of gangpao train (with its export/) is here")
    config = TrainConfig.model_validate(known["config"])
    data = Path(config.data_dir) if config.data_dir else run / "data"
    return config, data, ModelConfig.model_validate(known["model"])


def training_text(built: Built, config: TrainConfig, path: Path, tokens: int, seed: int) -> Path:
    """Rows of the training data as a text file, in the mixture of the run's last stage, behind another seed."""
    if not path.is_file():
        tokenizer = Tokenizer.from_dir(built.tokenizer_dir)
        stage = config.stages[-1].name
        parts = built.parts(stage if stage in built.stages else "stable")
        ids = Loader(parts, seq_len=config.seq_len, seed=config.seed + seed).take(-(-tokens // config.seq_len)).ids
        path.write_text("\n\n".join(tokenizer.decode(row.tolist()) for row in ids), encoding="utf-8")
    return path


def told(config: TrainConfig, data: Path, tokens: int, lr: float, **changes: Any) -> TrainConfig:
    """A run of these tokens, all of the first run's last mixture and a fifth of them with a falling rate, else as that run was."""
    steps = max(2, round(tokens / config.batch_tokens))
    decay = max(1, steps // 5)
    last = config.stages[-1]
    mixture = last.mixture or open_built(data).stages.get(last.name, {})
    stages = (
        StageConfig(name="stable", steps=steps - decay, mixture=mixture),
        StageConfig(name="decay", steps=decay, decay=True, mixture=mixture),
    )
    return TrainConfig.model_validate(
        config.model_dump()
        | {
            "data_dir": str(data),
            "stages": [stage.model_dump() for stage in stages],
            "optimizer": config.optimizer.model_dump() | {"lr": lr},
            "schedule": config.schedule.model_dump() | {"warmup_steps": max(1, steps // 20)},
            "evaluation": config.evaluation.model_dump() | {"every_steps": 10 * steps, "stages": "last"},
            "save": config.save.model_dump() | {"every_steps": max(1, steps // 4), "every_minutes": 2.0, "keep_best": False},
            "seed": config.seed + 1,
        }
        | changes
    )  # fmt: skip


def train(config: TrainConfig, out: Path) -> dict[str, float]:
    """Train, or go on; what was held out at the end."""
    outcome = run_config(config, out, stream=None)
    if outcome.signal is not None:
        raise SystemExit(f"{out}: stopped; the same command goes on")
    return end_of(out)


def end_of(run: Path) -> dict[str, float]:
    """The last held-out losses of a run."""
    _, heldout = steps_of(read_metrics(run))
    return dict(heldout[-1]["heldout"])


def untrained(config: TrainConfig, data: Path, model: Path, out: Path) -> dict[str, float]:
    """Held-out losses of a folder as it is: one step at a rate of nothing."""
    still = told(config, data, 2 * config.batch_tokens, 1e-12, init_from=str(model), export=False)
    return train(still, out)


def distilled(arguments: argparse.Namespace, config: TrainConfig, pruned: Path, text: Path) -> Path:
    """The pruned model after a distillation step of T tokens with the first run's model as its teacher."""
    from gangpao.compress.distil.config import DistilConfig
    from gangpao.compress.distil.run import run_step as distil

    told = {
        "tokens": arguments.tokens,
        "seq_len": config.seq_len,
        "batch_tokens": config.batch_tokens,
        "micro_batch_size": config.micro_batch_size,
        "data": {"files": [{"path": str(text)}], "heldout": 0},
        "optimizer": {"lr": arguments.distil_lr, "beta2": 0.95},
        "logits": {"hard": 0.5},
        "threads": arguments.threads,
        "precision": "fp32",
    }
    model = arguments.run / "export"
    return distil(DistilConfig.model_validate(told), pruned, model, arguments.work / "distil").path


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All runs, whatever of them is there already, and what they come to."""
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    config, data, shape = data_of(arguments.run)
    built = open_built(data)
    pruning = PruneConfig.model_validate(
        {
            "parameters": arguments.share,
            "candidates": arguments.candidates,
            "threads": arguments.threads,
            "calibration": {
                "files": [
                    str(training_text(built, config, work / "calibration.txt", 4 * arguments.calibration, seed=7))
                ],
                "windows": max(1, arguments.calibration // config.seq_len),
                "length": config.seq_len,
                "measured": 4,
            },
        }
        | json.loads(arguments.prune)
    )
    export = arguments.run / "export"
    pruned = run_step(pruning, export, export, work / "prune")
    small = ModelConfig.from_file(pruned.path / "config.json", say=False)
    each = flops_per_token(small, config.seq_len, training=True)
    config = config.model_copy(update={"threads": arguments.threads})
    spent = pruned.facts["flops"]["total"]
    rows = [
        row("the model that is pruned", shape, 0, sum(config.stage_steps()) * config.batch_tokens, end_of(arguments.run), config),
        row("pruned, not healed", small, spent, 0, untrained(config, data, pruned.path, work / "still"), config),
    ]  # fmt: skip
    for lr in arguments.heal_lr:
        heal = told(config, data, arguments.tokens, lr, init_from=str(pruned.path))
        found = train(heal, work / f"heal-{lr:g}")
        rows.append(row(f"pruned and healed, lr {lr:g}", small, spent, arguments.tokens, found, config))
    if arguments.distil:
        teacher = flops_per_token(shape, config.seq_len) * arguments.tokens
        text = training_text(built, config, work / "healing.txt", arguments.tokens, seed=8)
        found = untrained(config, data, distilled(arguments, config, pruned.path, text), work / "distil-heldout")
        rows.append(row("pruned and distilled", small, spent + teacher, arguments.tokens, found, config))
    own = {key: getattr(small, key) for key in SHAPE}
    model = config.model.model_dump() | {"change": config.model.change | own}
    for lr in arguments.scratch_lr:
        scratch = told(config, data, arguments.factor * arguments.tokens, lr, model=model, init_from=None)
        found = train(scratch, work / f"scratch-{lr:g}")
        rows.append(row(f"from nothing, lr {lr:g}", small, 0, arguments.factor * arguments.tokens, found, config))
    first = 2 + len(arguments.heal_lr) + arguments.distil
    healed, best = (min(some, key=lambda r: r["loss"]) for some in (rows[2:first], rows[first:]))
    return {
        "model": arguments.run.name, "tokens": arguments.tokens, "factor": arguments.factor, "rows": rows, "prune": pruned.facts,
        "flops_per_token": each, "best": [healed["name"], best["name"]], "won": healed["loss"] < best["loss"],
        "flops_ratio": healed["flops"] / best["flops"],
    }  # fmt: skip


def row(
    name: str, shape: ModelConfig, before: float, tokens: int, heldout: dict[str, float], config: TrainConfig
) -> dict[str, Any]:
    """A line of the table. before: FLOPs that were spent before training."""
    return {
        "name": name,
        "parameters": parameters(shape).total,
        "tokens": tokens,
        "flops": before + tokens * flops_per_token(shape, config.seq_len, training=True),
        "loss": heldout["heldout"],
        "bpb": heldout.get("heldout_bpb"),
    }


def page(found: dict[str, Any]) -> str:
    """The result for people."""
    after = found["prune"]["after"]
    lines = [
        f"# Pruned and healed against from nothing: {found['model']}, {date.today()}",
        "",
        f"Shape: {after['layers']} layers, width {after['width']}, FFN {after['ffn']}, {after['heads']} heads over "
        f"{after['kv_heads']} of keys. Held-out nats a token of the run's own held-out text.",
        "",
        "| | parameters | tokens | FLOPs | held-out loss | bits a byte |",
        "|-|-:|-:|-:|-:|-:|",
    ]
    for r in found["rows"]:
        bpb = f"{r['bpb']:.3f}" if r["bpb"] else ""
        lines.append(
            f"| {r['name']} | {r['parameters']:,} | {r['tokens']:,} | {r['flops']:.2e} | {r['loss']:.4f} | {bpb} |"
        )
    spent = ", ".join(f"{k} {v:.2e}" for k, v in found["prune"]["flops"].items() if v)
    healed, scratch = found["best"]
    return "\n".join(
        [
            *lines,
            "",
            f"Pruning alone: {spent}. With pruning counted, the best healing took {found['flops_ratio']:.2f} of the FLOPs of the "
            f"best run from nothing; the model that was pruned took {found['rows'][0]['flops']:.2e} before.",
            "",
            f"Lower than the best run from nothing ({healed} against {scratch}): {'yes' if found['won'] else 'no'}.",
            "",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="finished run of gangpao train")
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--tokens", type=int, default=200_000, help="T, of healing")
    parser.add_argument("--factor", type=int, default=4, help="tokens from nothing, in T")
    parser.add_argument("--share", type=float, default=0.5, help="parameters that stay")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--calibration", type=int, default=16_384, help="tokens for importance")
    parser.add_argument("--heal-lr", type=float, nargs="+", default=[0.003, 0.01])
    parser.add_argument("--distil", action="store_true", help="heal by a distillation step, too")
    parser.add_argument("--distil-lr", type=float, default=0.005)
    parser.add_argument("--scratch-lr", type=float, nargs="+", default=[0.01, 0.02])
    parser.add_argument("--prune", default="{}", help="more keys of the pruning step, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", action="store_true", help="write results/")
    arguments = parser.parse_args(argv)
    found = measure(arguments)
    text = page(found)
    print(text)
    if arguments.out:
        (HERE / "results" / f"pruning_{found['model']}_{date.today()}.md").write_text(text, encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
