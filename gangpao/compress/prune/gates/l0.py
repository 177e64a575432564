"""L0 gates: factors on layers, heads, FFN channels and the stream, trained until as many are open as were asked for.

A gate is drawn from a hard concrete distribution (arXiv:1712.01312), so that it is often exactly 0 or 1 and still has a gradient.
The share of each kind that is expected open, layer by layer, is held at a target by two Lagrange multipliers,
lambda1 (s - t) + lambda2 (s - t)^2, which go up the gradient while all else goes down (arXiv:1910.04732); the target falls from
all to what is wanted during a warm-up. BMCook had the same with one share for the whole model; here every layer has its own,
because config.json says the widths once for all layers (arXiv:2310.06694).

Gates live in the model as parameters, so a checkpoint holds them and the loop trains them; hooks multiply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gangpao.compress.prune.cut import Kept
from gangpao.compress.prune.scores import best
from gangpao.compress.prune.shape import Shape
from gangpao.model.config import ModelConfig
from gangpao.model.transformer import Transformer
from gangpao.train.loop import Objective
from gangpao.train.step.loss import Terms

NAME = "gates"  # of the module in the model, and so of its parameters
_BETA, _LOW, _HIGH = 2 / 3, -0.1, 1.1
_BORDER = _BETA * math.log(-_LOW / _HIGH)  # P(gate is not 0) = sigmoid(a - _BORDER)
_FIRST = 4.0  # a gate begins open: P = 0.995


class _Ascend(torch.autograd.Function):
    """The value itself, whose gradient is turned round: what minimises the loss then maximises over it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Gates(nn.Module):
    """The gates of a model: a parameter [rows, number] for each kind that shrinks, and its multipliers [rows].

    Kinds: layers [1, L], ffn [L, F], groups [L, K], heads [L, N], width [1, D]. shares: what of each is to be open at the end.
    """

    def __init__(self, c: ModelConfig, shape: Shape, seed: int) -> None:
        super().__init__()
        self.config, self.shape = c, shape
        n, per_group = c.num_hidden_layers, c.num_attention_heads // c.num_key_value_heads
        sizes = {
            "layers": (1, n, shape.layers / n),
            "ffn": (n, c.intermediate_size, shape.ffn / c.intermediate_size),
            "groups": (n, c.num_key_value_heads, shape.kv_heads / c.num_key_value_heads),
            "heads": (n, c.num_attention_heads, shape.heads / shape.kv_heads / per_group),
            "width": (1, c.hidden_size, shape.width / c.hidden_size),
        }
        self.shares = {name: share for name, (_, _, share) in sizes.items() if share < 1}
        generator = torch.Generator().manual_seed(seed)
        for name in self.shares:
            rows, number, _ = sizes[name]
            first = _FIRST + 0.01 * torch.randn(rows, number, generator=generator)
            self.register_parameter(name, nn.Parameter(first))
            self.register_parameter(f"{name}_lambda1", nn.Parameter(torch.zeros(rows)))
            self.register_parameter(f"{name}_lambda2", nn.Parameter(torch.zeros(rows)))
        self.drawn: dict[str, Tensor] = {}

    def draw(self) -> None:
        """New gates for one forward pass: random in training, else the middle of each distribution."""
        self.drawn = {name: self._values(self.get_parameter(name)) for name in self.shares}

    def _values(self, a: Tensor) -> Tensor:
        if self.training:
            u = torch.rand_like(a).clamp(1e-6, 1 - 1e-6)
            a = (u.log() - (1 - u).log() + a) / _BETA
        return (torch.sigmoid(a) * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def open_shares(self) -> dict[str, Tensor]:
        """The share of every row that is expected not to be 0, [rows] by kind."""
        return {name: torch.sigmoid(self.get_parameter(name) - _BORDER).mean(-1) for name in self.shares}

    def penalty(self, progress: float) -> Tensor:
        """What is added to the mean loss. progress: of the warm-up, 0 to 1."""
        total = torch.zeros(())
        for name, share in self.open_shares().items():
            away = share - (1 + (self.shares[name] - 1) * progress)
            one, two = (_Ascend.apply(self.get_parameter(f"{name}_lambda{i}")) for i in (1, 2))  # type: ignore[no-untyped-call]
            total = total + (one * away + two * away.square()).sum()
        return total

    def layer_gate(self, layer: int) -> Tensor | None:
        """What the branches of a layer are multiplied by."""
        return self.drawn["layers"][0, layer] if "layers" in self.drawn else None

    def head_gates(self, layer: int) -> Tensor | None:
        """What the heads of a layer are multiplied by, [N]."""
        out = self.drawn["heads"][layer] if "heads" in self.drawn else None
        if "groups" in self.drawn:
            per_group = self.config.num_attention_heads // self.config.num_key_value_heads
            whole = self.drawn["groups"][layer].repeat_interleave(per_group)
            out = whole if out is None else out * whole
        return out

    @torch.no_grad()
    def kept(self) -> Kept:
        """What stays: the most open gates of each row, as many as were asked for."""
        c, shape, full = self.config, self.shape, Kept.everything(self.config)
        n, per_group = c.num_hidden_layers, c.num_attention_heads // c.num_key_value_heads

        def top(name: str, row: int, count: int, number: int) -> tuple[int, ...]:
            return best(self.get_parameter(name)[row], count) if name in self.shares else tuple(range(number))

        groups = [top("groups", i, shape.kv_heads, c.num_key_value_heads) for i in range(n)]
        each = shape.heads // shape.kv_heads
        heads = list(full.heads)
        for i in range(n):
            values = self.get_parameter("heads")[i] if "heads" in self.shares else torch.zeros(c.num_attention_heads)
            inside = values.view(-1, per_group)
            heads[i] = tuple(g * per_group + j for g in groups[i] for j in best(inside[g], each))
        ffn = [top("ffn", i, shape.ffn, c.intermediate_size) for i in range(n)]
        layers = top("layers", 0, shape.layers, n)
        return Kept(
            layers,
            tuple(ffn[i] for i in layers),
            tuple(heads[i] for i in layers),
            tuple(groups[i] for i in layers),
            top("width", 0, shape.width, c.hidden_size),
        )


def attach(model: Transformer, gates: Gates) -> None:
    """Put gates into a model. They act in every forward pass from now on."""
    c = model.config
    model.add_module(NAME, gates)

    def times(gate: Callable[[], Tensor | None]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            z = gate()
            return output if z is None else output * z.to(output.dtype)

        return hook

    def before(gate: Callable[[], Tensor | None], wide: int) -> Callable[[nn.Module, tuple[Tensor, ...]], Any]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
            z = gate()
            return None if z is None else (inputs[0] * z.repeat_interleave(wide).to(inputs[0].dtype),)

        return hook

    def width() -> Tensor | None:
        return gates.drawn["width"][0] if "width" in gates.drawn else None

    model.register_forward_pre_hook(lambda *_: gates.draw())
    model.model.embed_tokens.register_forward_hook(times(width))
    every: Any = model.model.layers
    for i, block in enumerate(every):
        block.mlp.down_proj.register_forward_pre_hook(
            before(lambda i=i: gates.drawn["ffn"][i] if "ffn" in gates.drawn else None, 1)  # type: ignore[misc]
        )
        block.self_attn.o_proj.register_forward_pre_hook(before(lambda i=i: gates.head_gates(i), c.head_dim))  # type: ignore[misc]
        for out in (block.mlp.down_proj, block.self_attn.o_proj):
            out.register_forward_hook(times(lambda i=i: gates.layer_gate(i)))  # type: ignore[misc]
            out.register_forward_hook(times(width))


class Clock:
    """The learning rate of a loop, which says at which step the objective is."""

    def __init__(self, learning_rate: Callable[[int], float]) -> None:
        self.learning_rate, self.step = learning_rate, 0

    def __call__(self, step: int) -> float:
        self.step = step
        return self.learning_rate(step)


class Gated:
    """An objective with the gates' penalty added; the loss that is reported is without it."""

    separable = False  # one draw of the gates for all rows of a batch

    def __init__(self, inner: Objective, gates: Gates, clock: Clock, warmup: int) -> None:
        self.inner, self.gates, self.clock, self.warmup = inner, gates, clock, warmup

    def measure(self, batch: Any) -> tuple[int, int]:
        """As the objective inside."""
        return self.inner.measure(batch)

    def __call__(self, model: nn.Module, batch: Any, scale: float) -> Terms:
        """The summed loss of a batch times `scale`, and this batch's part of the penalty."""
        terms = self.inner(model, batch, scale)
        if not model.training:
            return terms
        progress = min(1.0, self.clock.step / self.warmup) if self.warmup else 1.0
        penalty = self.gates.penalty(progress) * (self.measure(batch)[0] * scale)
        open_now = torch.cat(list(self.gates.open_shares().values())).mean()
        values = {"penalty": penalty.detach(), "open": open_now.detach() * (self.measure(batch)[0] * scale)}
        return Terms(terms.loss + penalty, terms.values | values)


@torch.no_grad()
def folded(model: Transformer, gates: Gates, kept: Kept) -> dict[str, Tensor]:
    """The model's weights with what the gates multiply in them, what goes as zeros. Gates of the stream are 1 where it stays: an
    embedding that is the head as well cannot have them."""
    c = model.config
    gates.eval()
    gates.draw()
    out = {n: p.detach().clone() for n, p in model.named_parameters() if not n.startswith(f"{NAME}.")}
    for new, i in enumerate(kept.layers):
        layer = gates.layer_gate(i)
        for name, gate, wide in (
            ("mlp.down_proj", gates.drawn["ffn"][i] if "ffn" in gates.drawn else None, 1),
            ("self_attn.o_proj", gates.head_gates(i), c.head_dim),
        ):
            weight = out[f"model.layers.{i}.{name}.weight"]
            stays = torch.tensor(kept.ffn[new] if wide == 1 else kept.heads[new])
            if gate is not None:
                only = torch.zeros_like(gate)
                only[stays] = gate[stays]
                weight *= only.repeat_interleave(wide)
            if layer is not None:
                weight *= layer
    return out
