"""Official names of tensors <-> ours. A family of checkpoints is a row of NAMES; how tensors are stored is a row of a table.

    to_ours(names, source)         official (name, tensor) one by one -> ours; what belongs to neither half comes under its own name
    to_official(names, tensors)    ours -> official

{i} stands for the number of a layer. Names of the language model change their prefix only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

# How the official tensor looks beside ours: "convolution" [D, 3, p, p] and ours [D, 3 p p]; "channels_last" [D, p p 3]; "leading"
# has axes of size 1 in front; "row" lacks the axis of size 1; "transposed". Several of ours are stacked on the first axis.
Form = Literal["same", "convolution", "channels_last", "leading", "row", "transposed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One official tensor and ours. axes: how many of it are in front of a "leading" one."""

    official: str
    ours: tuple[str, ...]
    form: Form = "same"
    axes: int = 0


@dataclass(frozen=True, slots=True)
class Names:
    """Prefixes of a family's tensors and their tables. language: pairs of prefixes (official, ours), the first that fits.

    ignored: parts of official names that belong to heads which no language model uses.
    """

    encoder: tuple[Entry, ...]
    merger: tuple[Entry, ...] = ()
    language: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self.encoder + self.merger


def _pairs(official: str, ours: str, names: Iterable[str] = ("weight", "bias")) -> list[Entry]:
    return [Entry(f"{official}.{leaf}", (f"{ours}.{leaf}",)) for leaf in names]


_ATTENTION = ("q_proj", "k_proj", "v_proj")


def _siglip(prefix: str, *, patches: Form = "convolution") -> tuple[Entry, ...]:
    """The ViT of transformers (SigLIP, SigLIP 2, CLIP, MiniCPM-V from 2.6 on)."""
    layer, mine = f"{prefix}encoder.layers.{{i}}", "encoder.layers.{i}"
    out = [
        Entry(f"{prefix}embeddings.patch_embedding.weight", ("encoder.embeddings.patch_embedding.weight",), patches),
        Entry(f"{prefix}embeddings.patch_embedding.bias", ("encoder.embeddings.patch_embedding.bias",)),
        Entry(f"{prefix}embeddings.position_embedding.weight", ("encoder.embeddings.position_embedding.weight",)),
        Entry(f"{prefix}embeddings.class_embedding", ("encoder.embeddings.prefix_embedding",), "row"),
        *_pairs(f"{prefix}pre_layrnorm", "encoder.first_norm"),
        *_pairs(f"{prefix}post_layernorm", "encoder.final_norm"),
    ]
    parts = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", *(f"self_attn.{p}" for p in (*_ATTENTION, "out_proj")))
    for part in parts:
        out += _pairs(f"{layer}.{part}", f"{mine}.{part}")
    return tuple(out)


def _window_merger(prefix: str) -> tuple[Entry, ...]:
    parts = ("layer_norm1", "pre_norm", "linear_1", "linear_2", *(f"self_attn.{p}" for p in (*_ATTENTION, "out_proj")))
    return tuple(e for part in parts for e in _pairs(f"{prefix}{part}", f"encoder.window_merger.{part}"))


