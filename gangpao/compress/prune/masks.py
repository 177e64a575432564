"""Masks of a model and how they last: a file beside it, and an optimizer step that leaves zeros where they are.

`masks.safetensors` lies beside the model's folder (out/model and out/masks.safetensors): for every masked matrix, under its Hugging
Face name, uint8 of its shape, 1 where a weight stays. A step that trains such a model reads them (`read_masks(source)`), puts
`keep_masks(model, optimizer, masks)` in front of its loop, and writes them beside what it made (`write_masks`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gangpao.atomic import new_file
from gangpao.compress.prune.patterns import PatternBy, numbers, pruned
from gangpao.compress.prune.reconstruct import SITES, Moments, Stream
from gangpao.model.transformer import Transformer
from gangpao.train.step.optim import Optimizer

FILE = "masks.safetensors"
Tick = Callable[[int, int], None]


def write_masks(model: Path, masks: Mapping[str, Tensor]) -> Path:
    """Write masks beside the folder of a model."""
    path = model.with_name(FILE)
    with new_file(path) as staging:
        save_file({name: mask.to(torch.uint8).contiguous() for name, mask in masks.items()}, staging)
    return path


def read_masks(model: Path) -> dict[str, Tensor]:
    """The masks beside the folder of a model, bool by name; none where there is no such file. Raises ValueError if damaged."""
    path = model.with_name(FILE)
    if not path.is_file():
        return {}
    try:
        return {name: mask.bool() for name, mask in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); make the masks again with the pruning step") from error


@torch.no_grad()
def keep_masks(model: nn.Module, optimizer: Optimizer, masks: Mapping[str, Tensor]) -> None:
    """Let the zeros of masks stay zeros: those weights get no gradient, and after each update they are set to zero again.

    Whatever the optimizer does (momentum, decay), the forward pass sees the mask. Raises ValueError for masks of another model.
    """
    named = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in named or named[name].shape != mask.shape:
            raise ValueError(f"the mask of {name} does not belong to this model: make the masks again")
    pairs = [(named[name], mask.to(named[name].device)) for name, mask in masks.items() if named[name].requires_grad]
    for p, mask in pairs:
        p.mul_(mask)
        p.register_hook(functools.partial(torch.mul, mask))  # type: ignore[no-untyped-call]

    def zero(*_: Any) -> None:
        with torch.no_grad():
            for p, mask in pairs:
                p.mul_(mask)

    for part in optimizer.parts:
        part.register_step_post_hook(zero)


@torch.no_grad()
def masked(
    model: Transformer,
    ids_NT: np.ndarray,
    by: PatternBy,
    pattern: str,
    damping: float,
    *,
    progress: Tick = lambda done, total: None,
) -> dict[str, Tensor]:
    """Put zeros into all matrices of the layers of a model, layer by layer, each with the inputs that the masked layers before it
    give. Returns the masks by name. Raises ValueError where a row is not whole groups."""
    if not model.config.plain:
        raise ValueError("masks over experts, latent attention or Gated DeltaNet are not made")
    m = numbers(pattern)[1]
    for name, p in model.model.layers[0].named_parameters():
        if p.ndim == 2 and p.shape[1] % m:
            raise ValueError(f"pattern {pattern}: rows of {name} have {p.shape[1]} weights, not a multiple of {m}")
    out: dict[str, Tensor] = {}
    stream = Stream(model, ids_NT)
    for i, block in enumerate(model.model.layers):
        for sites in _IN_ORDER:
            moments = _moments(stream, block, sites) if by != "magnitude" else None
            for site in sites:
                moment = moments.of(site) if moments is not None else None
                for name in SITES[site]:
                    weight: Any = block.get_parameter(f"{name}.weight")
                    new, mask = pruned(weight, moment, by, pattern, damping)
                    weight.copy_(new)
                    out[f"model.layers.{i}.{name}.weight"] = mask
        if by != "magnitude":
            stream.states = stream.through(block)
        progress(i + 1, len(model.model.layers))
    return out


# Sites of a layer in the order in which it computes: each is measured behind the masks of those before.
_IN_ORDER = (("input_layernorm",), ("self_attn.o_proj",), ("post_attention_layernorm",), ("mlp.down_proj",))


def _moments(stream: Stream, block: nn.Module, sites: tuple[str, ...]) -> Moments:
    with Moments({site: block.get_submodule(site) for site in sites}) as moments:
        stream.through(block)
    return moments
