"""Whether an adapter belongs to a model: its modules and their shapes, and its file read for that base."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gangpao.engine.config import ModelConfig
from gangpao.engine.weights import rotate_half_order
from gangpao.formats.adapters import Adapter, Form, read_adapter
from gangpao.formats.adapters.adapter import EMBEDDING, HEAD
from gangpao.formats.adapters.gguf import gguf_name
from gangpao.formats.blocks import dequantize
from gangpao.formats.gguf import GGUF

Floats = npt.NDArray[np.float32]
# Hugging Face's names of the matrices of a layer, as the engine has them side by side.
MODULES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
MERGE = "write a model of it with `gangpao merge`"


def bytes_of(adapter: Adapter, *, float32: bool = False) -> int:
    """Bytes that it will take beside a model, nearly."""
    return sum(part.a.size + part.b.size for part in adapter.parts.values()) * (4 if float32 else 1)


def check(adapter: Adapter, config: ModelConfig) -> None:
    """Raises ValueError for an adapter of another base, naming a tensor, and for what is not computed here."""
    if config.num_experts and (inner := next((name for name in adapter.parts if ".mlp." in name), None)):
        raise ValueError(f"it changes {inner:.100}, and experts are computed without adapters; {MERGE}")
    if config.recurrent_layers:
        raise ValueError(
            f"the base has layers of Gated DeltaNet, with which adapters are not computed at work; {MERGE}"
        )
    if config.latent:
        raise ValueError(f"the base has latent attention, with which adapters are not computed at work; {MERGE}")
    shapes = {f"{name}.weight": shape for name, shape in module_shapes(config).items()}
    adapter.check_base(shapes, "this model")
    if adapter.whole:
        raise ValueError(f"it brings {next(iter(adapter.whole)):.100} as a whole, which is not added at work; {MERGE}")
    if EMBEDDING in adapter.parts:
        raise ValueError(f"it changes the embedding ({EMBEDDING}), which is not computed at work; {MERGE}")
    for name, part in adapter.parts.items():
        if part.magnitude is not None:
            raise ValueError(
                f"{name:.100} has a magnitude (DoRA), which needs the lengths of all rows at work; {MERGE}"
            )
    if not adapter.parts:
        raise ValueError("it changes nothing: there is no part in it")


def module_shapes(c: ModelConfig) -> dict[str, tuple[int, int]]:
    """[out, in] of every module that an adapter may belong to."""
    q, kv, hidden, inner = (
        c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim, c.hidden_size, c.intermediate_size
    )  # fmt: skip
    shapes = [(q, hidden), (kv, hidden), (kv, hidden), (hidden, q), (inner, hidden), (inner, hidden), (hidden, inner)]
    out = {
        f"model.layers.{i}.{module}": shape
        for i in range(c.num_hidden_layers)
        for module, shape in zip((m for names in MODULES.values() for m in names), shapes, strict=True)
    }
    return out | {HEAD: (c.vocab_size, hidden), EMBEDDING: (c.vocab_size, hidden)}


def read(path: str | os.PathLike[str], gguf: GGUF, config: ModelConfig) -> Adapter:
    """The adapter of a PEFT folder or a GGUF file, for that base. Raises ValueError naming the file and what is wrong."""
    return read_adapter(path, form=Form.of(gguf), weight_of=weight_reader(gguf, config))


def weight_reader(gguf: GGUF, config: ModelConfig) -> Callable[[str], Floats]:
    """A function: Hugging Face's name of a module -> its weight in the file, float32 [out, in], rows in Hugging Face's order."""

    def weight_of(module: str) -> Floats:
        tied = module == HEAD and "output.weight" not in gguf.tensors
        tensor = gguf_name(f"{EMBEDDING if tied else module}.weight")
        if tensor is None:
            raise ValueError(f"{module:.100} has no place in a GGUF file; {MERGE}")
        weight = dequantize(gguf.raw(tensor), gguf.tensors[tensor].type)
        form = config.row.gguf
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.split(".")[-1])
        if heads and form and form.interleaved:
            weight = weight[rotate_half_order(heads, config.head_dim, config.rope_dim)]
        return weight

    return weight_of
