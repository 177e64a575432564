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
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gangpao.atomic import new_folder
from gangpao.model import torch_file
from gangpao.model.config import ModelConfig, to_hf
from gangpao.model.transformer import Transformer

SHARD_BYTES = 4_000_000_000
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")
# Buffers that old checkpoints carry and that are computed here.
_DERIVED = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$")

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


def is_derived(name: str) -> bool:
    """Whether a tensor is a buffer that old checkpoints carry and that is computed here."""
    return _DERIVED.search(name) is not None


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All (name, tensor) of a folder, file by file; of a model that sees, those of its language model."""
    prefix = ModelConfig.from_file(folder / "config.json", say=False).tensor_prefix or ""
    for name, tensor in _stored(folder):
        if name.startswith(prefix):
            yield name.removeprefix(prefix), tensor


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
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
    for names, what in ((list(wanted), "missing"), (left, "left over")):
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
    extra: dict[str, bytes] | None = None,
) -> Path:
    """Write config.json, weights and `extra` files by name as a Hugging Face folder. ValueError if the folder exists."""
    target = Path(folder)
    if target.exists():
        raise ValueError(f"{target} exists already; choose another name or delete it first")
    with new_folder(target) as staging:
        data = to_hf(config) | {"torch_dtype": str(next(iter(weights.values())).dtype).removeprefix("torch.")}
        (staging / "config.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        _write_shards(staging, weights, shard_bytes)
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
    if config.mla or config.moe:
        raise ValueError("only models with plain attention and MLPs can be folded into Llama's form")
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
