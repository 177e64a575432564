"""The header of an mmproj file of llama.cpp -> the row of formats/vision.py that it is, with the file's numbers.

A file that we wrote holds its whole row as text (`gangpao.vision`); of others, clip.projector_type and clip.minicpmv_version say
which row it is. Either way the numbers are those of clip.vision.*, bounded, and those of the tensors.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from gangpao.engine.vision.row_text import from_text
from gangpao.formats.gguf import GGUF, ModelFileError
from gangpao.formats.vision import VISION, Activation, Encoder, Merger, Pixels, VisionModel, by_projector, joined

ROW_KEY = "gangpao.vision"
# MiniCPM-o has the encoders of MiniCPM-V under numbers of its own.
_SAME_AS = {4: 3, 100045: 6}
_LIMITS = {
    "embedding_length": 8192, "feed_forward_length": 65536, "block_count": 256, "attention.head_count": 256, "patch_size": 64,
    "image_size": 4096,
}  # fmt: skip


def read_vision(gguf: GGUF) -> VisionModel:
    """The row with the file's numbers. Raises ModelFileError for what is no mmproj file, and for kinds that we have no row of."""
    if gguf.get_str("general.architecture") != "clip":
        raise ModelFileError(
            f"{gguf.path}: this is a model of architecture {gguf.get_str('general.architecture')}, not an mmproj file (an encoder "
            "of pictures, whose name usually begins with mmproj)"
        )
    row = _row(gguf)
    size = {key: _number(gguf, key, most) for key, most in _LIMITS.items()}
    encoder = replace(
        row.encoder,
        patch_size=size["patch_size"],
        layers=_layers(gguf, row, size["block_count"]),
        hidden_size=size["embedding_length"],
        heads=size["attention.head_count"],
        intermediate_size=size["feed_forward_length"],
        eps=_eps(gguf, row.encoder.eps),
        prefix_tokens=int("v.class_embd" in gguf.tensors),
        activation=_activation(gguf, row),
        first_norm="v.pre_ln.weight" in gguf.tensors,
        final_norm="v.post_ln.weight" in gguf.tensors,
        patch_bias="v.patch_embd.bias" in gguf.tensors,
        key_bias=bool({"v.blk.0.attn_k.bias", "v.blk.0.attn_qkv.bias"} & set(gguf.tensors)),
    )
    encoder = replace(encoder, table=_table(gguf, encoder), merge_after=_merge_after(gguf, row, encoder.layers))
    if encoder.hidden_size % encoder.heads:
        raise ModelFileError(f"{gguf.path}: {encoder.heads} heads do not divide {encoder.hidden_size} channels")
    multiple = encoder.patch_size * joined(encoder, row.merger)
    slicing = replace(row.slicing, resolution=size["image_size"], multiple=multiple)
    return replace(row, encoder=encoder, merger=_merger(gguf, row), slicing=slicing, pixels=_pixels(gguf, row))


def _row(gguf: GGUF) -> VisionModel:
    if ROW_KEY in gguf.metadata:
        try:
            return from_text(gguf.get_str(ROW_KEY))
        except ValueError as error:
            raise ModelFileError(f"{gguf.path}: {ROW_KEY}: {error}; export the model again") from None
    if not gguf.get_bool("clip.has_vision_encoder", False):
        raise ModelFileError(
            f"{gguf.path}: this mmproj file has no encoder of pictures; another one (audio) is not supported"
        )
    kind = gguf.get_str("clip.projector_type", "") or gguf.get_str("clip.vision.projector_type", "")
    version = None
    if kind == "resampler":
        version = gguf.get_int("clip.minicpmv_version", 2) or 2
        version = _SAME_AS.get(version, version)
    row = by_projector(kind, version)
    if row is None:
        known = ", ".join(f"{_kind_text(*r.projector)} ({r.name})" for r in VISION.values() if r.projector)
        raise ModelFileError(
            f"{gguf.path}: the projector {_kind_text(kind, version)!r:.80} is not supported; there are {known}, and all that "
            "`gangpao export` writes"
        )
    return row


def _kind_text(kind: str, version: int | None) -> str:
    return kind if version is None else f"{kind} version {version}"


def _number(gguf: GGUF, key: str, most: int) -> int:
    value = gguf.get_int(f"clip.vision.{key}")
    if not 0 < value <= most:
        raise ModelFileError(f"{gguf.path}: clip.vision.{key} is {value}, it must be 1 to {most}; the file is damaged")
    return value


