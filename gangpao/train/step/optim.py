"""AdamW and Muon behind one face: muP's groups by parameter name, one learning rate in, all state out by name.

Every parameter has a rule (gangpao.model.init.rule_of): a factor on the learning rate and whether it decays. AdamW is
torch's fused one, a single pass over memory. Muon takes the matrices inside the layers and AdamW the rest: it replaces the
averaged gradient by the nearest orthogonal matrix, so that rare directions learn as fast as common ones.

Muon's update is scaled to the size AdamW's usually has (root mean square 0.2; Moonshot, arXiv:2502.16982), so learning rate,
weight decay and muP factors mean the same for both.

adamh and muonh are the hyperball (arXiv:2606.16899): each of these matrices keeps the Frobenius norm that it began with, and a step
of the base optimizer turns it by the learning rate, whatever its length was. There is no weight decay to choose, and no factor of
muP: a turn means the same at every width.

What it gives up: speed of Muon and of the hyperball on sharded matrices. They want whole ones, so each rank gathers them and does
the work of all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gangpao.model.init import Rule
from gangpao.train.config import OptimizerConfig
from gangpao.train.step.parallel import is_sharded, like, whole

# Quintic Newton-Schulz, tuned for steepness at zero rather than for exact ones: singular values land in about
# [0.7, 1.2] after five rounds (Keller Jordan, Muon, 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
MUON_RMS = 0.2

Named = Iterable[tuple[str, nn.Parameter]]


def orthogonalize(matrices_KMN: Tensor) -> Tensor:
    """About the nearest orthogonal matrix of each of K matrices: singular values to one, vectors kept."""
    a, b, c = NEWTON_SCHULZ
    x = matrices_KMN / matrices_KMN.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the square that is formed has the short side
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    done: Tensor = x.mT if tall else x
    return done


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum whose step is orthogonalized. Matrices of one shape go through together."""

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for same in shapes.values():
                self._update(same, group)

    def _update(self, same: list[Tensor], group: dict[str, Any]) -> None:
        buffers, gradients = [], [p.grad for p in same if p.grad is not None]
        for p in same:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(self.state[p]["momentum_buffer"])
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])
        work = torch.bfloat16 if same[0].is_cuda else torch.float32  # bf16 is enough, and on a CPU it is rarely faster
        stacked = torch.stack([whole(matrix) for matrix in ahead]).to(work)
        updates = [like(u, p) for u, p in zip(orthogonalize(stacked).to(same[0].dtype), same, strict=True)]
        torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(same, updates, alpha=-group["lr"] * MUON_RMS * math.sqrt(max(same[0].shape)))


class Hyperball(torch.optim.Optimizer):
    """Matrices that stay on the sphere they began on: W <- R unit(W - lr R unit(u)), R the first norm of W, u the step of `base`.

    base: the optimizer whose direction is taken; its own learning rate is 1 and it has no decay.
    """

    def __init__(
        self, groups: list[dict[str, Any]], base: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    ) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.base = base([{**group, "lr": 1.0, "weight_decay": 0.0} for group in groups])
        self.state = self.base.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One turn of every matrix that has a gradient."""
        assert closure is None
        turned = [(p, group["lr"]) for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.detach().clone() for p, _ in turned]
        self.base.step()
        for (p, lr), start in zip(turned, before, strict=True):
            state = self.state[p]
            if "radius" not in state:
                state["radius"] = whole(start).norm()
                if not float(state["radius"]) > 0:
                    raise ValueError(
                        f"a matrix of {tuple(p.shape)} begins at zero, where there is no sphere to stay on: take adamw or muon"
                    )
            radius, update = state["radius"], start - p
            length = whole(update).norm().clamp_min(1e-12)
            moved = start - update * (lr * radius / length)
            p.copy_(moved * (radius / whole(moved).norm().clamp_min(1e-12)))


class Optimizer:
    """The optimizers of a run. `rule` gives each parameter's factor and decay; frozen parameters are left out."""

    release = None  # gradients are kept until the update; see gangpao.train.step.lean

    def __init__(self, named: Named, rule: Callable[[str], Rule], options: OptimizerConfig) -> None:
        self.named = {name: p for name, p in named if p.requires_grad}
        self.parameters = list(self.named.values())
        ours = {name for name, p in self.named.items() if options.kind != "adamw" and _is_inner_matrix(name, p)}
        rest = self._groups([n for n in self.named if n not in ours], rule, options)
        self.parts: list[torch.optim.Optimizer] = []

        def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            return torch.optim.AdamW(groups, lr=0.0, betas=(options.beta1, options.beta2), fused=True)

        def muon(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            return Muon(groups, momentum=options.momentum)

        if rest:
            self.parts.append(adamw(rest))
        if ours:
            groups = self._groups([n for n in self.named if n in ours], rule, options)
            base = adamw if options.kind == "adamh" else muon
            if options.kind == "muon":
                self.parts.append(muon(groups))
            else:
                turning = [{**group, "lr_scale": options.turn} for group in groups]
                self.parts.append(Hyperball(turning, base))

    def _groups(self, names: list[str], rule: Callable[[str], Rule], options: OptimizerConfig) -> list[dict[str, Any]]:
        groups: dict[Rule, list[nn.Parameter]] = defaultdict(list)
        for name in names:
            groups[rule(name)._replace(std=None)].append(self.named[name])
        return [
            {
                "params": found,
                "lr_scale": r.lr_scale,
                "weight_decay": options.weight_decay * r.decay_scale,
                "eps": options.eps * r.eps_scale,
            }
            for r, found in groups.items()
        ]

    def step(self, lr: float) -> None:
        """Update every parameter at this learning rate times its factor."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * group["lr_scale"]
            part.step()
        # torch's fused AdamW changes weights without moving their versions (2.13), and whoever keeps something that was made of a
        # weight (quantization-aware training) looks at these.
        torch.autograd.graph.increment_version([p for p in self.parameters if p.grad is not None and not is_sharded(p)])

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in self.parameters:
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """All state as `<kind>.<parameter name>`; what has no state yet is left out."""
        names = {id(p): name for name, p in self.named.items()}
        return {
            f"{kind}.{names[id(p)]}": value
            for part in self.parts
            for p, kinds in part.state.items()
            for kind, value in kinds.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave, in another process. Raises ValueError when it belongs to other parameters."""
        owner = {id(p): part for part in self.parts for group in part.param_groups for p in group["params"]}
        for part in self.parts:
            part.state.clear()
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if name not in self.named:
                raise ValueError(
                    f"the optimizer's state has {name}, which this model does not train: another model, or frozen"
                )
            p = self.named[name]
            part = owner[id(p)]
            # The step count stays where torch wants it: fused AdamW on a GPU keeps it there too.
            part.state[p][kind] = like(value, p)


def _is_inner_matrix(name: str, p: nn.Parameter) -> bool:
    return p.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name


class Average:
    """An exponential moving average of the weights (EMA), for the export; training does not see it."""

    def __init__(self, named: Named, decay: float) -> None:
        self.decay = decay
        self.named = dict(named)
        self.values = {name: p.detach().clone() for name, p in self.named.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move a little towards the weights of now."""
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in self.named.values()], 1 - self.decay)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over saved values."""
        for name, value in self.values.items():
            value.copy_(like(state[name], value))
