"""Rules of transfer as data: how first values, learning rates and multipliers move with width, depth and batch.

A rule is tuned once on a small model, the base, and a `Law` says how each number goes on from there: base * m^a * l^b * k^c,
where m, l and k are width, layers and batch relative to the base. `resolve` turns a rule and a shape into keys of the model's
configuration and a KindRule for each kind of parameter, which is what `gangpao train` takes: training knows no rules of transfer.

    minicpm             MiniCPM's table (arXiv:2404.06395, table 7): muP over width, residual branches by 1 / sqrt(layers)
    standard            one standard deviation and one learning rate for all
    standard-embedding  the same, but embeddings learn faster the wider the model is
    completep           muP over width, and 1 / layers over depth (arXiv:2505.01618)

`gangpao sandbox check` measures whether a rule keeps its promise. What it gives up: the kinds are those of model/init.py, so a tied
head is its embedding, and rules that treat q, k, v apart (or change the softmax's scale) cannot be said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field

from gangpao.config import Frozen
from gangpao.model.init import KindRule, ParameterKind
from gangpao.sandbox.trials.field_types import Base

__all__ = [
    "KINDS",
    "RULES",
    "Base",
    "KindLaws",
    "Law",
    "Multipliers",
    "Resolved",
    "Transfer",
    "describe",
    "get_rule",
    "resolve",
]

Axis = Literal["width", "layers"]
KINDS: tuple[ParameterKind, ...] = ("embedding", "head", "hidden", "norm", "bias")


class Law(Frozen):
    """A power law: `base`, times each ratio to the base shape to its exponent. absolute: times width, layers, tokens themselves."""

    base: float = Field(gt=0)
    width: float = 0.0
    depth: float = 0.0
    batch: float = 0.0
    absolute: bool = False

    def at(self, width: int, layers: int, batch_tokens: int, base: Base) -> float:
        """The value for a shape."""
        one = (1, 1, 1) if self.absolute else (base.width, base.layers, base.batch_tokens)
        value = _times(self.base, width / one[0], self.width)
        value = _times(value, layers / one[1], self.depth)
        return _times(value, batch_tokens / one[2], self.batch)

    def __str__(self) -> str:
        names = ("width", "layers", "batch") if self.absolute else ("m", "l", "k")
        powers = zip(names, (self.width, self.depth, self.batch), strict=True)
        parts = [name if e == 1 else f"{name}^{e:g}" for name, e in powers if e]
        return " ".join([f"{self.base:g}", *parts])


def _times(value: float, ratio: float, exponent: float) -> float:
    """value * ratio^exponent, rounded as model/init.py rounds it: MiniCPM's rule gives the very floats of a plain run."""
    power = math.sqrt(ratio) if abs(exponent) == 0.5 else ratio ** abs(exponent)
    return value / power if exponent < 0 else value * power


_ONE = Law(base=1.0)


class KindLaws(Frozen):
    """What happens to one kind of parameter. std: of the first values; the others are factors on the optimizer's options."""

    std: Law | None = Field(default=None, description="None: norms are ones, biases zeros.")
    lr: Law = _ONE
    weight_decay: Law = Field(default=_ONE, description="Without effect on norms and biases, which do not decay.")
    eps: Law = _ONE


class Multipliers(Frozen):
    """Constants of the forward pass: of embeddings, of every residual branch, of the final hidden state."""

    embedding: Law = _ONE
    residual: Law = _ONE
    logits: Law = _ONE


class Transfer(Frozen):
    """A rule of transfer. Values at the base are those that its authors found."""

    name: str = Field(min_length=1)
    about: str
    source: str
    left_out: str = Field(default="", description="What of the source is not here.")
    kinds: dict[ParameterKind, KindLaws]
    multipliers: Multipliers = Multipliers()
    lr_batch: float = Field(default=0.0, description="The learning rate of all goes with batch^this.")
    axes: tuple[Axis, ...] = Field(default=("width",), description="Along which it claims that nothing moves.")


class Resolved(NamedTuple):
    """A rule at a shape. change: keys of ModelConfig; rules: of TrainConfig; lr_factor: on the learning rate."""

    change: dict[str, Any]
    rules: dict[ParameterKind, KindRule]
    lr_factor: float


def _table(
    std: float, width: float, *, lr: float, decay: Law = _ONE, eps: Law = _ONE, outer_eps: Law = _ONE
) -> dict[ParameterKind, KindLaws]:
    """Laws of every kind from those of the hidden matrices: exponents over width of std and learning rate."""
    outer = KindLaws(std=Law(base=std), eps=outer_eps)
    hidden = KindLaws(std=Law(base=std, width=width), lr=Law(base=1.0, width=lr), weight_decay=decay, eps=eps)
    small = KindLaws(eps=eps)
    return {"embedding": outer, "head": outer, "hidden": hidden, "norm": small, "bias": small}


