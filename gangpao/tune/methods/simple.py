"""Methods with few numbers: full tuning, BitFit (arXiv:2106.10199) and IA3 (arXiv:2205.05638)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gangpao.model.layers import Linear, project, replace_linears
from gangpao.model.transformer import Transformer
from gangpao.tune.methods.config import ALL_LINEAR, MethodConfig
from gangpao.tune.methods.lora import Switch, Wrapped, device_of
from gangpao.tune.methods.rounding import scaled
from gangpao.tune.methods.targets import find_targets

FEEDFORWARD = ("down_proj", "w2")  # the linears whose input IA3 scales
SCALED = ("k_proj", "v_proj", "kv_b_proj", *FEEDFORWARD)


class ShiftedLinear(Wrapped):
    """BitFit: what is added to the output, `shift` [out], is trained; it begins as 0. A linear without a bias gets one."""

    def __init__(self, base: Linear, switch: Switch) -> None:
        super().__init__(base, switch)
        self.shift = nn.Parameter(torch.zeros(self.out_features, dtype=torch.float32, device=device_of(base)))

    @classmethod
    def together(cls, x: Tensor, linears: Sequence[Any]) -> Sequence[Tensor]:
        """Shifted linears at the same input."""
        out = project(x, [linear.base for linear in linears])
        return [y if m.switch.off else y + m.shift.to(y.dtype) for y, m in zip(out, linears, strict=True)]


class ScaledLinear(Wrapped):
    """IA3: a factor for every output, or for every input of the MLP's last linear; they begin as 1."""

    def __init__(self, base: Linear, switch: Switch, *, inputs: bool) -> None:
        super().__init__(base, switch)
        self.inputs = inputs
        size = self.in_features if inputs else self.out_features
        self.factors = nn.Parameter(torch.ones(size, dtype=torch.float32, device=device_of(base)))

    def forward(self, x: Tensor) -> Tensor:
        if self.switch.off:
            return self.base(x)
        return self.base(scaled(x, self.factors)) if self.inputs else scaled(self.base(x), self.factors)

    @classmethod
    def together(cls, x: Tensor, linears: Sequence[Any]) -> Sequence[Tensor]:
        """Scaled linears at the same input."""
        return [linear(x) for linear in linears]


def put_full(model: Transformer, config: MethodConfig, switch: Switch, seed: int) -> dict[str, nn.Module]:
    """Train every parameter. Raises ValueError for a base whose weights are kept in blocks."""
    names = {name for name, _ in model.named_parameters()}
    blocks = [n for n, m in model.named_modules() if isinstance(m, Linear) and f"{n}.weight" not in names]
    blocks = [name for name in blocks if name != "lm_head" or not model.config.tie_word_embeddings]
    if blocks:
        raise ValueError(
            f"full tuning needs float weights, and {blocks[0]} is kept in blocks of a few bits. Ways out: "
            'kind = "lora" on this base; a base in bf16 (a Hugging Face folder)'
        )
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return {}


def put_bitfit(model: Transformer, config: MethodConfig, switch: Switch, seed: int) -> dict[str, nn.Module]:
    """A trained bias on every target."""
    return put_linears(model, config.targets, lambda name, linear: ShiftedLinear(linear, switch))


def put_ia3(model: Transformer, config: MethodConfig, switch: Switch, seed: int) -> dict[str, nn.Module]:
    """Factors on keys, values and what the MLP's last linear takes in."""
    targets = config.targets
    if targets == ALL_LINEAR:
        leaves = {name.rpartition(".")[2] for name in find_targets(model, ALL_LINEAR)}
        targets = tuple(leaf for leaf in SCALED if leaf in leaves)
    return put_linears(
        model, targets, lambda name, linear: ScaledLinear(linear, switch, inputs=name.endswith(FEEDFORWARD))
    )


def put_linears(
    model: Transformer, targets: str | tuple[str, ...], make: Callable[[str, Linear], nn.Module]
) -> dict[str, nn.Module]:
    """Replace the targets, all of which must be linears. Raises ValueError for the embedding."""
    found = find_targets(model, targets)
    others = [name for name, module in found.items() if not isinstance(module, Linear)]
    if others:
        raise ValueError(f'targets: {others[0]} is no linear; of the methods, kind = "lora" alone adapts it')
    put: dict[str, nn.Module] = {}

    def replace(name: str, linear: Linear) -> nn.Module | None:
        if name in found:
            put[name] = make(name, linear)
        return put.get(name)

    replace_linears(model, replace)
    return put
