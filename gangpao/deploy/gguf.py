"""Write a model as GGUF, in pure Python: what our engine, llama.cpp, Ollama, LM Studio and the phone apps read.

Tensors are converted and written one after the other, so the memory needed is one tensor's. Matrices get the type that was
asked for; norms and biases stay F32, and a matrix whose rows are not whole blocks becomes F16. The architectures llama and
minicpm keep the rotated pairs of q and k side by side, so their rows are reordered from Hugging Face's halves.

What it gives up: latent attention (MiniCPM3) and split files.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from gangpao.deploy.quants import FILE_TYPES, fits, quantize
from gangpao.model import weights as checkpoint
from gangpao.model.config import ModelConfig
from gangpao.model.layers import inverse_frequencies
from gangpao.text.export import gguf_metadata

Progress = Callable[[int, int], None]
Value = bool | int | float | str | list[int] | list[float] | list[str]
ALIGNMENT = 32
_TYPE_IDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}
_PAIRED = ("llama", "minicpm")  # architectures whose files keep pairs (2i, 2i+1)

_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
_EXPERTS = {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"}


def export(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str],
    kind: str = "Q8_0",
    *,
    progress: Progress | None = None,
) -> Path:
    """A Hugging Face folder with its tokenizer to one .gguf file. progress(done, total) in tensors.

    Raises ValueError when the file exists, the type is unknown or the model has no GGUF form.
    """
    path = Path(folder)
    config = ModelConfig.from_file(path / "config.json")
    tensors = dict(checkpoint.tensors(path))
    return write(target, config, tensors, gguf_metadata(path), kind, name=path.name, progress=progress)


def write(
    target: str | os.PathLike[str],
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    tokenizer: Mapping[str, object],
    kind: str = "Q8_0",
    *,
    name: str = "",
    progress: Progress | None = None,
) -> Path:
    """Tensors under Hugging Face names and the tokenizer's metadata to a .gguf file, complete or not at all."""
    out = Path(target)
    if kind not in FILE_TYPES:
        raise ValueError(f"type {kind!r:.40} is not one we write; choose one of {', '.join(FILE_TYPES)}")
    if out.exists():
        raise ValueError(f"{out} exists already; choose another name or delete it first")
    fields = metadata(config, kind, name or out.stem) | _padded(tokenizer, config.vocab_size)
    plan = [_Tensor(gguf, sources, kind) for gguf, sources in _plan(config, tensors)]
    descriptor, staging = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_header(fields, plan))
            for i, tensor in enumerate(plan):
                file.write(bytes(-file.tell() % ALIGNMENT))
                file.write(tensor.data(config).tobytes())
                if progress:
                    progress(i + 1, len(plan))
            file.write(bytes(-file.tell() % ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, out)
    except BaseException:
        os.unlink(staging)
        raise
    return out


def metadata(config: ModelConfig, kind: str, name: str) -> dict[str, object]:
    """Keys of the header that describe the model."""
    c, a = config, config.model_type
    if c.mla:
        raise ValueError(
            "latent attention (MiniCPM3) has no GGUF form that our engine reads yet; export to Hugging Face instead"
        )
    out: dict[str, object] = {
        "general.architecture": a,
        "general.name": name,
        "general.file_type": FILE_TYPES[kind],
        "general.alignment": ALIGNMENT,
        f"{a}.block_count": c.num_hidden_layers,
        f"{a}.context_length": c.max_position_embeddings,
        f"{a}.embedding_length": c.hidden_size,
        f"{a}.feed_forward_length": c.intermediate_size,
        f"{a}.attention.head_count": c.num_attention_heads,
        f"{a}.attention.head_count_kv": c.num_key_value_heads,
        f"{a}.attention.key_length": c.head_dim,
        f"{a}.attention.value_length": c.head_dim,
        f"{a}.attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        f"{a}.rope.dimension_count": c.head_dim,
        f"{a}.rope.freq_base": c.rope_theta,
        f"{a}.vocab_size": c.vocab_size,
    }
    if a == "minicpm":
        out |= {
            f"{a}.embedding_scale": c.scale_emb,
            f"{a}.residual_scale": c.residual_scale,
            f"{a}.logit_scale": 1.0 / c.logit_scale,  # the file's logit_scale is a divisor
        }
    if c.moe:
        out |= {f"{a}.expert_count": c.moe.num_experts, f"{a}.expert_used_count": c.moe.num_experts_per_tok}
    return out | _rope_keys(c)


def _padded(tokenizer: Mapping[str, object], vocab_size: int) -> dict[str, object]:
    """Tokenizer metadata with unused pieces up to the rows of the embedding: llama.cpp wants as many as rows."""
    out = dict(tokenizer)
    pieces = out.get("tokenizer.ggml.tokens")
    assert isinstance(pieces, list)
    missing = vocab_size - len(pieces)
    if missing < 0:
        raise ValueError(
            f"the tokenizer has {len(pieces)} pieces and the model {vocab_size} rows: they do not belong together"
        )
    fill: dict[str, list[object]] = {
        "tokens": [f"[PAD{i}]" for i in range(len(pieces), vocab_size)], "token_type": [5] * missing, "scores": [0.0] * missing
    }  # fmt: skip
    for key, values in fill.items():
        found = out.get(f"tokenizer.ggml.{key}")
        if isinstance(found, list):
            out[f"tokenizer.ggml.{key}"] = [*found, *values]
    return out


def _rope_keys(c: ModelConfig) -> dict[str, object]:
    s, a = c.rope_scaling, c.model_type
    # llama3's rule goes over as divisors, a tensor; dynamic is no scaling up to the context_length of the header
    if s is None or s.rope_type in ("llama3", "dynamic"):
        return {}
    original = s.original_max_position_embeddings or c.max_position_embeddings
    out: dict[str, object] = {
        f"{a}.rope.scaling.type": s.rope_type,
        f"{a}.rope.scaling.original_context_length": original,
    }
    if s.rope_type != "longrope":
        out[f"{a}.rope.scaling.factor"] = s.factor
    if s.attention_factor is not None:
        out[f"{a}.rope.scaling.attn_factor"] = s.attention_factor
    if s.rope_type == "yarn":
        out |= {f"{a}.rope.scaling.yarn_beta_fast": s.beta_fast, f"{a}.rope.scaling.yarn_beta_slow": s.beta_slow}
    return out


class _Tensor:
    """One tensor of the file: where it comes from, its type and shape. `data` converts it when its turn comes."""

    def __init__(self, name: str, sources: list[tuple[str, torch.Tensor]], kind: str) -> None:
        self.name, self.sources = name, sources
        first = sources[0][1]
        stacked = (len(sources),) if "_exps" in name else ()
        self.shape = (*stacked, *first.shape)
        plain = len(self.shape) == 1 or "ffn_gate_inp" in name
        self.kind = "F32" if plain else kind if fits(self.shape[-1], kind) else "F16"

    @property
    def nbytes(self) -> int:
        row = quantize(np.zeros((1, self.shape[-1]), np.float32), self.kind).nbytes
        return row * int(np.prod(self.shape[:-1], dtype=np.int64))

    def data(self, config: ModelConfig) -> npt.NDArray[np.uint8]:
        parts = []
        for name, tensor in self.sources:
            values = tensor.detach().to("cpu", torch.float32).numpy()
            if config.model_type in _PAIRED and ".q_proj." in name:
                values = _pairs_side_by_side(values, config.num_attention_heads)
            elif config.model_type in _PAIRED and ".k_proj." in name:
                values = _pairs_side_by_side(values, config.num_key_value_heads)
            parts.append(quantize(values.reshape(-1, self.shape[-1]), self.kind))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _pairs_side_by_side(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of every head from halves (i, i + H/2) to pairs (2i, 2i+1)."""
    half = len(rows) // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _plan(c: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, list[tuple[str, torch.Tensor]]]]:
    """GGUF name and sources of every tensor, in the order of the file. Raises ValueError for one without a place."""
    experts: dict[str, list[tuple[str, torch.Tensor]]] = {}
    for foreign, tensor in tensors.items():
        name = checkpoint.hf_name(foreign)
        if c.tie_word_embeddings and name == "lm_head.weight":
            continue
        if name in _TENSORS:
            yield _TENSORS[name], [(name, tensor)]
            continue
        head, _, suffix = name.rpartition(".")
        parts = head.split(".", 3)
        if parts[:2] != ["model", "layers"] or len(parts) < 4:
            raise ValueError(f"tensor {name!r:.80} has no place in a GGUF file")
        layer, inner = parts[2], parts[3]
        if inner in _LAYER_TENSORS:
            yield f"blk.{layer}.{_LAYER_TENSORS[inner]}.{suffix}", [(name, tensor)]
        elif inner.startswith("mlp.experts.") and inner.split(".")[-1] in _EXPERTS:
            gguf = f"blk.{layer}.{_EXPERTS[inner.split('.')[-1]]}.{suffix}"
            experts.setdefault(gguf, []).append((name, tensor))
        else:
            raise ValueError(f"tensor {name!r:.80} has no place in a GGUF file")
    for gguf, sources in experts.items():
        yield gguf, sorted(sources, key=lambda pair: int(pair[0].split(".experts.")[1].split(".")[0]))
    yield from _rope_tensors(c)


def _rope_tensors(c: ModelConfig) -> Iterator[tuple[str, list[tuple[str, torch.Tensor]]]]:
    s = c.rope_scaling
    if s is None or s.rope_type not in ("longrope", "llama3"):
        return
    if s.rope_type == "longrope":
        for name, factors in (("long", s.long_factor), ("short", s.short_factor)):
            yield f"rope_factors_{name}.weight", [(name, torch.tensor(factors))]
        return
    plain, _ = inverse_frequencies(c.model_copy(update={"rope_scaling": None}), c.max_position_embeddings)
    scaled, _ = inverse_frequencies(c, c.max_position_embeddings)
    yield "rope_freqs.weight", [("freqs", (plain / scaled).float())]


def _header(fields: Mapping[str, object], plan: list[_Tensor]) -> bytes:
    out = [b"GGUF", struct.pack("<IQQ", 3, len(plan), len(fields))]
    out += [_string(key) + _typed(key, value) for key, value in fields.items()]
    offset = 0
    for t in plan:
        out.append(_string(t.name) + struct.pack("<I", len(t.shape)) + struct.pack(f"<{len(t.shape)}Q", *t.shape[::-1]))
        out.append(struct.pack("<IQ", _TYPE_IDS[t.kind], offset))
        offset += t.nbytes + -t.nbytes % ALIGNMENT
    header = b"".join(out)
    return header + bytes(-len(header) % ALIGNMENT)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(key: str, value: object) -> bytes:
    """A value with its type: bool, u32, f32, string, or an array of i32, f32 or strings."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    assert isinstance(value, list), f"{key}: {type(value).__name__} has no place in a header"
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    kind, code = (6, "<f4") if value and isinstance(value[0], float) else (5, "<i4")
    return struct.pack("<IIQ", 9, kind, len(value)) + np.array(value, dtype=code).tobytes()