def _timm(prefix: str, *, eva: bool = False) -> tuple[Entry, ...]:
    """timm's VisionTransformer; eva: its Eva, with a class token and biases of q and v beside the product."""
    layer, mine = f"{prefix}blocks.{{i}}", "encoder.layers.{i}"
    attention = f"{mine}.self_attn"
    qkv = tuple(f"{attention}.{p}.weight" for p in _ATTENTION)
    out = [
        Entry(f"{prefix}patch_embed.proj.weight", ("encoder.embeddings.patch_embedding.weight",), "convolution"),
        Entry(f"{prefix}patch_embed.proj.bias", ("encoder.embeddings.patch_embedding.bias",)),
        Entry(f"{prefix}pos_embed", ("encoder.embeddings.position_embedding.weight",), "leading", 1),
        *_pairs(f"{prefix}norm", "encoder.final_norm"),
        Entry(f"{layer}.attn.qkv.weight", qkv),
        *_pairs(f"{layer}.attn.proj", f"{attention}.out_proj"),
        *_pairs(f"{layer}.norm1", f"{mine}.layer_norm1"),
        *_pairs(f"{layer}.norm2", f"{mine}.layer_norm2"),
        *_pairs(f"{layer}.mlp.fc1", f"{mine}.mlp.fc1"),
        *_pairs(f"{layer}.mlp.fc2", f"{mine}.mlp.fc2"),
    ]
    if eva:
        out += [
            Entry(f"{prefix}cls_token", ("encoder.embeddings.prefix_embedding",), "leading", 1),
            Entry(f"{layer}.attn.q_bias", (f"{attention}.q_proj.bias",)),
            Entry(f"{layer}.attn.v_bias", (f"{attention}.v_proj.bias",)),
        ]
    else:
        out.append(Entry(f"{layer}.attn.qkv.bias", tuple(f"{attention}.{p}.bias" for p in _ATTENTION)))
    return tuple(out)


def _resampler(prefix: str) -> tuple[Entry, ...]:
    attn = tuple(f"merger.attn.{p}" for p in _ATTENTION)
    out = [
        Entry(f"{prefix}query", ("merger.query",)),
        Entry(f"{prefix}pos_embed", ("merger.pos_embed",)),
        Entry(f"{prefix}kv_proj.weight", ("merger.kv_proj.weight",)),
        Entry(f"{prefix}attn.in_proj_weight", tuple(f"{name}.weight" for name in attn)),
        Entry(f"{prefix}attn.in_proj_bias", tuple(f"{name}.bias" for name in attn)),
        *_pairs(f"{prefix}attn.out_proj", "merger.attn.out_proj"),
        Entry(f"{prefix}proj", ("merger.proj.weight",), "transposed"),
    ]
    for norm in ("ln_q", "ln_kv", "ln_post"):
        out += _pairs(f"{prefix}{norm}", f"merger.{norm}")
    return tuple(out)


def _join(prefix: str) -> tuple[Entry, ...]:
    parts = ("pre_norm", "linear_1", "linear_2")
    return tuple(e for part in parts for e in _pairs(f"{prefix}{{i}}.{part}", f"merger.mlp.{{i}}.{part}"))


def _mlp(prefix: str) -> tuple[Entry, ...]:
    return tuple(e for part in ("linear_1", "linear_2") for e in _pairs(f"{prefix}{part}", f"merger.{part}"))


_LLM = (("llm.", ""),)
_NESTED = (("model.language_model.", "model."), ("lm_head.", "lm_head."))
_V46 = Names(
    _siglip("model.vision_tower.") + _window_merger("model.vision_tower.vit_merger."),
    _join("model.merger.mlp."),
    _NESTED,
)
_V26 = Names(_siglip("vpm."), _resampler("resampler."), _LLM)

# By the name of a VisionModel.
NAMES: dict[str, Names] = {
    **dict.fromkeys(("minicpm-v-1", "minicpm-v-2"), Names(_timm("vpm."), _resampler("resampler."), _LLM)),
    **dict.fromkeys(("minicpm-v-2.6", "minicpm-v-4", "minicpm-v-4.5"), _V26),
    **dict.fromkeys(("minicpm-v-4.6", "minicpm-v-4.7"), _V46),
    "omnilmm-12b": Names(_timm("model.vision_tower.", eva=True), _resampler("model.resampler."), (("", ""),)),
    "llava": Names(
        _siglip("vision_tower."),
        _mlp("multi_modal_projector."),
        (("language_model.", ""),),
        ignored=("vision_tower.head.",),
    ),
}
# An encoder alone, by model_type of its own configuration.
ENCODERS: dict[str, Names] = {
    "siglip_vision_model": Names(_siglip(""), ignored=("head.",)),
    "siglip2_vision_model": Names(_siglip("", patches="channels_last"), ignored=("head.",)),
    "clip_vision_model": Names(_siglip("")),
    "siglip": Names(_siglip("vision_model."), ignored=("vision_model.head.", "text_model.", "logit_")),
    "siglip2": Names(
        _siglip("vision_model.", patches="channels_last"), ignored=("vision_model.head.", "text_model.", "logit_")
    ),
}


