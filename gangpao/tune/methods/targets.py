"""Which modules of a model are meant: all linears inside the layers, names and their ends, or a regular expression.

PEFT's rules, over its names. One thing differs: a router's choice of experts is no target of "all-linear".
"""

from __future__ import annotations

import difflib
import re

from torch import nn

from gangpao.model.layers import Linear
from gangpao.model.moe import MoE
from gangpao.model.transformer import Transformer
from gangpao.tune.methods.config import ALL_LINEAR

EMBEDDING = "model.embed_tokens"


def find_targets(model: Transformer, targets: str | tuple[str, ...]) -> dict[str, nn.Module]:
    """Modules by name, in the order of the model. Raises ValueError for a target that there is not."""
    modules = _candidates(model)
    if targets == ALL_LINEAR:
        routers = {f"{name}.gate" for name, module in model.named_modules() if isinstance(module, MoE)}
        return {n: m for n, m in modules.items() if n.startswith("model.layers.") and n not in routers}
    if isinstance(targets, str):
        found = {n: m for n, m in modules.items() if re.fullmatch(targets, n)}
        _check(targets if not found else None, modules)
        return found
    chosen: set[str] = set()
    for target in targets:
        named = find_targets(model, target) if target == ALL_LINEAR else [n for n in modules if _ends(n, target)]
        _check(None if named else target, modules)
        chosen.update(named)
    return {n: m for n, m in modules.items() if n in chosen}


def _candidates(model: Transformer) -> dict[str, nn.Module]:
    linears: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, Linear)}
    return {EMBEDDING: model.model.embed_tokens, **linears}


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _check(missing: str | None, modules: dict[str, nn.Module]) -> None:
    if missing is not None:
        leaves = sorted({name.rpartition(".")[2] for name in modules})
        near = difflib.get_close_matches(missing, leaves, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"targets: this model has no {missing}{hint} (there are {', '.join(leaves)}, {ALL_LINEAR})")
