"""Whether a written file computes what the checkpoint computes: read back by the engine, layer by layer, beside the torch model.

Four stages, each of which names the first difference: the numbers of the header, the rotary angles (short and long), every
weight (no farther from the checkpoint's than its type rounds), and what is computed for a short prompt: by every layer, from
the same states, then the log-probabilities. For the last one the torch model of config.json gets the weights as the file holds
them, so that rounding of weights, which the stage before has bounded, does not hide a mistake in the graph; what is left is
rounding of activations, and the limit is narrow. The memory needed is that of a layer, twice, or of a piece of the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gangpao.deploy.header import form_of
from gangpao.deploy.plan import Planned
from gangpao.engine import rope
from gangpao.engine.config import ModelConfig as EngineConfig
from gangpao.engine.transformer import forward_by_layer
from gangpao.formats.architectures import EMBEDDING, HEAD
from gangpao.formats.blocks import BY_NAME, WRITTEN
from gangpao.formats.gguf import GGUF, ModelFileError
from gangpao.model.config import ModelConfig
from gangpao.model.layers import LayerCache, RMSNorm, angles, inverse_frequencies, local_angles, windowed
from gangpao.model.transformer import Block

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

PROMPT_TOKENS = 24
# Largest difference that rounding explains, as a share: of what a layer adds to the hidden states (root mean squares), and of
# the largest log-probability. Float weights meet float activations; the others meet activations in 8 bits, 32 with one scale.
# Measured: docs/decisions.md.
LIMIT_FLOAT, LIMIT_BLOCKS = 1e-3, 0.08
_SMALLEST = 5e-6  # how far a weight may move at least: 127 times the spacing of the smallest scales in F16
_BLOCK = 32
# Of the tokens of a layer with experts, as a share: those that must agree. Where two experts are equally good for a token,
# rounding decides between them, and the token's result is another one; a mistake in the graph shows in all.
NEAREST = 0.75

_FLOAT = 1e-6  # and of the hidden states themselves, where a layer adds little or nothing


class Difference(ValueError):
    """The file and the checkpoint differ; says at which stage, and where first."""


def prove(
    gguf: GGUF,
    config: ModelConfig,
    planned: Sequence[Planned],
    kind: str,
    on_note: Callable[[str], None],
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Raises Difference for the first thing in which the file is not the checkpoint.

    advance is called `steps(config)` times.
    """
    try:
        read = EngineConfig.from_gguf(gguf)
    except ModelFileError as error:
        on_note(f"our engine does not run this file, so the weights were compared, but not what is computed: {error}")
        for tensor in planned:
            compare_weights(gguf, tensor)
        for _ in range(steps(config)):
            advance()
        return
    _compare_header(read, config)
    _compare_angles(gguf, read, config)
    ids = np.linspace(0, config.vocab_size - 1, min(PROMPT_TOKENS, config.max_position_embeddings)).astype(int).tolist()
    limit = LIMIT_FLOAT if BY_NAME[kind].block_size == 1 else LIMIT_BLOCKS
    with _one_torch_thread():
        states = _Reference(gguf, config, planned).states(ids)
        kept = NEAREST if config.moe else 1.0
        _compare_layers(forward_by_layer(gguf, ids), states, config.num_hidden_layers, limit, kept, advance)


def steps(config: ModelConfig) -> int:
    """How often `prove` says that it advanced: once a layer, and once for the head."""
    return config.num_hidden_layers + 1


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Torch's threads wait by spinning while the engine's work, and the other way round; most of the time is numpy's anyway."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _compare_header(read: EngineConfig, config: ModelConfig) -> None:
    if read.architecture != (name := form_of(config).name):
        raise Difference(f"header: architecture is {read.architecture} in the file, not {name}")
    pairs = {
        "embedding_scale": (read.embedding_scale, config.embedding_scale),
        "residual_scale": (read.residual_scale, config.residual_scale),
        "logit_scale": (read.logit_scale, config.logit_scale),
    }
    for name in (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
        "vocab_size", "rms_norm_eps", "rope_theta", "rope_dim", "max_position_embeddings",
    ):  # fmt: skip
        pairs[name] = getattr(read, name), getattr(config, name)
    for name in ("num_experts", "num_experts_per_tok"):
        pairs[name] = getattr(read, name), getattr(config.moe, name, 0)
    for name, (there, here) in pairs.items():
        if not math.isclose(there, here, rel_tol=1e-6):
            raise Difference(f"header: {name} is {there} in the file and {here} in the checkpoint")


