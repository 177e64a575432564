"""Checkpoints: Hugging Face folders in and out, under the names of the released models.

A folder is config.json plus model.safetensors, or shards with model.safetensors.index.json, or torch .bin files of the
same forms (read by torch_file, which executes nothing). Names are Hugging Face's already, so loading is mostly checking: what
is missing, what is left over, what has another shape is said by name. The names of OpenBMB's own training code (BMTrain,
CPM) are a table away.

Writing is atomic: a folder appears complete, under its name, or not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gangpao.atomic import new_folder
from gangpao.model import torch_file
from gangpao.model.config import ModelConfig, to_hf
from gangpao.model.foreign import NESTED_PREFIX, scheme_in
from gangpao.model.integer_weights import dequantized
from gangpao.model.transformer import Transformer

SHARD_BYTES = 4_000_000_000
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")
# Buffers that old checkpoints carry and that are computed here; draft heads (Qwen3.5), which no forward pass here uses; and what
# OmniLMM keeps inside its language model to see with (model/vision/ reads it).
_DERIVED = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$|^mtp\.|^model\.(vision_tower|resampler)\.")

# OpenBMB's training code (BMTrain, CPM) -> Hugging Face, by regular expression on the whole name.
_CPM = [
    (r"input_embedding\.weight", "model.embed_tokens.weight"),
    (r"output_embedding\.weight|lm_head\.weight", "lm_head.weight"),
    (r"encoder\.output_layernorm\.weight", "model.norm.weight"),
    (
        r"encoder\.layers\.(\d+)\.self_att\.layernorm_before_attention\.weight",
        r"model.layers.\1.input_layernorm.weight",
    ),
    (
        r"encoder\.layers\.(\d+)\.self_att\.self_attention\.project_([qkv])\.weight",
        r"model.layers.\1.self_attn.\2_proj.weight",
    ),
    (
        r"encoder\.layers\.(\d+)\.self_att\.self_attention\.attention_out\.weight",
        r"model.layers.\1.self_attn.o_proj.weight",
    ),
    (r"encoder\.layers\.(\d+)\.ffn\.layernorm_before_ffn\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"encoder\.layers\.(\d+)\.ffn\.ffn\.w_in\.w_0\.weight", r"model.layers.\1.mlp.gate_proj.weight"),
    (r"encoder\.layers\.(\d+)\.ffn\.ffn\.w_in\.w_1\.weight", r"model.layers.\1.mlp.up_proj.weight"),
    (r"encoder\.layers\.(\d+)\.ffn\.ffn\.w_out\.weight", r"model.layers.\1.mlp.down_proj.weight"),
]


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor that OpenBMB's training code named; others unchanged."""
    for pattern, replacement in _CPM:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def load(folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: str = "cpu") -> Transformer:
    """The model of a folder. dtype: of the weights in memory, else that of the file.

    A head of its own beside `tie_word_embeddings: true` (a merged adapter's) is kept, and the configuration says so.
    Raises ValueError naming the file and the tensors when something is missing, left over or has another shape.
    """
    path = Path(folder)
    config = ModelConfig.from_file(path / "config.json")
    with torch.device("meta"):
        model = Transformer(config)
    fill(model, tensors(path), dtype=dtype, device=device, where=str(path))
    return model


def language_name(name: str, prefix: str) -> str | None:
    """Hugging Face's name of a tensor of the language model, from its name in a checkpoint where those have this prefix; None for
    one that is not of it. Qwen3.5 keeps the head outside the prefix, and the prefix has the language model's own begin in it."""
    if prefix == NESTED_PREFIX:
        return (
            f"model.{name.removeprefix(prefix)}"
            if name.startswith(prefix)
            else name
            if name == "lm_head.weight"
            else None
        )
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def is_derived(name: str) -> bool:
    """Whether a tensor is a buffer that old checkpoints carry and that is computed here."""
    return _DERIVED.search(name) is not None


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All (name, tensor) of a folder, file by file; of a model that sees, those of its language model.

    Integer weights (GPTQ, AWQ, compressed-tensors) come as the floats they stand for, float32, after the others.
    """
    config = ModelConfig.from_file(folder / "config.json", say=False)
    prefix = config.tensor_prefix or ""
    named = ((language_name(name, prefix), tensor) for name, tensor in stored(folder))
    found = ((name, tensor) for name, tensor in named if name is not None)
    scheme = scheme_in(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if scheme is None:
        return found
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Transformer(config).named_parameters(remove_duplicate=False)}
    return dequantized(found, scheme, shapes, str(folder))


def stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All (name, tensor) of a folder under the names of its files, file by file. ValueError for a damaged one."""
    for path in weight_files(folder):
        if path.suffix == ".bin":
            yield from torch_file.load(path).items()
            continue
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, it is not a mapping
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}: cannot be read ({error}); the file is incomplete or damaged, get it again"
            ) from error


