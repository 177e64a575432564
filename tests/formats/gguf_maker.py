"""Small GGUF files for tests: a writer, and complete models with random weights that llama.cpp loads too."""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from gangpao.formats.blocks import BY_NAME
from tests.kernels.random_blocks import SHAPES, random_rows

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


class Typed:
    """A metadata value with an explicit GGUF type, for arrays with an element type too."""

    def __init__(self, kind: int, value: Any, element: int = U32) -> None:
        self.kind, self.value, self.element = kind, value, element


def text(value: str | bytes) -> bytes:
    """Length and bytes of a string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def payload(kind: int, value: Any, element: int = U32) -> bytes:
    """The bytes of a value, without its type."""
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        parts = [payload(element, v) for v in value]
        return struct.pack("<IQ", element, len(value)) + b"".join(parts)
    return struct.pack("<" + CODES[kind], value)


def typed(value: Any) -> bytes:
    """Type and bytes of a Python value: int as u32, float as f32, lists by their first element (int: i32)."""
    if isinstance(value, Typed):
        return struct.pack("<I", value.kind) + payload(value.kind, value.value, value.element)
    if isinstance(value, list):
        first = value[0]
        element = STRING if isinstance(first, str) else F32 if isinstance(first, float) else I32
        return struct.pack("<I", ARRAY) + payload(ARRAY, value, element)
    kinds = {bool: BOOL, int: U32, float: F32, str: STRING}
    kind = kinds[type(value)]
    return struct.pack("<I", kind) + payload(kind, value)


def tensor_bytes(kind: str, data: np.ndarray) -> bytes:
    """Data of a tensor as it stands in the file: float types are converted, quantised ones are already bytes."""
    if kind == "F32":
        return data.astype("<f4").tobytes()
    if kind == "F16":
        return data.astype("<f2").tobytes()
    if kind == "BF16":
        return (np.ascontiguousarray(data, dtype="<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return data.astype(np.uint8).tobytes()


def gguf_bytes(
    metadata: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...], bytes]], *, version: int = 3
) -> bytes:
    """A whole file. tensors: name -> (type name, numpy shape, data bytes)."""
    alignment = metadata.get("general.alignment", 32)
    out = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    out += [text(key) + typed(value) for key, value in metadata.items()]
    offset, data = 0, []
    for name, (kind, shape, raw) in tensors.items():
        out.append(text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1]))
        out.append(struct.pack("<IQ", BY_NAME[kind].id, offset))
        padded = raw + bytes(-len(raw) % alignment)
        data.append(padded)
        offset += len(padded)
    header = b"".join(out)
    return header + bytes(-len(header) % alignment) + b"".join(data)


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> Path:
    """Writes gguf_bytes to a file."""
    path.write_bytes(gguf_bytes(metadata, tensors))
    return path


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE vocabularies (GPT-2's table)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(256, 512))
    return [chr(b) if b in visible else chr(next(spare)) for b in range(256)]


def vocabulary(size: int) -> dict[str, Any]:
    """Tokenizer metadata: 256 byte tokens, merges of letters until two short of `size`, then BOS and EOS."""
    tokens = byte_alphabet()
    letters = "etaoinshrdlu"
    merges = [(a, b) for a in letters for b in letters][: size - 258]
    tokens += [a + b for a, b in merges]
    tokens += [f"<unused{i}>" for i in range(size - 2 - len(tokens))] + ["<s>", "</s>"]
    kinds = [3 if t.startswith("<") and len(t) > 2 else 1 for t in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in merges],
        "tokenizer.ggml.bos_token_id": size - 2,
        "tokenizer.ggml.eos_token_id": size - 1,
    }


class _Weights:
    """Random tensors of one type, or of several in turn where `kind` is a list."""

    def __init__(self, seed: int, kind: str | list[str], largest: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.kinds = [kind] if isinstance(kind, str) else kind
        self.out: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
        self.turn = 0
        self.largest = largest

    def matrix(self, name: str, rows: int, cols: int, gain: float = 1.0) -> None:
        kind = self.kinds[self.turn % len(self.kinds)]
        self.turn += 1
        if kind in SHAPES and cols % SHAPES[kind][0] == 0:
            self.out[name] = (kind, (rows, cols), random_rows(self.rng, kind, rows, cols, self.largest).tobytes())
            return
        if kind in SHAPES:
            kind = "F16"
        values = self.rng.normal(0, gain / math.sqrt(cols), (rows, cols))
        self.out[name] = (kind, (rows, cols), tensor_bytes(kind, values))

    def stack(self, name: str, count: int, rows: int, cols: int, gain: float = 1.0) -> None:
        """Matrices of one shape as one tensor, as experts are."""
        self.matrix(name, count * rows, cols, gain)
        kind, _, raw = self.out[name]
        self.out[name] = (kind, (count, rows, cols), raw)

    def vector(self, name: str, length: int, around: float, spread: float) -> None:
        values = self.rng.normal(around, spread, length)
        self.out[name] = ("F32", (length,), tensor_bytes("F32", values))

    def mlp(self, i: int, hidden: int, inner: int, experts: tuple[int, int] | None) -> None:
        """The MLP of layer i, or its experts and their router."""
        shapes = (("gate", inner, hidden, 1.5), ("up", inner, hidden, 1.5), ("down", hidden, inner, 1.0))
        if experts:
            router = self.rng.normal(0, 1.5 / math.sqrt(hidden), (experts[0], hidden))
            self.out[f"blk.{i}.ffn_gate_inp.weight"] = ("F32", router.shape, tensor_bytes("F32", router))
        for name, rows, cols, gain in shapes:
            if experts:
                self.stack(f"blk.{i}.ffn_{name}_exps.weight", experts[0], rows, cols, gain)
            else:
                self.matrix(f"blk.{i}.ffn_{name}.weight", rows, cols, gain)


def random_model(
    path: Path,
    arch: str,
    *,
    seed: int = 0,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    intermediate_size: int = 96,
    vocab_size: int = 320,
    tied: bool = True,
    kind: str | list[str] = "F32",
    largest: float = 0.02,
    experts: tuple[int, int] | None = None,
    extra: dict[str, Any] | None = None,
    extra_tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """A complete model with random weights; `extra` adds metadata, extra_tensors are F32. largest: scale of a block. experts: all,
    and how many a token meets."""
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        "general.name": f"random {arch}",
        f"{arch}.block_count": num_layers,
        f"{arch}.context_length": 1024,
        f"{arch}.embedding_length": hidden_size,
        f"{arch}.feed_forward_length": intermediate_size,
        f"{arch}.attention.head_count": num_heads,
        f"{arch}.attention.head_count_kv": num_kv_heads,
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.dimension_count": head_dim,
        f"{arch}.rope.freq_base": 10000.0,
        f"{arch}.vocab_size": vocab_size,
    }
    counts = zip((f"{arch}.expert_count", f"{arch}.expert_used_count"), experts or (), strict=False)
    metadata |= dict(counts) | vocabulary(vocab_size) | (extra or {})
    w = _Weights(seed, kind, largest)
    w.matrix("token_embd.weight", vocab_size, hidden_size, gain=2.0)
    q, kv = num_heads * head_dim, num_kv_heads * head_dim
    for i in range(num_layers):
        w.vector(f"blk.{i}.attn_norm.weight", hidden_size, 1.0, 0.2)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            w.matrix(f"blk.{i}.attn_{name}.weight", rows, hidden_size, gain=1.5)
            if arch == "qwen2":
                w.vector(f"blk.{i}.attn_{name}.bias", rows, 0.0, 0.5)
        if arch == "qwen3":
            w.vector(f"blk.{i}.attn_q_norm.weight", head_dim, 1.5, 0.3)
            w.vector(f"blk.{i}.attn_k_norm.weight", head_dim, 1.5, 0.3)
        w.matrix(f"blk.{i}.attn_output.weight", hidden_size, q)
        w.vector(f"blk.{i}.ffn_norm.weight", hidden_size, 1.0, 0.2)
        w.mlp(i, hidden_size, intermediate_size, experts)
    w.vector("output_norm.weight", hidden_size, 1.0, 0.2)
    if not tied:
        w.matrix("output.weight", vocab_size, hidden_size, gain=3.0)
    for name, values in (extra_tensors or {}).items():
        w.out[name] = ("F32", values.shape, tensor_bytes("F32", values))
    return write_gguf(path, metadata, w.out)