def _eps(gguf: GGUF, usual: float) -> float:
    key = "clip.vision.attention.layer_norm_epsilon"
    value = gguf.get_float(key)
    if not 0 < value < 1:
        raise ModelFileError(f"{gguf.path}: {key} is {value}, it must be a small positive number; the file is damaged")
    return usual if math.isclose(value, usual, rel_tol=1e-6) else value


def _layers(gguf: GGUF, row: VisionModel, blocks: int) -> int:
    """How many layers are computed: of LLaVA's the features are those of clip.vision.feature_layer, or of the last but one."""
    if row.merger.kind != "mlp":
        return blocks
    features = np.atleast_1d(np.asarray(gguf.metadata.get("clip.vision.feature_layer", blocks - 1)))
    if features.dtype.kind not in "iu" or len(features) != 1:
        raise ModelFileError(
            f"{gguf.path}: features of more than one layer (clip.vision.feature_layer) are not supported"
        )
    if not 0 < features[0] <= blocks:
        raise ModelFileError(f"{gguf.path}: clip.vision.feature_layer is {features[0]}, and there are {blocks} layers")
    return int(features[0])


def _activation(gguf: GGUF, row: VisionModel) -> Activation:
    """llama.cpp knows the tanh form and the quick one; a row of ours, and MiniCPM's, say it exactly."""
    if gguf.get_bool("clip.use_silu", False):
        raise ModelFileError(f"{gguf.path}: an encoder with SiLU (clip.use_silu) is not supported")
    if row.merger.kind != "mlp" or ROW_KEY in gguf.metadata:
        return row.encoder.activation
    return "gelu_tanh" if gguf.get_bool("clip.use_gelu", False) else "quick_gelu"


def _table(gguf: GGUF, e: Encoder) -> tuple[int, int]:
    """Rows and columns of the table of positions: the row's, where that fits, else a square."""
    shape = gguf.info("v.position_embd.weight").shape
    count = shape[-2] - e.prefix_tokens if len(shape) >= 2 else 0
    if math.prod(e.table) == count:
        return e.table
    side = math.isqrt(max(0, count))
    if side * side != count or side == 0:
        raise ModelFileError(f"{gguf.path}: v.position_embd.weight has shape {shape}, which is no square of positions")
    return side, side


def _merge_after(gguf: GGUF, row: VisionModel, layers: int) -> int | None:
    """How many layers run in front of the window merger. The file names the last of them, counted from 0."""
    if row.merger.kind != "merge" or "v.vit_merger.ln1.weight" not in gguf.tensors:
        return None
    at = np.atleast_1d(np.asarray(gguf.metadata.get("clip.vision.wa_layer_indexes", 6)))
    if at.dtype.kind not in "iu" or len(at) != 1 or not 0 <= at[0] < layers:
        raise ModelFileError(f"{gguf.path}: clip.vision.wa_layer_indexes must name one of the {layers} layers")
    return int(at[0]) + 1


def _merger(gguf: GGUF, row: VisionModel) -> Merger:
    if row.merger.kind == "mlp" and "mm.2.weight" in gguf.tensors:
        inner, text = (gguf.info(f"mm.{i}.weight").shape[0] for i in (0, 2))
        return replace(row.merger, hidden_size=0 if inner == text else inner)
    if row.merger.kind != "resampler":
        return row.merger
    queries = gguf.info("resampler.query").shape[0]
    if not 0 < queries <= 4096:
        raise ModelFileError(f"{gguf.path}: resampler.query has {queries} rows")
    return replace(row.merger, queries=queries, query_table="resampler.pos_embed" in gguf.tensors)


def _pixels(gguf: GGUF, row: VisionModel) -> Pixels:
    mean, std = (_colour(gguf, f"clip.vision.image_{name}") for name in ("mean", "std"))
    if min(std) <= 0:
        raise ModelFileError(f"{gguf.path}: clip.vision.image_std must be positive; the file is damaged")
    here = row.pixels
    if np.allclose((mean, std), (here.mean, here.std), rtol=1e-6, atol=0):
        return here  # as it was before it became float32
    return replace(here, mean=mean, std=std)


def _colour(gguf: GGUF, key: str) -> tuple[float, float, float]:
    value: Any = gguf.metadata.get(key)
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or len(value) < 3 or not np.isfinite(value).all():
        raise ModelFileError(f"{gguf.path}: {key} must be three numbers; convert the file again")
    return float(value[0]), float(value[1]), float(value[2])
