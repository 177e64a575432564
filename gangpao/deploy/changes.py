"""What tensors of a GGUF file have otherwise than those of a checkpoint: orders of rows and columns, and numbers in another form.

A change knows the way there and back, so that what was written can be compared with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao.deploy.header import form_of
from gangpao.formats.row_order import groups_apart, groups_in_turns, pairs_apart, pairs_side_by_side
from gangpao.model.config import ModelConfig

Floats = npt.NDArray[np.float32]
Way = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Change:
    """what: in words, for messages. there: from the checkpoint's values to the file's; back: the inverse."""

    what: str
    there: Way
    back: Way


_ONE_ADDED = Change("one added", lambda w: w + np.float32(1), lambda w: w - np.float32(1))


def changes(c: ModelConfig) -> Callable[[str], Change | None]:
    """A function: Hugging Face's name of a tensor -> its change, None where the file has it as it is."""
    interleaved = form_of(c).interleaved
    heads = (
        {"self_attn.q_proj": c.num_attention_heads, "self_attn.k_proj": c.num_key_value_heads} if interleaved else {}
    )
    delta = _delta(c)

    def change_of(name: str) -> Change | None:
        inner = name.split(".", 3)[3] if name.startswith("model.layers.") else name
        module = inner.rpartition(".")[0]
        if module in heads:
            count = heads[module]
            return Change("pairs side by side", lambda w: pairs_side_by_side(w, count), lambda w: pairs_apart(w, count))
        if inner in delta:
            return delta[inner]
        return _ONE_ADDED if c.centred_norms and "norm" in module and not module.startswith("linear_attn.") else None

    return change_of


def _delta(c: ModelConfig) -> dict[str, Change]:
    """Of Gated DeltaNet: value heads in turns, the decay as a number below 0, filters without their middle dimension."""
    if c.delta is None:
        return {}
    groups, keys = c.delta.linear_num_key_heads, 2 * c.delta.key_size
    each = c.delta.linear_num_value_heads // groups

    def values_behind(order: Callable[[Floats, int, int], Floats], begin: int) -> Way:
        return lambda w: np.concatenate([w[:begin], order(w[begin:], groups, each)])

    there, back = values_behind(groups_in_turns, 0), values_behind(groups_apart, 0)
    rows = Change("value heads in turns", there, back)
    behind = values_behind(groups_in_turns, keys), values_behind(groups_apart, keys)
    return {
        "linear_attn.in_proj_qkv.weight": Change("value heads in turns", *behind),
        "linear_attn.conv1d.weight": Change(
            "value heads in turns", lambda w: behind[0](w.reshape(len(w), -1)), lambda w: behind[1](w)[:, None]
        ),
        "linear_attn.in_proj_z.weight": rows, "linear_attn.in_proj_a.weight": rows, "linear_attn.in_proj_b.weight": rows,
        "linear_attn.dt_bias": rows,
        "linear_attn.A_log": Change("a decay", lambda w: there(-np.exp(w)), lambda w: back(np.log(-w))),
        "linear_attn.out_proj.weight": Change("value heads in turns", lambda w: there(w.T).T, lambda w: back(w.T).T),
    }  # fmt: skip
