"""What a tuning takes, before a weight is loaded: a table of bytes by what takes them, and a refusal in words where there is less.

The model is built without values and the method put into it, so every parameter is counted and none is written down twice. What a
pass keeps follows from which linears want their input back: a frozen one does not, one with an adapter keeps x and the narrow
x A^T, and all that want the same x share it. gangpao.model.count has the estimate for training everything on any device, this one
is for what our own operations keep on a processor: within a tenth of the live tensors (tests/tune/test_memory.py).

Nothing is largest all the time, so the peak is looked for at four moments of a step, and the rows of the table are those of that
moment: the loss (activations of all layers and a piece of logits), the last layer's backward pass, the first layer's (no
activations of others, all gradients), and the update.

What it gives up: experts are counted as if their load were even, and what torch and Python take themselves is not counted.
Shapes: R tokens of a pass, D model width, N heads, K KV heads, H head width, F FFN width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from gangpao.model import tiles
from gangpao.model.config import ModelConfig
from gangpao.model.cpu import BLOCK, KEPT_BYTES
from gangpao.model.transformer import Transformer
from gangpao.train.step.frozen_head import ROWS, TILE_WEIGHTS
from gangpao.train.step.lanes import lane_count
from gangpao.train.step.loss import CACHED_LOGITS, chunk_rows
from gangpao.tune.methods.apply import Applied, apply
from gangpao.tune.methods.bottleneck import Bottleneck
from gangpao.tune.methods.config import MethodConfig
from gangpao.tune.methods.dora import DoraLinear
from gangpao.tune.methods.lora import LoraLinear
from gangpao.tune.methods.simple import ScaledLinear
from gangpao.tune.methods.table import METHODS
from gangpao.units import table

STORAGE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}  # of a weight
ADAPTED_ROWS = 512  # of train.step.loss.token_losses
WORKING = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2, torch.float64: 8}


@dataclass(frozen=True, slots=True)
class OptimizerMemory:
    """Bytes that an optimizer keeps for a trained weight, beside it: so many, and so many numbers of the weight's own dtype.

    released: gradients are used up one by one.
    """

    bytes: float = 0
    numbers: int = 0
    released: bool = False


ADAMW = OptimizerMemory(numbers=2)
MUON = OptimizerMemory(numbers=1)


@dataclass(frozen=True, slots=True)
class Step:
    """What one pass computes. tokens: of all its rows; length: of one row; packed: whether rows hold several documents.

    passes: micro-batches of a step; lanes: most threads with rows (and gradients) of their own.
    """

    tokens: int
    length: int
    dtype: torch.dtype = torch.float32
    recompute: bool = False
    packed: bool = False
    passes: int = 1
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    bytes: int
    note: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The bytes of a tuning at the moment when they are most."""

    rows: tuple[Row, ...]
    moment: str

    @property
    def need(self) -> int:
        """Bytes in all."""
        return sum(row.bytes for row in self.rows)

    def text(self) -> str:
        """The table for people, in MiB."""
        lines = [[row.name, mib(row.bytes), row.note] for row in self.rows]
        return table(["memory", "MiB", ""], [*lines, ["need", mib(self.need), f"at its peak, {self.moment}"]])

    def as_json(self) -> dict[str, Any]:
        """The same for programs, in bytes."""
        return {"need": self.need, "moment": self.moment, **{row.name: row.bytes for row in self.rows}}


def plan(
    config: ModelConfig,
    method: MethodConfig,
    step: Step,
    *,
    storage: str | int = "bf16",
    optimizer: OptimizerMemory = ADAMW,
) -> Plan:
    """The plan of a tuning. storage: a name of STORAGE_BYTES, or the bytes of a file whose blocks stay as they are.

    Raises ValueError for a storage that is not known, and what `apply` raises for the method.
    """
    if isinstance(storage, str) and storage not in STORAGE_BYTES:
        raise ValueError(f"storage {storage!r} is not known: {', '.join(STORAGE_BYTES)}")
    with torch.device("meta"):
        model = Transformer(config)
    base = _weights(model, storage)
    applied = apply(model, method, seed=0)
    return _Peak(applied, step, optimizer, storage).plan(base)


def _weights(model: Transformer, storage: str | int) -> int:
    if isinstance(storage, int):
        return storage
    total = 0.0
    for name, p in model.named_parameters():
        inside = p.ndim == 2 and name.startswith("model.layers.")
        total += p.numel() * STORAGE_BYTES["bf16" if storage == "nf4" and not inside else storage]
    return int(total)


