"""The named mixtures of llama-quantize: which type each tensor of a model gets under a name such as Q4_K_M.

A name is a type for most matrices; some that matter more get another one: the head (or the embedding where it is the head, too),
v or the matrix that v is a part of, the attention's output and the MLP's second matrix, by their layer. Small facts of a model
change that: heads that share keys, experts, whether there is an importance matrix. The rules are those of the real program, tensor
by tensor, so that a name means the same here; tests/compress/quantize/mixtures.json has what it answered for many shapes.

Rows that are no whole blocks of a type get a type of smaller blocks (`fitting`), and F16 where even 32 is no divisor.

What it gives up: mixtures of types that we do not write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gangpao.formats.blocks import BY_NAME, fits

QUANTIZATION_VERSION = 2  # of ggml's block formats, as files say it
# v, or what it is a part of: q, k and v of a recurrent layer, keys and values of latent attention.
_VALUES = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What decides a mixture. shapes: of all tensors, in numpy's order, by GGUF name; heads and kv_heads of the attention."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)

    @property
    def tied(self) -> bool:
        """Whether the embedding is the head, too."""
        return "output.weight" not in self.shapes

    @property
    def very_large(self) -> bool:
        """The models of 80 layers whose v is small beside everything else."""
        shares = self.architecture == "llama" and self.heads != self.kv_heads
        return self.layers == 80 and (shares or self.architecture == "qwen2")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor stands: the number of its layer among `count`, and what of the model matters for it."""

    at: int
    count: int
    grouped: bool  # four query heads or more share a key
    importance: bool

    @property
    def first_eighth(self) -> bool:
        return self.at < self.count // 8

    @property
    def wants_more(self) -> bool:
        """The first and the last eighth of the layers, and each third one between."""
        first = self.count // 8
        return self.first_eighth or self.at >= 7 * self.count // 8 or (self.at - first) % 3 == 2


_Rule = Callable[[_Place], str | None]  # a type in place of the usual one


def _usual(_: _Place) -> str | None:
    return None


def _always(kind: str) -> _Rule:
    return lambda _: kind


def _when(kind: str, where: Callable[[_Place], bool], other: str | None = None) -> _Rule:
    return lambda place: kind if where(place) else other


@dataclass(frozen=True, slots=True)
class Mixture:
    """A name. file_type: its number in general.file_type; usual: the type of most matrices; the others where they differ."""

    file_type: int
    usual: str
    v: _Rule = _usual
    down: _Rule = _usual
    attention_output: str | None = None
    attention_output_of_8: str | None = None  # of a model of eight experts
    embedding: str | None = None


def _eighth(place: _Place) -> bool:
    return place.first_eighth


def _more(place: _Place) -> bool:
    return place.wants_more


def _grouped(place: _Place) -> bool:
    return place.grouped


def _guided(place: _Place) -> bool:
    return place.importance and place.first_eighth


def _unguided(place: _Place) -> bool:
    return not place.importance and place.first_eighth


_IQ4: dict[str, _Rule] = {"v": _when("Q5_K", _grouped), "down": _when("Q5_K", _unguided)}

MIXTURES: dict[str, Mixture] = {
    "F32": Mixture(0, "F32"),
    "F16": Mixture(1, "F16"),
    "BF16": Mixture(32, "BF16"),
    "Q8_0": Mixture(7, "Q8_0"),
    "Q6_K": Mixture(18, "Q6_K"),
    "Q5_K_M": Mixture(17, "Q5_K", v=_when("Q6_K", _more), down=_when("Q6_K", _more)),
    "Q5_K_S": Mixture(16, "Q5_K"),
    "Q5_1": Mixture(9, "Q5_1"),
    "Q5_0": Mixture(8, "Q5_0", down=_when("Q5_1", _guided)),
    "Q4_K_M": Mixture(15, "Q4_K", v=_when("Q6_K", _more), down=_when("Q6_K", _more), attention_output_of_8="Q5_K"),
    "Q4_K_S": Mixture(
        14, "Q4_K", v=_when("Q5_K", lambda p: p.at < 4), down=_when("Q5_K", _eighth), attention_output_of_8="Q5_K"
    ),
    "Q4_1": Mixture(3, "Q4_1"),
    "Q4_0": Mixture(2, "Q4_0", down=_when("Q4_1", _guided)),
    "IQ4_NL": Mixture(25, "IQ4_NL", attention_output_of_8="Q5_K", **_IQ4),  # type: ignore[arg-type]
    "IQ4_XS": Mixture(30, "IQ4_XS", attention_output_of_8="Q5_K", **_IQ4),  # type: ignore[arg-type]
    "Q3_K_L": Mixture(13, "Q3_K", v=_always("Q5_K"), down=_always("Q5_K"), attention_output="Q5_K"),
    "Q3_K_M": Mixture(
        12, "Q3_K", v=_when("Q5_K", lambda p: p.at < 2, "Q4_K"), down=_when("Q5_K", lambda p: p.at < p.count // 16, "Q4_K"),
        attention_output="Q4_K", attention_output_of_8="Q5_K",
    ),
    "Q3_K_S": Mixture(11, "Q3_K", attention_output_of_8="Q5_K"),
    "Q2_K": Mixture(
        10, "Q2_K", v=_when("Q4_K", _grouped, "Q3_K"), down=_always("Q3_K"),
        attention_output="Q3_K", attention_output_of_8="Q5_K",
    ),
    "Q2_K_S": Mixture(21, "Q2_K", v=_when("Q4_K", _grouped), down=_when("Q4_K", _eighth)),
    "TQ2_0": Mixture(37, "TQ2_0", embedding="Q4_K"),
    "TQ1_0": Mixture(36, "TQ1_0", embedding="Q4_K"),
}  # fmt: skip
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
NEEDS_IMPORTANCE = ("Q2_K_S",)  # what the real program refuses to make without

# Types of smaller blocks for rows that are no whole blocks of 256.
_SMALLER = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}  # fmt: skip