def weight_files(folder: Path) -> list[Path]:
    """The files with weights, safetensors first. Raises ValueError when there are none, or an index names others."""
    for name in _INDEXES:
        if (folder / name).is_file():
            return _indexed(folder, folder / name)
    for name in _SINGLES:
        if (folder / name).is_file():
            return [folder / name]
    raise ValueError(f"{folder}: there is no {' and no '.join(_SINGLES)}; give a folder with a whole checkpoint")


def _indexed(folder: Path, index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{index}: not an index of weights ({error!r:.100})") from error
    out = []
    for name in sorted(map(str, names)):
        if name != Path(name).name or Path(name).suffix not in (".safetensors", ".bin"):
            raise ValueError(f"{index}: {name!r:.80} is not the name of a weight file in this folder")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: {index.name} names it; get the whole checkpoint")
        out.append(folder / name)
    return out


def fill(
    model: Transformer, source: Iterator[tuple[str, Tensor]], *, dtype: torch.dtype | None, device: str, where: str
) -> None:
    """Put tensors into a model on the meta device, tensor by tensor, so that nothing is in memory twice.

    A tied model is untied where the source has a head that differs from the embedding.
    """
    wanted = {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}
    tied = model.config.tie_word_embeddings
    left = []
    for foreign, tensor in source:
        name = hf_name(foreign)
        if is_derived(name):
            continue
        if name not in wanted:
            left.append(name)
            continue
        shape = wanted.pop(name)
        if tensor.shape != shape:
            raise ValueError(f"{where}: {name} has shape {list(tensor.shape)}, config.json says {list(shape)}")
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor.to(device=device, dtype=dtype or tensor.dtype)))
    if tied:
        if "lm_head.weight" in wanted or torch.equal(model.lm_head.weight, model.model.embed_tokens.weight):
            wanted.pop("lm_head.weight", None)
            model.tie()
        else:
            model.config = model.config.model_copy(update={"tie_word_embeddings": False})
    must_fit(where, wanted, left)


def must_fit(where: str, missing: Iterable[str], left: Iterable[str]) -> None:
    """Raise ValueError where names of tensors are missing or left over."""
    for names, what in ((list(missing), "missing"), (list(left), "left over")):
        if names:
            some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            raise ValueError(
                f"{where}: {len(names)} tensors are {what} ({some}): weights and config.json do not belong together"
            )


def state(model: Transformer) -> dict[str, Tensor]:
    """Tensors to store: each once, a tied head left out."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters()}


def save(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    weights: dict[str, Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
    extra: Mapping[str, bytes] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write config.json, weights and `extra` files by name as a Hugging Face folder. ValueError if the folder exists.

    about: further keys of config.json.
    """
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    data = to_hf(config) | {"torch_dtype": dtype} | dict(about or {})
    return save_tensors(folder, data, weights, shard_bytes=shard_bytes, extra=extra)


def save_tensors(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    weights: dict[str, Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
    extra: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a config.json as it is, weights under their names and `extra` files. ValueError if the folder exists."""
    target = Path(folder)
    if target.exists():
        raise ValueError(f"{target} exists already; choose another name or delete it first")
    with new_folder(target) as staging:
        (staging / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        _write_shards(staging, weights, shard_bytes)
        for path in staging.glob("*.safetensors"):
            shutil.copymode(staging / "config.json", path)  # save_file keeps what it writes from all other users
        for name, content in (extra or {}).items():
            (staging / name).write_bytes(content)
    return target


def _write_shards(folder: Path, weights: dict[str, Tensor], shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in weights.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(t.nbytes for t in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / _INDEXES[0]).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def fold_to_llama(config: ModelConfig, weights: dict[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same function as a plain Llama: MiniCPM's three scales multiplied into the weights, the head untied.

    embed * scale_emb; o_proj and down_proj * residual_scale; head (or the unscaled embedding) * logit_scale. Exact in
    exact arithmetic; float32 logits agree to rounding. Raises ValueError for latent attention, which Llama does not have.
    """
    if not config.plain or config.parts.nope:
        raise ValueError("only models with plain attention in all layers and MLPs can be folded into Llama's form")
    out = dict(weights)
    embedding = weights["model.embed_tokens.weight"]
    out["model.embed_tokens.weight"] = embedding * config.scale_emb
    out["lm_head.weight"] = weights.get("lm_head.weight", embedding) * config.logit_scale
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            out[name] = weights[name] * config.residual_scale
    plain = {
        "model_type": "llama",
        "scale_emb": 1.0,
        "scale_depth": None,
        "dim_model_base": None,
        "tie_word_embeddings": False,
        "sparse_config": None,  # Llama's class has no such attention, and ours is dense
    }
    return config.model_copy(update=plain), out