def _compare_angles(gguf: GGUF, read: EngineConfig, config: ModelConfig) -> None:
    """At the shortest context, at the border of the trained length, and at the longest."""
    names = {"freqs": "rope_freqs", "long": "rope_factors_long", "short": "rope_factors_short"}
    factors = {k: gguf.array(f"{n}.weight") for k, n in names.items() if f"{n}.weight" in gguf.tensors}
    longest = config.max_position_embeddings
    border = config.rope_scaling.original_max_position_embeddings if config.rope_scaling else 0
    for context in sorted({1, border, border + 1, longest} & set(range(1, longest + 1))):
        ours, factor = rope.inverse_frequencies(read, context=context, factors=factors)
        theirs, wanted = inverse_frequencies(config, context)
        expected = theirs.numpy()
        if not math.isclose(factor, wanted, rel_tol=1e-5):
            raise Difference(
                f"rotary angles: the factor at {context} positions is {factor:g} in the file, {wanted:g} by config.json"
            )
        far = np.abs(ours / expected - 1) > 1e-5
        if far.any():
            i = int(np.argmax(far))
            raise Difference(
                f"rotary angles: at {context} positions pair {i} turns by {ours[i]:g} in the file and by {expected[i]:g} by "
                "config.json"
            )


def compare_weights(gguf: GGUF, tensor: Planned) -> None:
    for source in range(len(tensor.sources)):
        for _ in _read(gguf, tensor, source):
            pass


def _first_far(values: Floats, read: Floats, kind: str) -> tuple[int, int] | None:
    """Row and column of the first value [R, C] that moved farther on its way through the type than rounding moves it; where a
    search may move single values far, of the largest move in the first row of which too much was lost."""
    block = _BLOCK if values.shape[1] % _BLOCK == 0 else values.shape[1]
    written = WRITTEN[kind]
    if (step := written.step) is None:
        lost, there = (np.square(a, dtype=np.float64).sum(axis=1) for a in (values - read, values))
        bad = ~(lost <= written.loss**2 * there + values.shape[1] * _SMALLEST**2)
        at = int(np.argmax(bad))
        return (at, int(np.argmax(np.abs(values - read)[at]))) if bad.any() else None
    far = np.abs(values - read).reshape(len(values), -1, block)
    top = np.abs(values).reshape(far.shape).max(axis=-1, keepdims=True)
    wrong = ~(far <= top * np.float32(step * 1.01) + np.float32(_SMALLEST if step else 0))
    if not wrong.any():
        return None
    row, column = np.unravel_index(int(np.argmax(wrong)), values.shape)
    return int(row), int(column)


def _read(gguf: GGUF, tensor: Planned, source: int = 0) -> Iterator[Floats]:
    """A source's rows as the file holds them, in the file's order, in pieces that were compared with the checkpoint's."""
    if tensor.name not in gguf.tensors:
        raise Difference(f"weights: {tensor.name} is not in the file")
    info = gguf.tensors[tensor.name]
    if (info.shape, info.type) != (tensor.shape, tensor.type):
        raise Difference(
            f"weights: {tensor.name} is {info.type} {info.shape} in the file, not {tensor.type} {tensor.shape}"
        )
    name = tensor.sources[source][0]
    offset = source * int(np.prod(tensor.shape[1:-1], dtype=np.int64)) if "_exps" in tensor.name else 0
    for begin, expected in tensor.rows(source):
        found = gguf.rows(tensor.name, offset + begin, offset + begin + len(expected))
        if (at := _first_far(expected, found, tensor.type)) is not None:
            order = f" ({tensor.change.what})" if tensor.change else ""
            raise Difference(
                f"weights: {name}, row {begin + at[0]}{order}, column {at[1]} is {found[at]:g} in the file and {expected[at]:g} "
                "in the checkpoint"
            )
        yield found