def named(name: str) -> str:
    """The mixture that a person means. Raises ValueError listing all of them."""
    upper = name.upper().replace("-", "_")
    found = ALIASES.get(upper, upper)
    if found not in MIXTURES:
        raise ValueError(f"{name!r:.40} is no type we write; choose one of {', '.join(MIXTURES)}")
    return found


def fitting(kind: str, cols: int) -> str:
    """The type for rows of this many columns where `kind` was wanted: itself, one of smaller blocks, or F16."""
    if fits(cols, kind):
        return kind
    smaller = _SMALLER.get(kind, kind)
    return smaller if fits(cols, smaller) else "F16"


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama-quantize changes the type of this tensor: matrices, but no norms, routers and filters."""
    matrix = any(rows > 1 for rows in shape[:-1])
    kept = "_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d.weight"
    return matrix and name.endswith("weight") and not any(part in name for part in kept)


def mixture(name: str, model: ModelShape, has_importance: bool, *, pure: bool = False) -> dict[str, str]:
    """The type of every tensor whose type changes, by its name. pure: the usual type for all of them.

    Raises ValueError for a name that we do not know.
    """
    wanted = wanted_types(name, model, has_importance, pure=pure)
    return {tensor: fitting(kind, model.shapes[tensor][-1]) for tensor, kind in wanted.items()}


def wanted_types(name: str, model: ModelShape, has_importance: bool, *, pure: bool = False) -> dict[str, str]:
    """The same before rows that are no whole blocks get another type."""
    chosen = MIXTURES[named(name)]
    matrices = sorted((t for t, shape in model.shapes.items() if is_quantized(t, shape)), key=_in_layers)
    if pure or BY_NAME[chosen.usual].block_size == 1:
        return dict.fromkeys(matrices, chosen.usual)
    return _Deal(chosen, model, has_importance).types(matrices)


def _in_layers(tensor: str) -> tuple[int, str]:
    return _layer(tensor), tensor


def _layer(tensor: str) -> int:
    """The number of a tensor's layer; -1 outside."""
    return int(tensor.split(".")[1]) if tensor.startswith("blk.") else -1


def _holds_values(tensor: str) -> bool:
    return any(part in tensor for part in _VALUES)


class _Deal:
    """Types for the tensors of one model, in the order of the layers."""

    def __init__(self, mixture: Mixture, model: ModelShape, importance: bool) -> None:
        self.mixture, self.model, self.importance = mixture, model, importance
        self.values = sum(_holds_values(name) for name in model.shapes)
        self.of_8 = model.experts == 8
        self.seen = {"v": 0, "down": 0}

    def types(self, matrices: list[str]) -> dict[str, str]:
        return {name: self._type(name) or self.mixture.usual for name in matrices}

    def _type(self, name: str) -> str | None:
        model, mixture = self.model, self.mixture
        if name == "output.weight" or (name == "token_embd.weight" and model.tied):
            whole = fits(model.shapes[name][-1], mixture.usual)
            return "Q6_K" if whole and mixture.usual != "Q8_0" else "Q8_0"
        if name == "token_embd.weight":
            return mixture.embedding
        if _holds_values(name):
            return self._v()
        if "attn_k.weight" in name:
            return "Q8_0" if self.of_8 else None
        if "attn_output.weight" in name:
            return mixture.attention_output_of_8 if self.of_8 else mixture.attention_output
        if "ffn_down" in name:
            at = _layer(name) if model.experts > 1 else self._next("down")
            return mixture.down(self._place(at, model.layers))
        return None

    def _v(self) -> str | None:
        kind = self.mixture.v(self._place(self._next("v"), self.values)) or self.mixture.usual
        if self.of_8:
            return "Q8_0"
        return "Q5_K" if self.model.very_large and kind in ("Q3_K", "Q4_K") else kind

    def _next(self, what: str) -> int:
        self.seen[what] += 1
        return self.seen[what] - 1

    def _place(self, at: int, count: int) -> _Place:
        return _Place(at, count, self.model.heads // max(1, self.model.kv_heads) >= 4, self.importance)
