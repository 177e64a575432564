"""An encoder of pictures with its merger as an mmproj file: what our engine and llama.cpp read beside the language model's file.

Names and keys are llama.cpp's, with what it wants in the file and does not compute with (positions of a resampler's keys). What its
keys cannot say (filters of position tables, slicing, marks, which GELU) is our row of formats/vision.py as text, which it ignores.
Matrices get the type that was asked for, and F16 where their rows are not whole blocks; norms, biases and tables stay F32, patches'
convolution F16. The MLPs of layers get channels of zeros where that makes their rows whole blocks. The file is read back and
compared before it gets its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gangpao import atomic
from gangpao.deploy.plan import Planned
from gangpao.deploy.proof_numbers import Difference, compare_weights
from gangpao.engine.vision.mmproj import ROW_KEY, read_vision
from gangpao.engine.vision.row_text import to_text
from gangpao.engine.vision.sight import Sight
from gangpao.formats import gguf_write
from gangpao.formats.blocks import BY_NAME, WRITTEN, fits
from gangpao.formats.gguf import GGUF
from gangpao.formats.vision import VisionModel
from gangpao.formats.vision.positions import sines_2d
from gangpao.model.vision.load import load_vision
from gangpao.model.vision.tower import VisionTower

OnNote = Callable[[str], None]

# Our names (model/vision) -> llama.cpp's; {i}: the number of a layer.
_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
}
_LAYER = _ATTENTION | {"layer_norm1": "ln1", "layer_norm2": "ln2", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}
_WINDOWS = _ATTENTION | {"layer_norm1": "ln1", "pre_norm": "ds_ln", "linear_1": "ds_ffn_up", "linear_2": "ds_ffn_down"}
NAMES = {
    "encoder.embeddings.patch_embedding": "v.patch_embd",
    "encoder.embeddings.position_embedding": "v.position_embd",
    "encoder.first_norm": "v.pre_ln",
    "encoder.final_norm": "v.post_ln",
    **{f"encoder.layers.{{i}}.{ours}": f"v.blk.{{i}}.{theirs}" for ours, theirs in _LAYER.items()},
    **{f"encoder.window_merger.{ours}": f"v.vit_merger.{theirs}" for ours, theirs in _WINDOWS.items()},
    "merger.kv_proj": "resampler.kv",
    "merger.proj": "resampler.proj",
    **{f"merger.attn.{part}_proj": f"resampler.attn.{part}" for part in ("q", "k", "v", "out")},
    **{f"merger.ln_{part}": f"resampler.ln_{part}" for part in ("q", "kv", "post")},
    "merger.linear_1": "mm.0",
    "merger.linear_2": "mm.2",
}
_WHOLE = {
    "encoder.embeddings.prefix_embedding": "v.class_embd",
    "merger.query": "resampler.query",
    "merger.pos_embed": "resampler.pos_embed",
}
_ROUND = {"pre_norm": "input_norm", "linear_1": "up", "linear_2": "down"}
_FLOATS = ("position_embd", "class_embd", "resampler.query", "resampler.pos_embed")
_TRAINED_GRID = (70, 70)  # of the table that llama.cpp wants in a resampler's file


def write_mmproj(
    source: str | os.PathLike[str] | VisionTower,
    target: str | os.PathLike[str],
    *,
    dtype: str = "F16",
    on_note: OnNote = lambda _: None,
) -> Path:
    """The tower of a folder of a model that sees, or a tower, as one file. Raises ValueError as `write`, and for other folders."""
    tower = source if isinstance(source, VisionTower) else load_vision(source, language=False)[1]
    return write(tower.vision, tower.state_dict(), target, dtype, on_note=on_note)


def write(
    vision: VisionModel,
    tensors: Mapping[str, Tensor],
    target: str | os.PathLike[str],
    kind: str = "F16",
    *,
    name: str = "",
    on_note: OnNote = lambda _: None,
) -> Path:
    """The tensors of a tower (its state_dict) as one file, complete or not at all.

    Raises ValueError when the file exists, the type is unknown, or tensors are missing or left over, and Difference, a ValueError,
    when what was written is not what was given.
    """
    out = Path(target)
    if kind not in WRITTEN:
        raise ValueError(f"type {kind!r:.40} is not one we write; choose one of {', '.join(WRITTEN)}")
    if out.exists():
        raise ValueError(f"{out} exists already; choose another name or delete it first")
    if vision.encoder.merge_skipped:  # what is not computed with is not written
        vision = replace(vision, encoder=replace(vision.encoder, merge_after=None, merge_skipped=False))
        tensors = {k: v for k, v in tensors.items() if not k.startswith("encoder.window_merger.")}
    vision, tensors = _whole_blocks(vision, tensors, kind)
    planned = plan(vision, tensors, kind)
    fields = metadata(vision, _text_size(vision, tensors), kind, name or out.stem)
    for note in differences(vision):
        on_note(note)
    try:
        with atomic.new_file(out) as staging:
            with staging.open("wb") as file:
                file.write(gguf_write.header(planned, gguf_write.metadata(fields), len(fields)))
                for tensor in planned:
                    file.write(bytes(gguf_write.padding(file.tell())))
                    for piece in tensor.data():
                        file.write(piece.data)
                file.write(bytes(gguf_write.padding(file.tell())))
            _prove(staging, vision, planned)
    except Difference as error:
        raise Difference(
            f"{out} was not written, because it would not be the same as the checkpoint. {error}"
        ) from error
    return out


def _prove(path: Path, vision: VisionModel, planned: list[Planned]) -> None:
    """Read back: the row, every weight no farther off than its type rounds, and that nothing is left over or missing."""
    with GGUF.open(path) as gguf:
        read = read_vision(gguf)
        if read != vision:
            raise Difference(f"the file says {read}, and the checkpoint {vision}")
        for tensor in planned:
            compare_weights(gguf, tensor)
    Sight.open(path)


def metadata(vision: VisionModel, text_size: int, kind: str, name: str) -> dict[str, object]:
    """Keys of the header. clip.projector_type is one that llama.cpp refuses by name where it has none for the model."""
    e, m = vision.encoder, vision.merger
    projector, version = vision.projector or (f"gangpao-{m.kind}", None)
    out: dict[str, object] = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": name,
        "general.file_type": WRITTEN[kind].file_type,
        "general.alignment": gguf_write.ALIGNMENT,
        "clip.has_vision_encoder": True,
        "clip.has_text_encoder": False,
        "clip.projector_type": projector,
        "clip.use_gelu": e.activation != "quick_gelu",
        "clip.vision.projection_dim": text_size,
        "clip.vision.image_size": vision.slicing.resolution,
        "clip.vision.patch_size": e.patch_size,
        "clip.vision.embedding_length": e.hidden_size,
        "clip.vision.feed_forward_length": e.intermediate_size,
        "clip.vision.block_count": e.layers,
        "clip.vision.attention.head_count": e.heads,
        "clip.vision.attention.layer_norm_epsilon": float(e.eps),
        "clip.vision.image_mean": list(vision.pixels.mean),
        "clip.vision.image_std": list(vision.pixels.std),
        ROW_KEY: to_text(vision),
    }
    if m.kind == "resampler":
        out |= {"clip.has_minicpmv_projector": True, "clip.minicpmv_query_num": m.queries}
        if version is not None:
            out["clip.minicpmv_version"] = np.int32(version)
    elif m.kind == "merge":
        out["clip.vision.projector.scale_factor"] = 2 if e.merge_after is None else 4
        if e.merge_after is not None:
            out["clip.vision.wa_layer_indexes"] = [e.merge_after - 1]
    else:
        out |= {"clip.has_llava_projector": True, "clip.vision.feature_layer": [e.layers]}
    return out


def differences(vision: VisionModel) -> list[str]:
    """In which ways llama.cpp computes something else with the file than the checkpoint is."""
    e, out = vision.encoder, []
    if vision.projector is None or vision.projector == ("resampler", 1):
        return [f"llama.cpp has no encoder for {vision.name} and refuses the file by its projector; gangpao runs it"]
    if e.activation == "gelu" or (vision.merger.kind == "mlp" and vision.merger.activation == "gelu"):
        out.append("llama.cpp computes the tanh form of GELU where this model has the exact one")
    if e.table != _TRAINED_GRID and vision.merger.kind != "mlp":
        out.append(
            f"llama.cpp takes the table of positions for one of 70 x 70, and this one is {e.table[0]} x {e.table[1]}"
        )
    return out


def _whole_blocks(
    vision: VisionModel, tensors: Mapping[str, Tensor], kind: str
) -> tuple[VisionModel, Mapping[str, Tensor]]:
    """The MLPs of the layers with as many channels more as their rows lack to be whole blocks: 4304 become 4320 in Q8_0.

    A channel of zeros changes nothing, because GELU(0) = 0. Without it every second matrix of an MLP would stay F16.
    """
    inner = vision.encoder.intermediate_size
    more = -inner % BY_NAME[kind].block_size
    if not more or more > inner // 8:
        return vision, tensors
    shapes = {"mlp.fc1.weight": (0, 0, 0, more), "mlp.fc1.bias": (0, more), "mlp.fc2.weight": (0, more)}
    out = dict(tensors)
    for name in tensors:
        for ending, pad in shapes.items():
            if name.startswith("encoder.layers.") and name.endswith(ending):
                out[name] = torch.nn.functional.pad(tensors[name], pad)
    return replace(vision, encoder=replace(vision.encoder, intermediate_size=inner + more)), out


def plan(vision: VisionModel, tensors: Mapping[str, Tensor], kind: str) -> list[Planned]:
    """The tensors of the file. Raises ValueError for one that has no place."""
    e = vision.encoder
    out = [_planned(_name(vision, name), name, tensor, e.patch_size, kind) for name, tensor in tensors.items()]
    if vision.merger.kind == "resampler":
        table = torch.from_numpy(sines_2d(tensors["merger.query"].shape[-1], *_TRAINED_GRID).copy())
        out.append(Planned("resampler.pos_embed_k", (("positions of keys", table),), "F32"))
    if e.prefix_tokens and (missing := "encoder.embeddings.prefix_embedding") not in tensors:
        raise ValueError(f"{missing} is missing: the model has {e.prefix_tokens} tokens in front of the patches")
    return out


def _planned(name: str, source: str, tensor: Tensor, patch: int, kind: str) -> Planned:
    if name == "v.patch_embd.weight":
        tensor = tensor.reshape(-1, 3, patch, patch)
        return Planned(name, ((source, tensor),), "F32" if kind == "F32" else "F16")
    if name == "v.class_embd":
        tensor = tensor.reshape(-1)
    if tensor.dim() == 1 or any(part in name for part in _FLOATS):
        return Planned(name, ((source, tensor),), "F32")
    return Planned(name, ((source, tensor),), kind if fits(tensor.shape[-1], kind) else "F16")


def _name(vision: VisionModel, name: str) -> str:
    """llama.cpp's name of a tensor. Raises ValueError where there is none."""
    if name in _WHOLE:
        return _WHOLE[name]
    stem, _, leaf = name.rpartition(".")
    number = re.search(r"\.(\d+)\.", name)
    if match := re.fullmatch(r"merger\.mlp\.(\d+)\.(\w+)", stem):
        last = int(match[1]) == vision.merger.times - 1
        found = "mm." + ("" if last else f"{match[1]}.") + _ROUND[match[2]]
    else:
        found = NAMES.get(stem.replace(f".{number[1]}.", ".{i}.", 1) if number else stem, "")
        found = found.replace("{i}", number[1]) if number else found
    if not found:
        raise ValueError(f"{name} has no name in an mmproj file")
    if vision.encoder.intermediate_size == vision.encoder.hidden_size and found.endswith(("ffn_up", "ffn_down")):
        # Where both matrices are square, llama.cpp takes them for those of old converters, which had the names the other way.
        found = found[:-2] + "down" if found.endswith("up") else found[:-4] + "up"
    return f"{found}.{leaf}"


def _text_size(vision: VisionModel, tensors: Mapping[str, Tensor]) -> int:
    last = {
        "resampler": "merger.proj",
        "merge": f"merger.mlp.{vision.merger.times - 1}.linear_2",
        "mlp": "merger.linear_2",
    }
    name = f"{last[vision.merger.kind]}.weight"
    if name not in tensors:
        raise ValueError(f"{name} is missing: these are not the tensors of {vision.name}")
    return int(tensors[name].shape[0])
