"""The coordinate check: does a rule of transfer keep activations and their updates the same size while a model grows?

The idea (Yang et al., arXiv:2203.03466): train every width for a few steps on the same ids, look at them before and after each
step, and fit log RMS against log width. Under a rule that transfers, slopes are about zero; a slope of 0.5 says that the thing
grows like width^0.5, and that the best learning rate will move. It costs seconds, where finding that out by a sweep costs hours.
The same over depth, for rules that claim it.

Coordinates: what the embedding gives, what attention and MLP add (before the residual multiplier, mean over layers), the residual
stream before and after the last norm, the logits of the ids that come next, and all logits. Of each the RMS at the start, and
after every step that of its change since the start. There is one batch, trained on again and again and looked at: with other
ids the part of an update that meets them by chance falls with width, and hides the part that does not.

What it gives up: it sees the first steps, where updates add up in one direction, not what hours of training do. There is no
clipping of gradients and no warmup, so nothing hides the size of a step. The learning rate is a small one: at a tuned rate four
steps already bend the activations of a narrow model, and the slopes of a right rule lean by 0.1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from gangpao.config import Frozen
from gangpao.model.config import ModelConfig
from gangpao.model.init import rule_of
from gangpao.model.transformer import Transformer
from gangpao.sandbox.laws.scaling_law import student
from gangpao.sandbox.laws.verdict import Answer, about, all_of, decide
from gangpao.sandbox.trials.random_ids import Rows, rows_of
from gangpao.sandbox.trials.transfer import Axis, Base, Resolved, Transfer, get_rule, resolve
from gangpao.train.config import OptimizerConfig
from gangpao.train.step.loss import NextToken
from gangpao.train.step.optim import Optimizer

Coordinate = Literal["embedding", "attention", "mlp", "stream", "final", "answer", "logits"]
Quantity = Literal["value", "change"]
COORDINATES: tuple[Coordinate, ...] = ("embedding", "attention", "mlp", "stream", "final", "answer", "logits")
LR = 0.001
# Measured, 2 seeds, 4 steps. Widths 64 to 512: right rules stay within 0.04 (0.13 at ten times this rate); a learning rate of the
# hidden matrices that is off by width^0.5, up or down, shows 0.3, one that does not move with width 0.6. Depths 4 to 32: 0.13 where
# branches are divided by depth, 0.27 where they are divided by its root.
TOLERANCE = 0.2  # in the midst, as intervals decide
# How far the slopes of seeds differ, so that one or two seeds have an interval: the standard deviation of one seed's slope
# under rules that transfer, measured (0.002 to 0.015 over the coordinates), rounded up, and worth so many degrees of freedom.
SPREAD, SPREAD_DOF = 0.02, 10
# What theory lets shrink, besides the tolerance. Over width: before training the head knows nothing of the stream, and a sum of D
# unrelated products over D falls like D^-1/2; training then moves the logits of the ids that were there by the same amount at
# every width, and all others, most of a vocabulary, by chance. Over depth: branches over L that point anywhere add up to L^-1/2
# (what follows sees the stream through a norm, which makes up for it).
MAY_SHRINK: dict[tuple[Axis, Coordinate, Quantity], float] = {
    ("width", "answer", "value"): -0.5,
    ("width", "logits", "value"): -0.5,
    ("width", "logits", "change"): -0.5,
    ("layers", "stream", "value"): -0.5,
    ("layers", "stream", "change"): -0.5,
}


class _Measured(Frozen):
    model_config = ConfigDict(ser_json_inf_nan="strings")  # JSON has no NaN and no infinity


class Slope(_Measured):
    """d log RMS / d log (width or layers). step 0: values at the start; later: change since the start. error: over seeds."""

    coordinate: Coordinate
    quantity: Quantity
    step: int
    slope: float
    error: float | None = Field(description="Standard error over seeds; none with one seed.")
    half: float = Field(description="Half the 95 % interval, from the seeds and SPREAD.")
    low: float
    high: float

    @property
    def answer(self) -> Answer:
        """Does it lie where theory and tolerance allow, with all of its interval? What is not finite does not."""
        if not math.isfinite(self.slope):
            return "no"
        return decide(*about(self.slope, self.half), (self.low, self.high))


class Point(_Measured):
    """One measured RMS."""

    seed: int
    size: int
    step: int
    coordinate: Coordinate
    quantity: Quantity
    rms: float


class CheckResult(Frozen):
    """What was measured, the slopes, and what follows from them."""

    rule: str
    axis: Axis
    sizes: tuple[int, ...]
    fixed: dict[str, float] = Field(description="What was the same for all: layers or width, lr, steps, tokens.")
    tolerance: float
    points: tuple[Point, ...]
    slopes: tuple[Slope, ...]

    @property
    def failures(self) -> tuple[Slope, ...]:
        """Slopes that surely lie outside of what is allowed."""
        return tuple(slope for slope in self.slopes if slope.answer == "no")

    @property
    def answer(self) -> Answer:
        """Does the rule keep everything the same size?"""
        return all_of([slope.answer for slope in self.slopes])

    @property
    def ok(self) -> bool:
        """Is the answer yes?"""
        return self.answer == "yes"

    def json(self) -> dict[str, Any]:  # type: ignore[override]
        """Everything, for a file; `CheckResult.read` takes it back."""
        return {"answer": self.answer, **json.loads(self.model_dump_json())}

    @classmethod
    def read(cls, data: dict[str, Any]) -> CheckResult:
        """What `json` gave."""
        return cls.model_validate({key: value for key, value in data.items() if key != "answer"})


def coordinate_check(
    rule: str | Transfer,
    *,
    widths: Sequence[int] = (),
    layers: int = 2,
    layers_list: Sequence[int] = (),
    width: int | None = None,
    head_dim: int = 32,
    vocab_size: int = 256,
    mlp_ratio: float = 2.5,
    steps: int = 4,
    seeds: Sequence[int] = (0, 1),
    lr: float = LR,
    seq_len: int = 64,
    batch_rows: int = 4,
    base: Base | None = None,
    ids: np.ndarray | None = None,
    optimizer: Literal["adamw", "muon"] = "adamw",
    tolerance: float = TOLERANCE,
    progress: Callable[[str], None] | None = None,
) -> CheckResult:
    """Measure a rule over `widths` at one depth, or over `layers_list` at one `width`.

    ids: real ones to train on, batch_rows * seq_len + 1 or more; none: made up, others for every seed. base: where the rule's
    factors are one; none: the usual, with the batch of the check. Raises ValueError for sizes that make no line.
    """
    found = get_rule(rule) if isinstance(rule, str) else rule
    tokens = batch_rows * seq_len
    axis, sizes = _axis(widths, layers_list, width, head_dim)
    if min(steps, batch_rows, vocab_size - 1, len(seeds)) < 1 or seq_len < 2:
        raise ValueError("the check needs a step, a row, a seed, two ids and rows of two or more")
    base = base or Base(batch_tokens=tokens)
    points: list[Point] = []
    for seed in seeds:
        batch = rows_of(ids, vocab_size, seed, batch_rows, seq_len)
        for size in sizes:
            w, depth = (size, layers) if axis == "width" else (width or head_dim, size)
            resolved = resolve(found, width=w, layers=depth, batch_tokens=tokens, base=base)
            shape = _shape(w, depth, head_dim, vocab_size, mlp_ratio, seq_len, resolved)
            options = OptimizerConfig(kind=optimizer, lr=lr * resolved.lr_factor)
            for step, values in enumerate(_train(shape, resolved, options, batch, steps, seed)):
                quantity: Quantity = "change" if step else "value"
                points += [
                    Point(seed=seed, size=size, step=step, coordinate=c, quantity=quantity, rms=v)
                    for c, v in values.items()
                ]
            if progress:
                progress(f"{found.name}: {axis} {size}, seed {seed}")
    fixed = {"layers": layers} if axis == "width" else {"width": width or head_dim}
    return CheckResult(
        rule=found.name,
        axis=axis,
        sizes=sizes,
        fixed={**fixed, "lr": lr, "steps": steps, "batch_tokens": tokens, "vocab_size": vocab_size},
        tolerance=tolerance,
        points=tuple(points),
        slopes=_slopes(points, axis, tolerance),
    )


def _axis(
    widths: Sequence[int], layers_list: Sequence[int], width: int | None, head_dim: int
) -> tuple[Axis, tuple[int, ...]]:
    """What varies, and its values in order. Raises ValueError for sizes that make no line."""
    if bool(widths) == bool(layers_list):
        raise ValueError("give widths, or layers_list with one width")
    if layers_list and width is None:
        raise ValueError("layers_list needs the width of all")
    for w in widths or (width or head_dim,):
        if w < head_dim or w % head_dim:
            raise ValueError(f"width {w} is not a multiple of head_dim {head_dim}")
    axis: Axis = "width" if widths else "layers"
    sizes = tuple(sorted(set(widths or layers_list)))
    if len(sizes) < 2:
        raise ValueError(f"{axis} {', '.join(map(str, sizes))}: a slope needs two sizes or more, better four")
    if sizes[0] < 1:
        raise ValueError(f"{axis} {sizes[0]}: it must be 1 or more")
    return axis, sizes


def _shape(
    width: int, layers: int, head_dim: int, vocab_size: int, mlp_ratio: float, seq_len: int, resolved: Resolved
) -> ModelConfig:
    heads = width // head_dim
    return ModelConfig(
        model_type="minicpm",
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=round(mlp_ratio * width / 8) * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        max_position_embeddings=seq_len,
        **resolved.change,
    )


def _train(
    shape: ModelConfig, resolved: Resolved, options: OptimizerConfig, batch: Rows, steps: int, seed: int
) -> list[dict[Coordinate, float]]:
    """RMS of every coordinate at the start, then of its change after every step."""
    model = Transformer.build(shape, seed=seed, rules=resolved.rules)
    optimizer = Optimizer(model.named_parameters(), lambda name: rule_of(name, shape, resolved.rules), options)
    objective = NextToken()
    start = _look(model, batch)
    out = [{c: _rms(parts) for c, parts in start.items()}]
    for _ in range(steps):
        optimizer.zero_grad()
        objective(model, batch, 1.0 / batch.ids.size).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(options.lr)
        now = _look(model, batch)
        out.append({c: _rms([a - b for a, b in zip(now[c], start[c], strict=True)]) for c in COORDINATES})
    return out


@torch.no_grad()
def _look(model: Transformer, batch: Rows) -> dict[Coordinate, list[Tensor]]:
    """Activations on some ids, by hooks: the model is the one that trains."""
    seen: dict[Coordinate, list[Tensor]] = {c: [] for c in COORDINATES}

    def keep(coordinate: Coordinate) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            seen[coordinate].append((output[0] if isinstance(output, tuple) else output).float())

        return hook

    def before(coordinate: Coordinate) -> Callable[[Any, Any], None]:
        def hook(module: Any, inputs: Any) -> None:
            seen[coordinate].append(inputs[0].float())

        return hook

    layers = list(model.model.layers)
    hooks = [
        layers[0].register_forward_pre_hook(before("embedding")),
        model.model.norm.register_forward_pre_hook(before("stream")),
        model.model.norm.register_forward_hook(keep("final")),
    ]
    for layer in layers:
        hooks.append(layer.get_submodule("self_attn").register_forward_hook(keep("attention")))
        hooks.append(layer.get_submodule("mlp").register_forward_hook(keep("mlp")))
    try:
        logits = model.logits(model(torch.from_numpy(batch.ids)).hidden)
    finally:
        for hook in hooks:
            hook.remove()
    seen["logits"].append(logits)
    seen["answer"].append(logits.gather(-1, torch.from_numpy(batch.labels)[..., None]))
    return seen


def _rms(parts: Sequence[Tensor]) -> float:
    """Mean over parts of the root mean square."""
    return float(torch.stack([part.square().mean().sqrt() for part in parts]).mean())


def _slopes(points: Sequence[Point], axis: Axis, tolerance: float) -> tuple[Slope, ...]:
    """A line through log RMS over log size for every coordinate and step: the mean of the seeds' slopes."""
    lines: dict[tuple[int, Coordinate, Quantity], dict[int, list[tuple[float, float]]]] = {}
    for p in points:
        rms = math.log(p.rms) if 0 < p.rms < math.inf else math.nan
        lines.setdefault((p.step, p.coordinate, p.quantity), {}).setdefault(p.seed, []).append((math.log(p.size), rms))
    out = []
    for (step, coordinate, quantity), seeds in lines.items():
        each = np.array([_slope(line) for line in seeds.values()])
        out.append(
            Slope(
                coordinate=coordinate,
                quantity=quantity,
                step=step,
                slope=float(each.mean()),
                error=float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else None,
                half=_half(each),
                low=MAY_SHRINK.get((axis, coordinate, quantity), 0.0) - tolerance,
                high=tolerance,
            )
        )
    return tuple(out)


def _half(each: np.ndarray) -> float:
    """Half the 95 % interval of the mean of slopes [seeds]: their own scatter together with SPREAD."""
    dof = SPREAD_DOF + len(each) - 1
    squares = SPREAD_DOF * SPREAD**2 + float(((each - each.mean()) ** 2).sum())
    return student(dof) * math.sqrt(squares / dof / len(each))


def _slope(line: Sequence[tuple[float, float]]) -> float:
    x, y = np.array(line).T
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())