_STANDARD = _table(0.02, 0.0, lr=0.0)
_ALL = (
    Transfer(
        name="minicpm",
        about="muP over width; residual branches by 1 / sqrt(layers). The learning rate of the base serves every width.",
        source="arXiv:2404.06395, table 7; norms begin at 1 as in the published code, not at the table's 0.1",
        left_out="The base width is that of the sandbox; the paper's is 256. Its experiments keep the learning rate over batches.",
        kinds=_table(0.1, -0.5, lr=-1.0),
        multipliers=Multipliers(
            embedding=Law(base=12.0),
            residual=Law(base=1.4, depth=-0.5, absolute=True),
            logits=Law(base=1.0, width=-1.0),
        ),
    ),
    Transfer(
        name="standard",
        about="Every matrix begins with standard deviation 0.02 and learns at the same rate, at every width and depth.",
        source="common practice since GPT-2, here without its smaller start of matrices that write to the residual stream",
        kinds=_STANDARD,
        axes=(),
    ),
    Transfer(
        name="standard-embedding",
        about="Standard, with an embedding that learns sqrt(width) times as fast as the rest.",
        source="arXiv:2506.15025, the ratio it finds for large vocabularies",
        left_out="The paper has an untied head, which stays at the plain rate; a tied one is the embedding and learns as fast.",
        kinds={
            **_STANDARD,
            "embedding": _STANDARD["embedding"].model_copy(update={"lr": Law(base=1.0, width=0.5, absolute=True)}),
        },
        axes=(),
    ),
    Transfer(
        name="completep",
        about="muP over width with a decay that keeps its strength, and residual branches by 1 / layers. At a base of four "
        "layers it is minicpm.",
        source="arXiv:2505.01618, table 1 with alpha = 1; the values at the base are MiniCPM's",
        left_out="Attention is divided by sqrt(head_dim), not by head_dim: heads do not grow here. The last norm has the "
        "epsilon of those in the layers.",
        kinds=_table(
            0.1,
            -0.5,
            lr=-1.0,
            decay=Law(base=1.0, width=1.0),
            eps=Law(base=1.0, width=-1.0, depth=-1.0),
            outer_eps=Law(base=1.0, width=-1.0),
        ),
        multipliers=Multipliers(
            embedding=Law(base=12.0), residual=Law(base=0.7, depth=-1.0), logits=Law(base=1.0, width=-1.0)
        ),
        axes=("width", "layers"),
    ),
)
RULES: Mapping[str, Transfer] = {rule.name: rule for rule in _ALL}


def get_rule(name: str) -> Transfer:
    """A rule by its name. Raises ValueError that names those there are."""
    if name not in RULES:
        raise ValueError(f"rule {name!r:.40}: there are {', '.join(RULES)}")
    return RULES[name]


def resolve(rule: Transfer, *, width: int, layers: int, batch_tokens: int, base: Base) -> Resolved:
    """What a rule says for a shape. Raises ValueError where a model's configuration cannot say it."""
    for name, value in (("width", width), ("layers", layers), ("batch_tokens", batch_tokens)):
        if value < 1:
            raise ValueError(f"{name} {value}: it must be 1 or more")

    def at(law: Law) -> float:
        return law.at(width, layers, batch_tokens, base)

    rules = {
        kind: KindRule(
            std=at(laws.std) if laws.std else None,
            lr=at(laws.lr),
            weight_decay=at(laws.weight_decay),
            eps=at(laws.eps),
        )
        for kind, laws in rule.kinds.items()
    }
    embedding = rules["embedding"].std if "embedding" in rules else None
    change = {
        "scale_emb": at(rule.multipliers.embedding),
        "scale_depth": _scale_depth(rule, layers, at(rule.multipliers.residual)),
        "dim_model_base": _dim_model_base(rule, width, at(rule.multipliers.logits)),
    }
    if (
        embedding is not None
    ):  # else the model's own; the rules say it for every kind, this is for who reads config.json
        change["initializer_range"] = embedding
    return Resolved(change, rules, _times(1.0, batch_tokens / base.batch_tokens, rule.lr_batch))


def _scale_depth(rule: Transfer, layers: int, residual: float) -> float:
    """The configuration divides by sqrt(layers) itself."""
    law = rule.multipliers.residual
    if law.absolute and law.depth == -0.5 and not (law.width or law.batch):
        return law.base  # 1.4, without the last bit that a root and its inverse lose
    return residual * math.sqrt(layers)


def _dim_model_base(rule: Transfer, width: int, logits: float) -> int:
    """The configuration's multiplier is dim_model_base / hidden_size, and its base is a whole number."""
    whole = round(logits * width)
    if whole < 1 or not math.isclose(whole, logits * width, rel_tol=1e-9):
        raise ValueError(
            f"rule {rule.name}: a multiplier of logits of {logits:g} at width {width} asks for dim_model_base {logits * width:g}, "
            "which must be a whole number; choose exponent 0 or -1 over width"
        )
    return whole


def describe(rule: Transfer) -> list[dict[str, str]]:
    """A rule as the rows of a table; m, l and k are width, layers and batch relative to the base."""
    rows = []
    multipliers = {
        "embedding": rule.multipliers.embedding,
        "head": rule.multipliers.logits,
        "hidden": rule.multipliers.residual,
    }
    for kind in KINDS:
        laws = rule.kinds.get(kind)
        if laws is None:
            continue
        lr = laws.lr.model_copy(update={"batch": laws.lr.batch + rule.lr_batch})
        first = str(laws.std) if laws.std else "1" if kind == "norm" else "0"
        decays = kind not in ("norm", "bias")
        multiplier = multipliers.get(kind)
        rows.append(
            {
                "kind": kind,
                "init": first,
                "lr": str(lr),
                "weight decay": str(laws.weight_decay) if decays else "0",
                "eps": str(laws.eps),
                "multiplier": str(multiplier) if multiplier else "1",
            }
        )
    return rows
