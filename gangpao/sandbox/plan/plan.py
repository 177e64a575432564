"""From a budget to a recipe: size, tokens, batch, rate and schedule that the sandbox's own laws call best, as TOML for training.

A budget is FLOPs, hours or yuan. Of all shapes like those that the law was fitted to, each with the tokens that the budget buys
it (FLOPs counted exactly, because embedding and head are a large part of a small model), the one with the lowest
predicted loss is taken. Tokens that the model will serve later may be paid from the same budget, and parameters capped:
both lead to a smaller model that is trained for longer.

A law is only believed up to `fit.SUPPORT` times outside its data, above or below, and there while its interval is narrow
enough (UNSURE). Else `make_plan` refuses and says what to run first.

What it gives up: the law was measured at the sandbox's own batch size, and a better batch should only lower the loss; the
time is that of the steps, without evaluation; interactions of the laws are not known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gangpao import cost
from gangpao.atomic import sync
from gangpao.config import merge, to_toml
from gangpao.model.config import ModelConfig
from gangpao.model.count import flops_per_token, parameters
from gangpao.sandbox.bilingual import Language, Text
from gangpao.sandbox.experiments.assumptions import conditions, describe_differences, differing
from gangpao.sandbox.laws import doubts, fit
from gangpao.sandbox.plan.budget import Machine, flops_of, machine_of
from gangpao.sandbox.plan.findings import Laws
from gangpao.sandbox.trials.trial import Lab, Spec, cost_of, train_config
from gangpao.train import memory, pretrain
from gangpao.train.config import EvaluationConfig, GuardConfig, SaveConfig, TrainConfig
from gangpao.units import show_bytes, show_seconds

MIN_STEPS = 50  # fewer are no schedule
BEYOND = 2.0  # a batch law is followed up to this many times past the batches that were tried
UNSURE = 0.1  # outside its data a law is believed while its 95 % interval is within this share of the loss


# --- the choice


@dataclass(frozen=True, slots=True)
class Choice:
    """A shape with what the budget buys it."""

    width: int
    layers: int
    N: int
    N_total: int
    batch_tokens: int
    steps: int
    loss: float
    flops: float
    serve_flops: float

    @property
    def D(self) -> int:
        return self.steps * self.batch_tokens


def shapes(lab: Lab, aspects: tuple[float, float]) -> Iterator[list[tuple[int, int, ModelConfig]]]:
    """(width, layers, shape), width by width without end: layers so that width / layers is as in the fitted sizes, or the
    nearest to it."""
    c, (low, high), heads = lab.config, aspects, 0
    template = pretrain.model_config(train_config(lab, lab.spec()), lab.built)
    while True:
        heads += max(1, heads // 32)  # finer than 3 % in width decides nothing
        width = heads * c.head_dim
        depths = range(math.ceil(width / high), math.floor(width / low) + 1)
        middle = max(1, round(width / math.sqrt(low * high)))
        chosen = sorted({max(1, n) for n in depths[:: max(1, len(depths) // 8)]} | {middle})
        changes = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": heads}
        changes["intermediate_size"] = round(c.mlp_ratio * width / 8) * 8
        yield [(width, n, template.model_copy(update={**changes, "num_hidden_layers": n})) for n in chosen]


def best(
    laws: Laws, lab: Lab, flops: float, *, serve_tokens: float = 0.0, max_params: float = math.inf,
    memory: float = math.inf,
) -> Choice | None:  # fmt: skip
    """The shape with the lowest predicted loss, or None where the budget, the parameters or the memory allow none."""
    found: Choice | None = None
    for group in shapes(lab, laws.aspects):
        choices = [
            choice
            for width, layers, shape in group
            if parameters(shape).total <= max_params
            and need(lab, shape, rows=1, recompute=True) <= memory
            and (choice := _afford(laws, lab, width, layers, shape, flops, serve_tokens)) is not None
        ]
        here = min(choices, key=lambda choice: choice.loss, default=None)
        if here is not None and (found is None or here.loss < found.loss):
            found = here
        # The loss has one valley: past twice its width, or where nothing can be paid any more, the search is over.
        width = group[0][0]
        if (here is None and (found or width > 64 * lab.config.head_dim)) or (found and width > 2 * found.width):
            break
    return found


def _afford(
    laws: Laws, lab: Lab, width: int, layers: int, shape: ModelConfig, flops: float, serve_tokens: float
) -> Choice | None:
    """The tokens that are left for this shape after serving is paid, in whole steps of the best batch."""
    seq_len = lab.config.seq_len
    each = flops_per_token(shape, seq_len, training=True)
    serve = flops_per_token(shape, seq_len) * serve_tokens
    N, total = parameters(shape).non_embedding, parameters(shape).total
    D = (flops - serve) / each
    if serve >= flops or D / seq_len < MIN_STEPS:
        return None
    batch = batch_tokens(laws, lab, N, D)
    steps = int(D // batch)
    if steps < MIN_STEPS:
        return None
    loss = laws.scaling.predict(N, steps * batch)
    return Choice(width, layers, N, total, batch, steps, loss, each * steps * batch, serve)


def batch_tokens(laws: Laws, lab: Lab, N: float, D: float) -> int:
    """Of the batch law at the predicted loss, within what was tried and with MIN_STEPS steps at least; else the common one; whole
    rows."""
    seq_len = lab.config.seq_len
    if not laws.batch:
        return max(1, round(lab.config.common.batch_tokens / seq_len)) * seq_len
    low, high = _batch_limits(laws, lab)
    rows = max(round(laws.batch.predict(laws.scaling.predict(N, D)) / seq_len), math.ceil(low / seq_len))
    return max(1, min(rows, int(high / seq_len), int(D / MIN_STEPS / seq_len))) * seq_len


def _batch_limits(laws: Laws, lab: Lab) -> tuple[float, float]:
    """BEYOND times past the batches that were tried, or past the common one where the outcome does not say which were."""
    usual = float(lab.config.common.batch_tokens)
    low, high = laws.measured.batches if laws.measured else (usual, usual)
    return low / BEYOND, high * BEYOND


def need(lab: Lab, shape: ModelConfig, *, rows: int, recompute: bool) -> int:
    """Bytes that training takes, as `gangpao train` estimates them before it begins (float32, the safe side)."""
    kind = lab.config.common.optimizer
    return sum(memory.training_bytes(shape, rows * lab.config.seq_len, optimizer=kind, recompute=recompute))


# --- the plan


def make_plan(
    budget: str, laws: Laws, lab: Lab, *, here: Machine | None = None, serve_tokens: float = 0.0,
    max_params: float = math.inf, force: bool = False,
) -> Plan:  # fmt: skip
    """The recipe for a budget (see the module). serve_tokens: tokens that the model will answer in its life, paid from the same
    budget. max_params: of all parameters. force: go past what the laws support. here: of machine_of, when its speed or memory
    is given.

    Raises ValueError for a budget that buys no training, laws of another sandbox, or a plan too far from the law's data.
    """
    _same(laws, lab)
    here = here or machine_of(budget, laws, lab)
    flops, capped = flops_of(budget, here), max_params < math.inf
    if not (serve_tokens >= 0 and max_params > 0):
        raise ValueError("serve_tokens is not below zero, and max_params is above it")
    choice = best(laws, lab, flops, serve_tokens=serve_tokens, max_params=max_params, memory=here.memory)
    if choice is None:
        raise ValueError(
            f"budget {budget!r}: {flops:.3g} FLOPs do not pay {MIN_STEPS} steps of any size"
            + (f" after {serve_tokens:.3g} tokens are served" if serve_tokens else "")
            + (f" with at most {max_params:,.0f} parameters" if capped else "")
            + f" in {show_bytes(here.memory)} of memory: give more"
        )
    factor, interval = laws.scaling.reach(choice.N, choice.D), laws.scaling.interval(choice.N, choice.D)
    if not force and (why := _unsupported(laws, choice, factor, interval)):
        other = "larger" if factor > laws.scaling.above(choice.N, choice.D) else "smaller"
        raise ValueError(f"budget {budget!r}: {why}, give a {other} budget, or force the plan")
    free = best(laws, lab, flops, memory=here.memory) if serve_tokens or capped else None
    config, spec, memory = recipe(laws, lab, choice, here)
    seconds = choice.flops / here.speed if here.speed else None
    more = best(laws, lab, flops, serve_tokens=serve_tokens, max_params=max_params)
    notes = (
        *laws.notes, *_batch_said(laws, lab, choice), *_remarks(laws, lab, choice, config, here),
        *(doubt.text() for doubt in doubts.of_choice(laws.scaling, choice.N, choice.D, choice.loss)),
        *_memory_said(choice, more, config, memory, here),
    )  # fmt: skip
    return Plan(
        budget=budget.strip(), budget_flops=flops, choice=choice, interval=interval,
        factor=factor, unlimited=free.loss if free else None, seconds=seconds,
        yuan=None if seconds is None else cost.yuan(cost.get_profile(here.profile)[1], seconds), profile=here.profile,
        memory=memory, notes=notes, spec=spec, config=config,
    )  # fmt: skip


def _same(laws: Laws, lab: Lab) -> None:
    now = conditions(lab)
    differ = differing("scaling", laws.conditions, now)
    if differ:
        raise ValueError(
            f"the scaling law was measured with another {describe_differences(differ, laws.conditions, now).en}: "
            "run `gangpao sandbox scaling` with this one, or plan with that one"
        )


def _unsupported(laws: Laws, c: Choice, factor: float, interval: tuple[float, float]) -> str | None:
    """Why a law is not believed there and what to run; None where it is."""
    (N, D), (n, d) = laws.scaling.ends, laws.scaling.starts
    weak, (low, high), below = laws.scaling.undetermined, interval, factor > laws.scaling.above(c.N, c.D)
    measured = (
        f"from {n:,.0f} parameters and {d:,.0f} tokens on: {factor:.3g} times below that"
        if below
        else f"up to {N:,.0f} parameters and {D:,.0f} tokens: {factor:.3g} times past that"
    )
    far = f"the best is {c.N:,} parameters ({c.width}x{c.layers}) on {c.D:,} tokens. The law was measured {measured}, and "
    if factor > 1 and weak:
        wanted = "three or more sizes and token counts, wider apart"
        return f"{far}its points do not tell {' and '.join(weak)}. Run `gangpao sandbox scaling` with {wanted}"
    if factor > fit.SUPPORT:
        if below:
            sizes, tokens, way = min(n, c.N * fit.SUPPORT), min(d, c.D * fit.SUPPORT), "down"
        else:
            sizes, tokens, way = max(N, c.N / fit.SUPPORT), max(D, c.D / fit.SUPPORT), "up"
        wanted = f"sizes {way} to about {sizes:,.0f} parameters and tokens {way} to about {tokens:,.0f}"
        return f"{far}it supports {fit.SUPPORT:g}. Run `gangpao sandbox scaling` with {wanted}"
    if factor > 1 and high - low > 2 * UNSURE * c.loss:
        wanted = "more sizes, token counts or seeds"
        return f"{far}it only says {low:.3g} .. {high:.3g} there. Run `gangpao sandbox scaling` with {wanted}"
    return None


def _remarks(laws: Laws, lab: Lab, c: Choice, config: TrainConfig, here: Machine) -> list[Text]:
    """What a reader has to know before believing the plan."""
    exact, speed = c.flops / (6 * c.N * c.D), here.speed or 0.0
    above, below = laws.scaling.above(c.N, c.D), laws.scaling.below(c.N, c.D)
    seen = epochs(lab, config)
    most = max(seen, key=lambda name: seen[name], default="")
    said = [
        (True, f"FLOPs are counted exactly: {exact:.2f} times 6ND, because of embedding, head and attention.",
         f"FLOPs 为精确计数，是 6ND 的 {exact:.2f} 倍，因为计入了词嵌入、输出层和注意力。"),
        (here.speed is not None, f"Time from {here.how.en}: {speed:.3g} FLOP/s.",
         f"时间依据{here.how.zh}：{speed:.3g} FLOP/s。"),
        (above > 1, f"This is {above:.3g} times past the largest runs that the law was fitted to.",
         f"这超出规律所拟合的最大训练 {above:.3g} 倍。"),
        (below > 1, f"This is {below:.3g} times below the smallest runs that the law was fitted to.",
         f"这比规律所拟合的最小训练还小 {below:.3g} 倍。"),
    ]  # fmt: skip
    if most and seen[most] > 1:
        there, times = lab.built.train[most].num_tokens, seen[most]
        repeated = sum(value > 1 for value in seen.values())
        en = f"Of {len(seen)} sources {repeated} are seen more than once, {most} ({there:,} tokens) most: {times:.1f} times"
        zh = f"{len(seen)} 个来源中有 {repeated} 个会被重复，其中 {most}（{there:,} token）最多：{times:.1f} 遍"
        said.append((True, f"{en}; the law does not know what that costs.", f"{zh}；规律不包含重复带来的损失。"))
    return [Text(en, zh) for holds, en, zh in said if holds]


def epochs(lab: Lab, config: TrainConfig) -> dict[str, float]:
    """How many times a run sees each source: by its weight in every stage, of the tokens it has; infinite for one without any."""
    sizes = {name: float(shards.num_tokens) for name, shards in lab.built.train.items()}
    seen: dict[str, float] = {}
    for stage, steps in zip(config.stages, config.stage_steps(), strict=True):
        mixture = stage.mixture or sizes
        whole = sum(mixture.values())
        for name, weight in mixture.items():
            tokens = steps * config.batch_tokens * weight / whole
            seen[name] = seen.get(name, 0.0) + (tokens and (tokens / sizes[name] if sizes[name] else math.inf))
    return {name: value for name, value in seen.items() if value}


def _batch_said(laws: Laws, lab: Lab, c: Choice) -> list[Text]:
    """What the batch law says there, how sure, and whether it was followed."""
    if laws.batch is None:
        return []
    law, (low, high) = laws.batch.predict(c.loss), _batch_limits(laws, lab)
    interval = laws.measured.interval(laws.batch, c.loss) if laws.measured else None
    between = "" if interval is None else f" ({interval[0]:,.0f} .. {interval[1]:,.0f})"
    en = f"At {c.loss:.4f} bits per byte the batch law says {law:,.0f} tokens{between}"
    zh = f"在每字节 {c.loss:.4f} 比特处，批大小规律给出 {law:,.0f} token{between}"
    if laws.measured:
        (small, large), (best, worst) = laws.measured.batches, laws.measured.losses
        at = f"{best:.4f} .. {worst:.4f}"
        en += f"; it was fitted at {at}, with batches of {small:,.0f} .. {large:,.0f}"
        zh += f"；该规律拟合于 {at}，所试批大小为 {small:,.0f} .. {large:,.0f}"
    if not low <= law <= high:
        en += f". It is not followed more than {BEYOND:g} times past what was tried: {c.batch_tokens:,} are taken"
        zh += f"。最多外推到所试范围的 {BEYOND:g} 倍：取 {c.batch_tokens:,}"
    if min(law, high) > c.D / MIN_STEPS + lab.config.seq_len:
        en += f". So that there are {MIN_STEPS} steps, {c.batch_tokens:,} are taken"
        zh += f"。为保证至少 {MIN_STEPS} 步，取 {c.batch_tokens:,}"
    return [Text(f"{en}.", f"{zh}。")]


def _memory_said(c: Choice, more: Choice | None, config: TrainConfig, memory: int, here: Machine) -> list[Text]:
    """Where memory decided something, or was not known. more: the choice without its limit."""
    said, have = [], show_bytes(here.memory)
    if here.assumed:
        en = f"The memory of {here.profile} is taken to be this machine's, {have}: give --memory."
        said.append(Text(en, f"假定 {here.profile} 的内存与本机相同，为 {have}：请给出 --memory。"))
    if more is not None and (more.width, more.layers) != (c.width, c.layers):
        en = f"{have} of memory limited the size: more would make {more.width}x{more.layers} best, at {more.loss:.4f} predicted."
        zh = f"{have} 内存限制了尺寸：内存更多时最优为 {more.width}x{more.layers}，预测 {more.loss:.4f}。"
        said.append(Text(en, zh))
    elif config.recompute:
        en = f"With {have} of memory activations are recomputed, which takes time that is not counted here."
        said.append(Text(en, f"内存只有 {have}，因此重算激活值，其耗时未计入。"))
    if memory > here.memory:
        en = f"Even so it takes {show_bytes(memory)}, more than there is."
        said.append(Text(en, f"即便如此仍需 {show_bytes(memory)}，超出现有内存。"))
    return said


# --- the recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe with what it should give. interval: 95 %, of the predicted bits per byte. factor: how far outside the law's data it
    goes, 1 within. unlimited: loss of the best shape for all of the budget, when serving or a cap cost some. spec: the trial that
    the run is, config: the run."""

    budget: str
    budget_flops: float
    choice: Choice
    interval: tuple[float, float]
    factor: float
    unlimited: float | None
    seconds: float | None
    yuan: float | None
    profile: str
    memory: int
    notes: tuple[Text, ...]
    spec: Spec
    config: TrainConfig

    def json(self) -> dict[str, Any]:
        """Everything, for a program."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        out["choice"] = {**dataclasses.asdict(self.choice), "D": self.choice.D}
        out["notes"] = [{"en": en, "zh": zh} for en, zh in self.notes]
        return out | {"spec": self.spec.model_dump(mode="json"), "config": self.config.model_dump(mode="json")}

    def markdown(self, language: Language) -> str:
        """A table of the recipe, and what it rests on."""
        i = 0 if language == "en" else 1
        title = Text(f"## A plan for {self.budget}", f"## 预算 {self.budget} 的方案")
        lines = [title.of(language), "", "| | |", "|-|-|"]
        lines += [f"| {row[i]} | {row[2]} |" for row in self._rows()]
        return "\n".join([*lines, "", *(f"- {note.of(language)}" for note in self.notes)]) + "\n"

    def _rows(self) -> list[tuple[str, str, str]]:
        c, q, s, (low, high) = self.choice, self.spec, self.config.schedule, self.interval
        rows = [
            ("size, width x layers", "尺寸（宽 x 层）", f"{c.width}x{c.layers}"),
            ("N, without embedding", "N（不含词嵌入）", f"{c.N:,}"),
            ("parameters in all", "总参数", f"{c.N_total:,}"),
            ("D, tokens", "D（token）", f"{c.D:,}"),
            ("D / N", "D / N", f"{c.D / c.N:.3g}"),
            ("batch, tokens", "批大小（token）", f"{c.batch_tokens:,}"),
            ("steps", "步数", f"{c.steps:,}"),
            ("learning rate in the file", "文件中的学习率", f"{self.config.optimizer.lr:.4g}"),
            ("rule, optimizer", "迁移规则、优化器", f"{q.rule}, {q.optimizer}"),
            ("schedule", "学习率曲线", f"{q.schedule}, warmup {s.warmup_steps}, decay {q.decay:.3g}"),
            ("predicted bits per byte", "预测的每字节比特", f"{c.loss:.4f} ({low:.4f} .. {high:.4f})"),
            ("training FLOPs", "训练 FLOPs", f"{c.flops:.4g}"),
            ("FLOPs kept for serving", "留给推理的 FLOPs", f"{c.serve_flops:.4g}"),
            ("memory to train", "训练所需内存", show_bytes(self.memory)),
        ]
        if self.unlimited is not None:
            rows.append(("predicted bpb without serving or cap", "不计推理与上限时预测的 bpb", f"{self.unlimited:.4f}"))
        if self.seconds is not None:
            rows.append(("time", "时间", show_seconds(self.seconds)))
        if self.yuan is not None:
            rows.append((f"price on {self.profile}, yuan", f"在 {self.profile} 上的花费（元）", f"{self.yuan:.4g}"))
        return rows


def recipe(laws: Laws, lab: Lab, choice: Choice, here: Machine) -> tuple[TrainConfig, Spec, int]:
    """The run, as a trial of that size would be, but to be kept: it saves, evaluates on the way, and skips bad steps. With the
    trial that it is, and the bytes it takes: smaller micro-batches and recomputation where memory asks for them."""
    spec = lab.spec(
        width=choice.width, layers=choice.layers, steps=choice.steps, batch_tokens=choice.batch_tokens,
        lr=laws.lr_at(choice.D),
        schedule=laws.shape, decay=laws.decay,
    )  # fmt: skip
    assert cost_of(lab, spec) == (choice.N, choice.N_total, choice.flops), "what a shape costs is counted twice"
    trial = train_config(lab, spec)
    shape = pretrain.model_config(trial, lab.built)
    rows, recompute = trial.micro_batch_size, False
    while (memory := need(lab, shape, rows=rows, recompute=recompute)) > here.memory and (rows > 1 or not recompute):
        rows = max((n for n in range(1, rows) if trial.rows % n == 0), default=1) if recompute else rows
        recompute = True
    stages = (s.model_copy(update={"name": "decay" if s.decay else "stable"}) for s in trial.stages)
    every = max(1, choice.steps // 20)
    changes = {
        "data": str(Path(trial.data).absolute()), "data_dir": str(lab.built.path.absolute()), "stages": tuple(stages),
        "micro_batch_size": rows, "recompute": recompute, "guard": GuardConfig(), "save": SaveConfig(every_steps=every),
        "evaluation": EvaluationConfig(every_steps=every, limit_tokens=trial.evaluation.limit_tokens),
        "threads": None, "export": True, "cost_profile": here.profile,
    }  # fmt: skip
    return trial.model_copy(update=changes), spec, memory


# In the file also where they equal the defaults, which may move.
_DECIDED: dict[str, Any] = {
    **dict.fromkeys(("seq_len", "batch_tokens", "micro_batch_size", "recompute", "precision", "seed"), True),
    "optimizer": {"kind", "lr", "weight_decay"},
    "schedule": {"kind", "warmup_steps", "final"},
}


def write(plan: Plan, path: Path) -> None:
    """The TOML that `gangpao train` runs, whole or not at all: what was decided, and what else differs from the defaults."""
    c = plan.choice
    head = [
        f"A plan for {plan.budget}: {c.N:,} parameters without the embedding, {c.D:,} tokens.",
        f"Predicted: {c.loss:.4f} bits per byte ({plan.interval[0]:.4f} to {plan.interval[1]:.4f}).",
        f"gangpao train {path.name} --out RUN",
    ]
    values = plan.config.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    values = merge(values, plan.config.model_dump(mode="json", include=_DECIDED))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    comments = "".join(f"# {' '.join(line.split())}\n" for line in head)
    temporary.write_text(f"{comments}\n{to_toml(values)}", encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)