class _RoundedCache(LayerCache):
    """Keys and values go through F16, as in the engine's cache."""

    def __init__(self) -> None:
        self.length = 0

    def append(self, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        return k_BKTH.half().float(), v_BKTH.half().float()


class _Reference:
    """The torch model with the file's weights, which are compared with the checkpoint's as they pass."""

    def __init__(self, gguf: GGUF, config: ModelConfig, planned: Sequence[Planned]) -> None:
        self.gguf, self.config = gguf, config
        self.planned = {name: (tensor, i) for tensor in planned for i, (name, _) in enumerate(tensor.sources)}

    def states(self, ids: Sequence[int]) -> Iterator[Floats]:
        """Hidden states [T, D] in front of the first layer and behind each, then logits [T, V]."""
        c = self.config
        rows = self.gguf.raw("token_embd.weight")
        assert len(rows) == c.vocab_size
        hidden = np.concatenate([self.gguf.rows("token_embd.weight", i, i + 1) for i in ids])
        h = torch.from_numpy(hidden)[None] * c.embedding_scale
        yield h[0].numpy()
        inverse, factor = inverse_frequencies(c, len(ids))
        cos, sin = angles(inverse, factor, torch.arange(len(ids))[None])
        for i in range(c.num_hidden_layers):
            cache, turn, mask = None if c.kinds[i] == "linear_attention" else _RoundedCache(), (cos, sin), None
            if c.kinds[i] == "sliding_attention" and c.sliding_window:
                turn, mask = (
                    local_angles(c, torch.arange(len(ids))[None]),
                    windowed(None, len(ids), 0, c.sliding_window),
                )
            h, _ = self._module(f"model.layers.{i}.", Block, c, i)(h, *turn, mask, cache)
            yield h[0].numpy()
        norm = partial(RMSNorm, centred=c.centred_norms)
        h = self._module("model.norm.", norm, c.hidden_size, c.rms_norm_eps)(h) * c.logit_scale
        tied = HEAD not in self.planned
        if not tied:
            compare_weights(self.gguf, self.planned[EMBEDDING][0])
        pieces = _read(self.gguf, self.planned[EMBEDDING if tied else HEAD][0])
        yield torch.cat([h[0] @ torch.from_numpy(piece).T for piece in pieces], dim=1).numpy()

    def _module(self, prefix: str, kind: Callable[..., nn.Module], *arguments: object) -> nn.Module:
        with torch.device("meta"):
            module = kind(*arguments)
        for name, p in list(module.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            values = torch.from_numpy(self._values(prefix + name)).reshape(p.shape)
            setattr(module.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))
        return module

    def _values(self, name: str) -> Floats:
        tensor, source = self.planned[name]
        rows = np.concatenate(list(_read(self.gguf, tensor, source)))
        if tensor.change is None:
            return rows
        return tensor.change.back(rows if len(tensor.shape) > 1 else rows.reshape(-1))


def _compare_layers(
    ours: Generator[Floats, Floats | None, None],
    theirs: Iterator[Floats],
    layers: int,
    limit: float,
    kept: float,
    advance: Callable[[], None],
) -> None:
    """Every layer, and then the head, with the reference's states as input: what one rounds is not blamed on the next.

    kept: the share of the tokens that is looked at in each layer, those that agree best.
    """
    before, found = next(theirs), next(ours)
    for layer in range(layers):
        wanted = next(theirs)
        nearest = np.argsort(np.square(found - wanted).sum(axis=1))[: math.ceil(kept * len(found))]
        distance, added = _rms((found - wanted)[nearest]), _rms((wanted - before)[nearest])
        if not distance <= limit * added + _FLOAT * _rms(before):
            raise Difference(
                f"layer {layer}: what it adds to the hidden states ({added:.3g}) is {distance:.3g} off, and rounding explains "
                f"{limit:.1%} of it"
            )
        before, found = wanted, ours.send(wanted)
        advance()
    a, b = _log_softmax(found), _log_softmax(next(theirs))
    if not np.abs(a - b).max() <= limit * np.abs(b).max():
        at = np.unravel_index(int(np.argmax(np.abs(a - b))), a.shape)
        raise Difference(
            f"log-probabilities: that of token {at[1]} at position {at[0]} is {a[at]:.4f} by the file and {b[at]:.4f} by the torch "
            "model"
        )
    advance()


def _rms(x: Floats) -> float:
    return math.sqrt(np.square(x, dtype=np.float64).mean())


def _log_softmax(logits: Floats) -> Doubles:
    x = logits.astype(np.float64)
    out: Doubles = x - np.logaddexp.reduce(x, axis=1, keepdims=True)
    return out
