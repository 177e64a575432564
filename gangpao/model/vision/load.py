"""Checkpoints of models that see: folders in and out, under the official names.

load_vision(folder)      -> VisionModel, VisionTower, the language model
load_encoder(folder)     a SigLIP, SigLIP 2 or CLIP alone -> its Encoder and tensors, for a tower of one's own
save_vision(folder, ..)  a folder that transformers loads, where it has the class (MiniCPM-V 4.6 and 4.7, LLaVA)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gangpao.formats.vision import Encoder, VisionModel
from gangpao.formats.vision.config import Sees, processor, read, read_encoder, write
from gangpao.model.config import from_hf, json_object, to_hf
from gangpao.model.foreign import scheme_in
from gangpao.model.transformer import Transformer
from gangpao.model.vision.names import ENCODERS, NAMES, to_official, to_ours
from gangpao.model.vision.tower import VisionTower
from gangpao.model.weights import SHARD_BYTES, fill, must_fit, save_tensors, state, stored

LANGUAGE = "language."
_PROCESSOR = "preprocessor_config.json"


def load_vision(
    folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: str = "cpu", language: bool = True
) -> tuple[VisionModel, VisionTower, Transformer | None]:
    """The row with the checkpoint's own numbers, the tower and the language model of a folder.

    dtype: of the weights in memory, else those of the file. language: False leaves the language model out (None), whose
    tensors are then not kept. Raises ValueError naming the file and the tensors when something is missing or does not fit.
    """
    path = Path(folder)
    sees = described(path)
    config = from_hf(sees.text) if language else None
    text_size = _width(path, sees)
    with torch.device("meta"):
        tower = VisionTower(sees.vision, text_size)
        model = Transformer(config) if config else None
    texts: dict[str, Tensor] = {}
    wanted = dict(tower.named_parameters())
    found = to_ours(NAMES[sees.vision.name], stored(path))
    left = _put(tower, _split(found, texts if language else None), wanted, dtype=dtype, device=device, where=str(path))
    must_fit(str(path), wanted, _unused(left, tower))
    if model is not None:
        fill(model, iter(texts.items()), dtype=dtype, device=device, where=str(path))
    return sees.vision, tower, model


def described(folder: Path) -> Sees:
    """What config.json, and preprocessor_config.json beside it, say. ValueError for a folder of a model that does not see."""
    data = json_object(folder / "config.json")
    if scheme_in(data) is not None:
        raise ValueError(f"{folder}: its weights are packed integers, which are read of models without pictures only")
    beside = folder / _PROCESSOR
    try:
        sees = read(data, json_object(beside) if beside.is_file() else None)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    if sees is None:
        raise ValueError(f"{folder}: model_type {data.get('model_type')!r:.60} is no model that sees")
    return sees


def load_encoder(folder: str | os.PathLike[str]) -> tuple[Encoder, dict[str, Tensor]]:
    """The ViT of a SigLIP, SigLIP 2 or CLIP folder, as `transformers` writes it: its numbers and its tensors under the names of
    VisionTower (encoder.*). Heads and text models beside it are left out. ValueError for another."""
    path = Path(folder)
    data = json_object(path / "config.json")
    shape = read_encoder(data)
    tensors = dict(to_ours(ENCODERS[str(data["model_type"])], stored(path)))
    if strange := [name for name in tensors if not name.startswith("encoder.")]:
        raise ValueError(f"{path}: {len(strange)} tensors are left over ({', '.join(strange[:4])})")
    if not shape.final_norm:  # CLIP's stands behind the class token alone
        tensors = {name: tensor for name, tensor in tensors.items() if ".final_norm." not in name}
    return shape, tensors


def save_vision(
    folder: str | os.PathLike[str],
    tower: VisionTower,
    language: Transformer,
    *,
    shard_bytes: int = SHARD_BYTES,
    extra: Mapping[str, bytes] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write both as one folder in the form of the row's family, preprocessor_config.json included. extra: further files (the
    tokenizer's), about: further keys of config.json (image_token_index ...). Raises ValueError if the folder exists."""
    weights = dict(tower.state_dict()) | {LANGUAGE + name: tensor for name, tensor in state(language).items()}
    files = {_PROCESSOR: json.dumps(processor(tower.vision), indent=1).encode() + b"\n"} | dict(extra or {})
    text = to_hf(language.config)
    return write_vision(folder, tower.vision, text, weights, shard_bytes=shard_bytes, extra=files, about=about)


def write_vision(
    folder: str | os.PathLike[str],
    vision: VisionModel,
    text: dict[str, Any],
    weights: Mapping[str, Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
    extra: Mapping[str, bytes] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write weights under our names (encoder.*, merger.*, language.*) as a folder in the form of the row's family. text: what
    config.json says of the language model. The rest as in `save_vision`."""
    ours = dict(weights)
    dtype = next(iter(ours.values())).dtype
    if vision.encoder.final_norm is False and vision.name == "llava":  # its class has one, which it does not use
        norm = nn.LayerNorm(vision.encoder.hidden_size, dtype=dtype)
        ours |= {f"encoder.final_norm.{leaf}": parameter.detach() for leaf, parameter in norm.named_parameters()}
    return save_tensors(
        folder,
        write(vision, text, ids=about) | {"torch_dtype": str(dtype).removeprefix("torch.")},
        to_official(NAMES[vision.name], ours, vision.encoder.patch_size),
        shard_bytes=shard_bytes,
        extra=extra,
    )


def _width(folder: Path, sees: Sees) -> int:
    width = sees.text.get("hidden_size")
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"{folder / 'config.json'}: hidden_size of the language model is {width!r:.40}")
    return width


def _split(found: Iterable[tuple[str, Tensor]], texts: dict[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
    """Those of the tower; the language model's go to `texts`."""
    for name, tensor in found:
        if not name.startswith(LANGUAGE):
            yield name, tensor
        elif texts is not None:
            texts[name.removeprefix(LANGUAGE)] = tensor


def _put(
    tower: VisionTower,
    source: Iterable[tuple[str, Tensor]],
    wanted: dict[str, nn.Parameter],
    *,
    dtype: torch.dtype | None,
    device: str,
    where: str,
) -> list[str]:
    """Put tensors into a tower on the meta device, taking what was found from `wanted`. Names of those without a place."""
    left = []
    for name, tensor in source:
        parameter = wanted.pop(name, None)
        if parameter is None:
            left.append(name)
            continue
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"{where}: {name} has shape {list(tensor.shape)}, config.json says {list(parameter.shape)}"
            )
        owner, _, leaf = name.rpartition(".")
        kept = nn.Parameter(
            tensor.to(device=device, dtype=dtype or tensor.dtype).contiguous(), requires_grad=parameter.requires_grad
        )
        setattr(tower.get_submodule(owner), leaf, kept)
    return left


def _unused(left: list[str], tower: VisionTower) -> list[str]:
    """Those that should have had a place: not layers behind the last computed one, nor a norm that the row leaves out."""
    e = tower.vision.encoder
    out = []
    for name in left:
        parts = name.split(".")
        behind = name.startswith("encoder.layers.") and int(parts[2]) >= e.layers
        norm = name.startswith("encoder.final_norm.") and not e.final_norm
        table = name == "merger.pos_embed"  # a computed table that older files carry
        if not (behind or norm or table):
            out.append(name)
    return out
