"""Draft heads with random weights for the tiny model (tests/engine/tiny.py), as llama.cpp's converter writes them."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gangpao.formats.blocks import quantize
from gangpao.formats.gguf import GGUF
from tests.engine.speculate.machines import where_drafts_pay
from tests.engine.tiny import HIDDEN
from tests.formats.gguf_maker import ARRAY, BOOL, Typed, tensor_bytes, write_gguf

LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, RANK, BLOCK = 2, 4, 2, 16, 96, 32, 6
MASK = 256


def head_metadata(target: Path, **changed: Any) -> dict[str, Any]:
    """Keys of a head for that model. changed: other values by the key behind `dflash.`, with __ for a dot; None: left out."""
    with GGUF.open(target) as gguf:
        tokens = {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in gguf.metadata.items()
            if key.startswith("tokenizer.") and not isinstance(value, bool)
        }
    keys: dict[str, Any] = {
        "block_count": LAYERS, "context_length": 512, "embedding_length": HIDDEN, "feed_forward_length": FFN,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM, "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 10_000.0,
        "block_size": BLOCK, "target_layers": [0, 1], "sample_from_anchor": True, "has_confidence_head": True,
    }  # fmt: skip
    keys |= {key.replace("__", "."): value for key, value in changed.items()}
    own = {f"dflash.{key}": value for key, value in keys.items() if value is not None}
    return {
        "general.architecture": "dflash",
        "general.name": "head",
        **tokens,
        "tokenizer.ggml.mask_token_id": MASK,
        **own,
    }


def head_tensors(
    vocab: int,
    seed: int = 3,
    *,
    reads: int = 2,
    markov: bool = True,
    confidence: bool = True,
    own: bool = False,
    hidden: int = HIDDEN,
) -> dict[str, np.ndarray]:
    """Its matrices and norms. own: its own embedding and output head."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, cols: int, gain: float = 1.0) -> np.ndarray:
        return rng.normal(0, gain / np.sqrt(cols), (rows, cols)).astype(np.float32)

    def norm(length: int) -> np.ndarray:
        return rng.normal(1, 0.1, length).astype(np.float32)

    out = {"fc.weight": matrix(hidden, reads * hidden), "enc.output_norm.weight": norm(hidden)}
    out["output_norm.weight"] = norm(hidden)
    for i in range(LAYERS):
        for name, rows, cols in (
            ("attn_q", HEADS * HEAD_DIM, hidden), ("attn_k", KV_HEADS * HEAD_DIM, hidden),
            ("attn_v", KV_HEADS * HEAD_DIM, hidden), ("attn_output", hidden, HEADS * HEAD_DIM),
            ("ffn_gate", FFN, hidden), ("ffn_up", FFN, hidden), ("ffn_down", hidden, FFN),
        ):  # fmt: skip
            out[f"blk.{i}.{name}.weight"] = matrix(rows, cols, 1.5)
        for name, length in (("attn", hidden), ("ffn", hidden), ("attn_q", HEAD_DIM), ("attn_k", HEAD_DIM)):
            out[f"blk.{i}.{name}_norm.weight"] = norm(length)
    if own:
        out |= {"token_embd.weight": matrix(vocab, hidden, 8.0), "output.weight": matrix(vocab, hidden, 3.0)}
    if markov:
        out |= {"markov_w1.weight": matrix(vocab, RANK, 4.0), "markov_w2.weight": matrix(vocab, RANK, 4.0)}
        if confidence:
            out |= {"conf_proj.weight": matrix(1, hidden + RANK, 1.0), "conf_proj.bias": np.array([0.3], np.float32)}
    return out


def write_head(
    path: Path, target: Path, tensors: dict[str, np.ndarray] | None = None, kind: str = "F32", **changed: Any
) -> Path:
    """A head for that model. tensors: those of head_tensors if not given; kind: of matrices; changed: see head_metadata."""
    metadata = head_metadata(target, **changed)
    for key, value in metadata.items():
        if isinstance(value, list) and isinstance(value[0], bool):
            metadata[key] = Typed(ARRAY, value, BOOL)
    found = tensors or head_tensors(len(metadata["tokenizer.ggml.tokens"]))
    return write_gguf(path, metadata, {name: _stored(x, kind) for name, x in found.items()})


def _stored(x: np.ndarray, kind: str) -> tuple[str, tuple[int, ...], bytes]:
    whole = x.ndim == 2 and len(x) > 1
    return (kind, x.shape, quantize(x, kind).tobytes()) if whole else ("F32", x.shape, tensor_bytes("F32", x))


drafting = partial(where_drafts_pay, cheap=0.001)
