"""The whole model trained in what its types leave free: d and dmin of every block, weights of norms, biases.

Values, scales and minima stand as they were rounded; the loss is the KL divergence of the float model's predictions from the
rounded model's, on the calibration ids. This is the second phase of EfficientQAT (arXiv:2407.11062) on GGUF's blocks. A scale that
is trained is rounded to F16 in the forward pass, so what is trained is what the file will say.

Every number is trained as a share of what it was (a bias as a share of its vector's mean size), so one learning rate serves all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gangpao import atomic
from gangpao.compress.rounding.config import RoundingConfig
from gangpao.compress.rounding.grids import Held, half
from gangpao.compress.rounding.layers import dense_copy
from gangpao.compress.rounding.store import load_array, save_array
from gangpao.formats.architectures import EMBEDDING
from gangpao.model.layers import Linear, RMSNorm
from gangpao.model.transformer import Block, Transformer
from gangpao.progress import Progress

Floats = npt.NDArray[np.float32]
_CHUNK = 256  # predictions at once: [256, 150,000] as float32 is 150 MB


class _Blocks(torch.autograd.Function):
    """d [R, B], dmin [R, B] -> weights [R, C]; nothing of that size is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, d: Tensor, dmin: Tensor, held: Held) -> Tensor:
        ctx.held = held
        now = Held(held.grid, held.values, held.scale, held.minimum, half(d), half(dmin))
        return _dense(now)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        held: Held = ctx.held
        rows, groups = held.scale.shape
        grouped = grad.view(rows, groups, -1)
        by_group = (grouped * held.values.view_as(grouped)).sum(-1) * held.scale
        low = grouped.sum(-1) * held.minimum
        each = held.grid.groups
        return by_group.view(rows, -1, each).sum(-1), -low.view(rows, -1, each).sum(-1), None


def _dense(held: Held) -> Tensor:
    values = held.values.float()
    return Held(held.grid, values, held.scale, held.minimum, held.d, held.dmin).dense()


class _Share(nn.Module):
    """A vector v that is trained: v * (1 + share), or v + size * share where entries may be zero."""

    def __init__(self, vector: Tensor, additive: bool) -> None:
        super().__init__()
        self.vector = vector.detach().float().clone()
        self.size = self.vector.square().mean().sqrt() if additive else self.vector
        self.share = nn.Parameter(torch.zeros_like(self.vector))

    def forward(self) -> Tensor:
        return self.vector + self.size * self.share


class _Norm(nn.Module):
    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.eps, self.weight = norm.eps, _Share(norm.weight, additive=False)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight()
        return F.rms_norm(x.float(), (x.shape[-1],), weight, self.eps).to(x.dtype)