class _Peak:
    """The moments of a step."""

    def __init__(self, applied: Applied, step: Step, optimizer: OptimizerMemory, storage: str | int) -> None:
        self.step, self.optimizer, self.c = step, optimizer, applied.model.config
        self.trains_base = METHODS[applied.config.kind].trains_base
        self.trained = sum(p.numel() for p in applied.trainable.values())
        each = STORAGE_BYTES[storage] if self.trains_base and isinstance(storage, str) else 4.0
        self.state = optimizer.bytes + optimizer.numbers * each
        self.added = 0 if self.trains_base else 4 * self.trained
        gradients = int(each * self.trained)
        self.gradients = gradients * lane_count(step.lanes, step.tokens // step.length, gradients)
        self.largest = int(each * max(p.numel() for p in applied.trainable.values()))
        self.width = WORKING[step.dtype]
        self.layer = Layer(applied, step)
        self.head = HeadMemory(applied, step, storage)

    def plan(self, base: int) -> Plan:
        """The largest moment, as a table."""
        moments = {"at the loss": self._loss(), "in the last layer's backward pass": self._last()}
        moments |= {"in the first layer's backward pass": self._first(), "at the embedding": self._table()}
        moments |= {"at the update": self._update()}
        moment = max(moments, key=lambda name: sum(moments[name]))
        gradients, activations, logits = moments[moment]
        kept = "one input a layer and one layer" if self.step.recompute else "all layers"
        rows = (
            Row("weights", base, "of the base, as they are stored"),
            Row("adapter", self.added, f"{self.trained:,} trained numbers, float32" if self.added else ""),
            Row("optimizer", int(self.state * self.trained), f"{self.state:g} bytes a trained number"),
            Row("gradients", int(gradients), "used up one by one" if self.optimizer.released else ""),
            Row("activations", int(activations), f"{self.step.tokens:,} tokens, {kept}"),
            Row("logits", int(logits), "in pieces"),
            Row("scratch", self.head.scratch, "rows of the base as floats"),
        )
        return Plan(tuple(row for row in rows if row.bytes), moment)

    def _kept(self) -> float:
        """What all layers keep at the end of the forward pass."""
        layers, one = self.c.num_hidden_layers, self._vector()
        if self.step.recompute:
            return layers * one
        return layers * self.layer.kept - (
            0 if self.trains_base else one
        )  # nothing before the first adapter wants a gradient

    def _vector(self) -> float:
        """[R, D]."""
        return self.step.tokens * self.c.hidden_size * self.width

    def _before(self) -> float:
        """Gradients that are there before a backward pass begins."""
        return self.gradients if self.step.passes > 1 and not self.optimizer.released else 0

    def _loss(self) -> tuple[float, float, float]:
        return self._before() + self.head.gradient, self._kept() + 3 * self._vector(), self.head.logits

    def _last(self) -> tuple[float, float, float]:
        kept = self._kept() + (self.layer.kept - self._vector() if self.step.recompute else 0)
        return max(self._before(), self.head.stored), kept + self._vector() + self.layer.backward, 0

    def _first(self) -> tuple[float, float, float]:
        gradients = max(self.largest, self.head.stored) if self.optimizer.released else self.gradients
        return gradients, self.layer.kept + self._vector() + self.layer.backward, 0

    def _table(self) -> tuple[float, float, float]:
        """The embedding's gradient comes last, whole, and a tied one is added to the head's."""
        gradients = self.head.stored if self.optimizer.released else self.gradients
        return gradients + self.head.stored, self._vector(), 0

    def _update(self) -> tuple[float, float, float]:
        return (self.largest if self.optimizer.released else self.gradients), 0, 0


class HeadMemory:
    """What the loss takes. logits: pieces of them; gradient: of a trained head while it is summed up, stored: as it is kept;
    scratch: buffers in which rows of the base are made floats, here and in the layers."""

    def __init__(self, applied: Applied, step: Step, storage: str | int) -> None:
        c, width = applied.model.config, WORKING[step.dtype]
        trained = METHODS[applied.config.kind].trains_base
        each = STORAGE_BYTES[storage] if trained and isinstance(storage, str) else 0.0
        self.gradient = 4.0 * c.vocab_size * c.hidden_size if trained else 0.0
        self.stored = each * c.vocab_size * c.hidden_size
        exact = trained or (isinstance(storage, str) and storage != "nf4" and STORAGE_BYTES[storage] == width)
        tile = 0 if exact else tiles.TILE_WEIGHTS  # of a buffer that is there as long as the thread
        if "lm_head" in applied.modules:  # its own forward, made again: logits, log-probabilities, gradient
            self.logits = min(step.tokens, ADAPTED_ROWS) * c.vocab_size * (8.0 + width)
        elif exact:
            rows = chunk_rows(step.tokens, c.vocab_size)
            some = min(
                rows, max(1, CACHED_LOGITS // c.vocab_size)
            )  # whose probabilities there are in float32, and logits
            self.logits = c.vocab_size * (width * rows + (4.0 if width == 4 else 8.0) * some)
        else:  # by tiles: logits of some words, sums [R, D]
            rows, words = min(step.tokens, ROWS), min(c.vocab_size, max(64, TILE_WEIGHTS // c.hidden_size))
            pieces = 1 if words == c.vocab_size else 2  # the one before lives until the next is there
            self.logits = 4.0 * (pieces * rows * words + rows * c.hidden_size)
            tile = max(tile, words * c.hidden_size)
        self.scratch = tile * (4 if width == 4 else 4 + width)


class Layer:
    """What one layer keeps for its backward pass, and what that pass takes beside it at its largest; in bytes."""

    def __init__(self, applied: Applied, step: Step) -> None:
        c, self.step, self.width = applied.model.config, step, WORKING[step.dtype]
        self.all = METHODS[applied.config.kind].trains_base
        self.again = not (c.moe or c.gelu or step.recompute)  # the input of down_proj, by model/cpu.after_swiglu
        layers = applied.model.model.layers
        self.modules: list[dict[str, Any]] = [dict(layer.named_modules()) for layer in layers]
        self.kept = sum(self._kept(c, modules) for modules in self.modules) / len(self.modules)
        self.backward = self._backward(c)

    def _kept(self, c: ModelConfig, modules: dict[str, Any]) -> float:
        d, inner = c.hidden_size, self._inner(c)
        attention, single = self._attention(c)
        if (
            s := c.delta
        ) is not None:  # of the wider kind of layer, in float32: around the convolution, heads, one state a chunk
            states = s.value_size * s.linear_key_head_dim * 2 // 64
            single = max(single, 3 * s.channels + 4 * s.value_size + states)
        numbers: float = 2 * d + 2 * inner + attention  # both residual sums; gate and up
        wanted = [({"q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa"}, d), ({"o_proj"}, self._values(c))]
        wanted += [({"gate_proj", "up_proj", "w1", "w3"}, d)]
        wanted += [] if self.again else [({"down_proj", "w2"}, inner)]
        wanted += [({"q_b_proj"}, c.mla.q_lora_rank), ({"kv_b_proj"}, c.mla.kv_lora_rank)] if c.mla else []
        adapted: dict[str, Any] = {}
        for name, module in modules.items():
            if isinstance(module, LoraLinear | ScaledLinear):
                adapted.setdefault(name.rpartition(".")[2], module)
            elif isinstance(module, Bottleneck):
                numbers += (d if not module.beside else 0) + 2 * module.down.matrix().shape[0]
        for leaves, size in wanted:
            if self.all or any(isinstance(adapted.get(leaf), LoraLinear) for leaf in leaves):
                numbers += size
        for module in adapted.values():
            if isinstance(module, LoraLinear):
                numbers += len(module.lora_A)
            if isinstance(module, DoraLinear) or (isinstance(module, ScaledLinear) and not module.inputs):
                numbers += module.out_features  # the product before its rows are scaled
            elif isinstance(module, ScaledLinear):
                numbers += module.in_features
        mask = self.step.tokens * self.step.length if self.step.packed else 0
        return self.step.tokens * (numbers * self.width + single * 4) + self._probabilities(c) + mask

    def _inner(self, c: ModelConfig) -> int:
        return c.intermediate_size * (c.moe.num_experts_per_tok if c.moe else 1)

    def _values(self, c: ModelConfig) -> int:
        return c.num_attention_heads * (c.mla.v_head_dim if c.mla else c.head_dim)

    def _attention(self, c: ModelConfig) -> tuple[int, int]:
        """Numbers a token that attention keeps, in the dtype of the computation and in float32."""
        queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        if c.mla:  # torch's own attention: queries, keys, values, the result; norms of the latents
            key = c.num_attention_heads * (c.mla.qk_nope_head_dim + c.mla.qk_rope_head_dim)
            return 2 * key + 2 * self._values(c) + c.mla.q_lora_rank + c.mla.kv_lora_rank, 0
        return keys + (queries + keys if c.qk_norm else 0), queries + keys

    def _probabilities(self, c: ModelConfig) -> float:
        """Those that are kept: a triangle in steps of a block, unless that is much."""
        if c.mla:
            return 0
        blocks = math.ceil(self.step.length / BLOCK)
        rows = self.step.tokens / self.step.length
        size = (
            rows
            * c.num_attention_heads
            * self.step.length
            * self.step.length
            * (blocks + 1)
            / (2 * blocks)
            * self.width
        )
        return size if size <= KEPT_BYTES else 0

    def _backward(self, c: ModelConfig) -> float:
        """Beside what is kept: in the MLP three gradients of its inner values; in attention gradients of queries, keys and values
        twice and some blocks of scores, when what the MLP kept is gone."""
        inner = self._inner(c)
        mlp, gone = (3, 2) if self.again else (2, 3)
        queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        rows = self.step.tokens / self.step.length
        block = rows * c.num_attention_heads * min(BLOCK, self.step.length) * self.step.length * 4
        attention = (
            (queries + keys) * 4 + (2 * (queries + keys) + c.hidden_size) * self.width - gone * inner * self.width
        )
        return max(self.step.tokens * mlp * inner * self.width, self.step.tokens * attention + 3 * block)


def mib(size: float) -> str:
    """Bytes as MiB, without the unit."""
    return f"{size / 2**20:,.0f}"