def spelled(name: str) -> str:
    """A tensor's name in today's spelling: as transformers 5 writes LLaVA, whichever version wrote it."""
    old = "vision_tower.vision_model."
    return f"vision_tower.{name.removeprefix(old)}" if name.startswith(old) else name


def to_ours(names: Names, source: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a checkpoint under our names: encoder.*, merger.*, language.* and, for what is in no table, itself."""
    for foreign, tensor in source:
        name = spelled(foreign)
        found = _find(names, name)
        if found is not None:
            entry, number = found
            ours = [pattern.replace("{i}", number) for pattern in entry.ours]
            yield from zip(ours, _taken(entry, tensor), strict=True)
        elif not name.startswith(names.ignored):
            pair = next(((theirs, mine) for theirs, mine in names.language if name.startswith(theirs)), None)
            yield (name, tensor) if pair is None else (f"language.{pair[1]}{name.removeprefix(pair[0])}", tensor)


def to_official(names: Names, tensors: Mapping[str, Tensor], patch_size: int) -> dict[str, Tensor]:
    """Tensors under our names (encoder.*, merger.*, language.*), as the family stores them. ValueError for one without a name."""
    left, out = dict(tensors), {}
    layers = sorted(
        {m[1] for name in tensors if (m := re.match(r"(?:encoder\.layers|merger\.mlp)\.(\d+)\.", name))}, key=int
    )
    for entry in names.entries:
        for number in layers if "{i}" in entry.official else [""]:
            mine = [left.pop(pattern.replace("{i}", number), None) for pattern in entry.ours]
            parts = [tensor for tensor in mine if tensor is not None]
            if parts:
                out[entry.official.replace("{i}", number)] = _given(entry, parts, patch_size)
    for name, tensor in left.items():
        bare = name.removeprefix("language.")
        pair = next(((theirs, mine) for theirs, mine in names.language if bare.startswith(mine)), None)
        if pair is None or bare == name:
            raise ValueError(f"{name}: this family of checkpoints has no name for it")
        out[pair[0] + bare.removeprefix(pair[1])] = tensor
    return out


@lru_cache(maxsize=32)
def _table(names: Names) -> dict[str, Entry]:
    return {entry.official: entry for entry in names.entries}


def _find(names: Names, name: str) -> tuple[Entry, str] | None:
    table = _table(names)
    if name in table:
        return table[name], ""
    for match in re.finditer(r"\.(\d+)\.", name):
        if found := table.get(f"{name[: match.start(1)]}{{i}}{name[match.end(1) :]}"):
            return found, match[1]
    return None


def _taken(entry: Entry, tensor: Tensor) -> list[Tensor]:
    """An official tensor in our form, one for each of our names."""
    if entry.form == "convolution":
        tensor = tensor.flatten(1)
    elif entry.form == "channels_last":
        side = round((tensor.shape[1] / 3) ** 0.5)
        tensor = tensor.view(-1, side, side, 3).permute(0, 3, 1, 2).flatten(1)
    elif entry.form == "leading":
        tensor = tensor.reshape(tensor.shape[entry.axes :])
    elif entry.form == "row":
        tensor = tensor[None]
    elif entry.form == "transposed":
        tensor = tensor.T
    return [tensor] if len(entry.ours) == 1 else list(tensor.chunk(len(entry.ours)))


def _given(entry: Entry, parts: list[Tensor], patch_size: int) -> Tensor:
    """Our tensors in the official form."""
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    if entry.form == "convolution":
        tensor = tensor.view(-1, 3, patch_size, patch_size)
    elif entry.form == "channels_last":
        tensor = tensor.view(-1, 3, patch_size, patch_size).permute(0, 2, 3, 1).flatten(1)
    elif entry.form == "leading":
        tensor = tensor[(None,) * entry.axes]
    elif entry.form == "row":
        tensor = tensor[0]
    elif entry.form == "transposed":
        tensor = tensor.T
    return tensor.contiguous()