class RoundedLinear(Linear):
    """A matrix on its grid with d and dmin as shares of change, zero at first; a bias is trained too."""

    def __init__(self, held: Held, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = held.values.shape
        small = held.values.to(torch.int8)  # every type's values fit
        self.held = Held(held.grid, small, held.scale, held.minimum, held.d, held.dmin)
        self.d = nn.Parameter(torch.zeros_like(held.d))
        self.dmin = nn.Parameter(torch.zeros_like(held.dmin), requires_grad=held.grid.most_minimum > 0)
        self.bias = None  # type: ignore[assignment]
        self.shift = None if bias is None else _Share(bias, additive=True)

    def floats(self) -> tuple[Tensor, Tensor]:
        """d and dmin as they are now, not yet rounded."""
        return self.held.d * (1 + self.d), self.held.dmin * (1 + self.dmin)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.shift is None else self.shift()
        return F.linear(x, _Blocks.apply(*self.floats(), self.held), bias)  # type: ignore[no-untyped-call]

    def finished(self) -> Held:
        """The matrix with the scales that were learned."""
        with torch.no_grad():
            d, dmin = (half(t) for t in self.floats())
        h = self.held
        return Held(h.grid, h.values.float(), h.scale, h.minimum, d, dmin)


class Student:
    """The rounded model, and the names of what is trained in it.

    matrices: the rounded ones by Hugging Face's name; plain: all others as a reader will see them.
    """

    def __init__(self, model: Transformer, matrices: Mapping[str, Held], plain: Mapping[str, Tensor]) -> None:
        with torch.device("meta"):
            self.model = Transformer(model.config)
        inner, theirs = self.model.model, model.model
        for number, layer in enumerate(theirs.layers):
            assert isinstance(layer, Block)
            inner.layers[number] = dense_copy(layer)
        inner.embed_tokens = nn.Embedding.from_pretrained(plain[EMBEDDING], freeze=True)  # type: ignore[no-untyped-call]
        inner.norm = RMSNorm(model.config.hidden_size, model.config.rms_norm_eps)
        inner.norm.weight = nn.Parameter(theirs.norm.weight.detach().float().clone())
        self.linears: dict[str, RoundedLinear] = {}
        self.shares: dict[str, _Share] = {}
        self.model.requires_grad_(False)
        self._put(matrices, plain)

    def _put(self, matrices: Mapping[str, Held], plain: Mapping[str, Tensor]) -> None:
        for name, module in list(self.model.named_modules()):
            parent, _, leaf = name.rpartition(".")
            new: nn.Module
            if isinstance(module, RMSNorm):
                new = norm = _Norm(module)
                self.shares[f"{name}.weight"] = norm.weight
            elif isinstance(module, Linear):
                if (held := matrices.get(f"{name}.weight")) is None:
                    new = Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
                    new.weight = nn.Parameter(plain[f"{name}.weight"], requires_grad=False)
                    new.bias = module.bias
                else:
                    new = linear = self.linears[f"{name}.weight"] = RoundedLinear(held, module.bias)
                    if linear.shift is not None:
                        self.shares[f"{name}.bias"] = linear.shift
            else:
                continue
            setattr(self.model.get_submodule(parent), leaf, new)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What is trained, in a fixed order."""
        found = []
        for name, linear in self.linears.items():
            found += [(f"{name}/{p}", getattr(linear, p)) for p in ("d", "dmin") if getattr(linear, p).requires_grad]
        return found + [(name, share.share) for name, share in self.shares.items()]

    def vectors(self) -> dict[str, Floats]:
        """Norms and biases as they are now, float32, by Hugging Face's name."""
        with torch.no_grad():
            return {name: share().numpy() for name, share in self.shares.items()}


def divergence(teacher: Transformer, student: Transformer, ids: Tensor) -> Tensor:
    """Mean KL divergence of predictions, in nats."""
    with torch.no_grad():
        wanted = teacher(ids, dtype=torch.float32).hidden.flatten(0, 1)
    got = student(ids).hidden.flatten(0, 1)
    total = torch.zeros(())
    for begin in range(0, len(got), _CHUNK):
        with torch.no_grad():
            p = F.log_softmax(teacher.logits(wanted[begin : begin + _CHUNK]), -1)
        q = F.log_softmax(student.logits(got[begin : begin + _CHUNK]), -1)
        total = total + F.kl_div(q, p, reduction="sum", log_target=True)
    return total / len(got)


def train(
    teacher: Transformer, student: Student, ids: Tensor, config: RoundingConfig, folder: Path, progress: Progress
) -> list[float]:
    """Train a student in place; the loss of every step. folder: of the checkpoints that a killed run goes on from."""
    parameters = student.parameters()
    optimizer = torch.optim.Adam([p for _, p in parameters], lr=config.lr, betas=(0.9, 0.95))
    losses = _restore(folder, parameters, optimizer)
    progress.start("training scales", config.steps, len(losses))
    windows = _windows(len(ids), config)
    for step in range(config.steps):
        chosen = next(windows)
        if step < len(losses):
            continue
        share = step / config.steps
        rate = config.lr * min(1.0, (step + 1) / 10) * (0.5 + 0.5 * math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = divergence(teacher, student.model, ids[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            _save(folder, parameters, optimizer, losses)
        progress.update(step + 1)
    return losses


def _windows(count: int, config: RoundingConfig) -> Iterator[Tensor]:
    """Which windows a step takes: all of them in a new order, again and again."""
    generator = torch.Generator().manual_seed(0)
    left: list[int] = []
    while True:
        while len(left) < min(config.step_windows, count):
            left += torch.randperm(count, generator=generator).tolist()
        yield torch.tensor(left[: config.step_windows])
        left = left[config.step_windows :]


def _save(
    folder: Path, parameters: list[tuple[str, nn.Parameter]], optimizer: torch.optim.Adam, losses: list[float]
) -> None:
    flat = [torch.cat([p.detach().reshape(-1) for _, p in parameters])]
    flat += [
        torch.cat([optimizer.state[p][key].reshape(-1) for _, p in parameters]) for key in ("exp_avg", "exp_avg_sq")
    ]
    folder.mkdir(parents=True, exist_ok=True)
    save_array(folder / f"step-{len(losses)}.npy", torch.stack(flat).numpy())
    atomic.write_json(folder / "state.json", {"losses": losses})
    for path in folder.glob("step-*.npy"):
        if path.name != f"step-{len(losses)}.npy":
            path.unlink()


def _restore(folder: Path, parameters: list[tuple[str, nn.Parameter]], optimizer: torch.optim.Adam) -> list[float]:
    state = folder / "state.json"
    if not state.exists():
        return []
    losses: list[float] = atomic.read_json(state)["losses"]
    flat = torch.from_numpy(load_array(folder / f"step-{len(losses)}.npy"))
    at = 0
    for _, p in parameters:
        value, mean, square = (t[at : at + p.numel()].view_as(p).clone() for t in flat)
        at += p.numel()
        with torch.no_grad():
            p.copy_(value)
        optimizer.state[p] = {"step": torch.tensor(float(len(losses))), "exp_avg": mean, "exp_avg_sq": square}
    return losses
