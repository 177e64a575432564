"""One MLP cut into experts.

The MLP is a sum over channels, y = sum_f d_f h_f(x) with d_f a column of down; groups S_e of channels are experts,
y = sum_e FFN_e(x). What the architectures compute is sum_e w_e(x) FFN'_e(x) over the k chosen experts, where w is the softmax of
the router's logits among the chosen: it adds up to 1, and the dense sum wants 1 for each expert. So:

- **Scale.** down of expert e is multiplied by a_e. With even weights (1/k) and a_e = k every chosen expert counts once, as in the
  dense model. For k = E nothing is left out: a router of zeros and a_e = E is the dense model, up to rounding. For k < E, a_e = E
  is right on average if the choice is blind (each expert is met in k / E of the cases, with E / k). It is not blind: what is left
  out is small and points elsewhere, so the best a_e is near k. It is fitted: the least squares of y on w_e FFN_e.
- **Weights.** The choice depends on the order of the logits only, so the router may be multiplied by any t > 0: t -> 0 makes
  the weights even, t = 1 are the predicted shares. The best t of a few is taken by the error on windows that nothing was fitted to.
- **Take over** (reconstruct). With choice and weights fixed, the output is linear in all down projections together: features
  w_e h_f for the channels f of the chosen experts. Ridge regression of y on them, towards the scaled projections, lets the chosen
  make up for what the others would have added.
- **Shared channels.** A channel that every expert holds, with its own d_f, has the weight sum_e w_e = 1 whoever is chosen.

Tokens count by the length of the stream that their result goes into, because the next norm divides by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gangpao.compress.experts import cluster, router
from gangpao.compress.experts.config import ExpertsConfig

CHUNK = 1024  # tokens at once where features or outputs of all experts are made
CLUSTER_TOKENS = 8192
_EVEN = 1e-3  # spread of logits whose weights are even to a thousandth
_TEMPERATURES = (0.0, 0.25, 0.5, 1.0)  # 0: even
_DAMPINGS = (0.01, 0.1, 0.3, 1.0)  # of the least squares, in mean squared features
_MULTIPLE = 32  # of a row of experts' down, so that blocks fit


@dataclass(frozen=True, slots=True)
class Mlp:
    """A dense MLP: gate and up [F, D], down [D, F], float32."""

    gate: Tensor
    up: Tensor
    down: Tensor

    def inner(self, x_ND: Tensor) -> Tensor:
        """What goes into down, [N, F]."""
        return F.silu(x_ND @ self.gate.T) * (x_ND @ self.up.T)


@dataclass(frozen=True, slots=True)
class Samples:
    """Tokens at one MLP: its inputs [N, D], how much each token counts [N], and which are only measured with [N]."""

    x: Tensor
    weight: Tensor
    measured: Tensor


@dataclass(frozen=True, slots=True)
class Cut:
    """The experts of a layer. channels: [E, W] of the dense MLP; router [E, D]; down [E, D, W], already scaled."""

    channels: Tensor
    router: Tensor
    down: Tensor
    facts: dict[str, float]


def sizes(channels: int, config: ExpertsConfig) -> tuple[int, int]:
    """Shared channels and channels of one expert alone. Raises ValueError, naming what would do, where they are not whole."""
    own = round(channels * (1 - config.shared) / config.experts)
    if config.shared == 0 and own * config.experts != channels:
        possible = [n for n in range(2, 65) if channels % n == 0]
        raise ValueError(
            f"{channels} channels are not {config.experts} experts of the same size; possible: {', '.join(map(str, possible))}"
        )
    shared = channels - own * config.experts
    while config.shared and own > 1 and (shared + own) % _MULTIPLE:
        own -= 1
        shared = channels - own * config.experts
    if shared < 0 or own < 1:
        raise ValueError(
            f"a shared part of {config.shared} leaves no channels for {config.experts} experts of {channels}"
        )
    return shared, own


@torch.no_grad()
def cut(mlp: Mlp, samples: Samples, config: ExpertsConfig, seed: int) -> Cut:
    """The MLP as experts, fitted to the samples."""
    shared, _ = sizes(len(mlp.gate), config)
    fitted = ~samples.measured
    inner = torch.cat([mlp.inner(x) for x in torch.split(samples.x, CHUNK)])
    energy = shares(inner, mlp)
    common, groups = _groups(energy[fitted].numpy(), shared, config, seed)
    channels = torch.cat([common.expand(len(groups), -1), groups], dim=1)
    problem = Problem(mlp, samples, inner, groups, common)
    if config.chosen == config.experts:
        columns = problem.flat(mlp.down[:, groups].permute(1, 0, 2) * config.experts)
        even = torch.zeros(config.experts, mlp.gate.shape[1])
        return Cut(channels, even, problem.spread(columns), {"held": 1.0, "routed": 1.0, "scaled": 0.0, "error": 0.0})
    parts = problem.parts()
    chooser = router.trained(samples.x[fitted], parts.lengths[fitted], config.router_steps, seed)
    logits = samples.x @ chooser.T
    temperature, scales, scaled = _weighed(parts, logits, samples, config.chosen)
    chooser = chooser * temperature
    weights = weights_of(samples.x @ chooser.T, config.chosen)
    columns = problem.flat(mlp.down[:, groups].permute(1, 0, 2) * scales[:, None, None])
    if config.reconstruct:
        columns = problem.taken_over(columns, weights)
    measured = samples.measured
    kept = (parts.lengths * (weights > 0)).sum(1) / parts.lengths.sum(1).clamp_min(1e-30)
    best = parts.lengths.topk(config.chosen, dim=1).values.sum(1) / parts.lengths.sum(1).clamp_min(1e-30)
    facts = {
        "held": float(best[measured].mean()),
        "routed": float(kept[measured].mean()),
        "scaled": scaled,
        "error": problem.error(columns, weights),
    }
    return Cut(channels, chooser, problem.spread(columns), facts)


def weights_of(logits_NE: Tensor, k: int) -> Tensor:
    """Weights [N, E] of all experts, 0 for those that are not chosen: as the architectures compute them."""
    top = logits_NE.topk(k, dim=1)
    return torch.zeros_like(logits_NE).scatter(1, top.indices, top.values.softmax(dim=1))


def shares(inner_NF: Tensor, mlp: Mlp) -> Tensor:
    """Of each channel the share in a token's energy [N, F]: squared lengths of what the channels add."""
    energy = inner_NF.square() * mlp.down.square().sum(dim=0)
    return energy / energy.sum(dim=1, keepdim=True).clamp_min(1e-30)


def _groups(energy_NF: np.ndarray, shared: int, config: ExpertsConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Channels that all experts hold [S], and those of each expert alone [E, O], in rising order."""
    order = np.argsort(-energy_NF.mean(axis=0), kind="stable")
    common, rest = np.sort(order[:shared]), np.sort(order[shared:])
    step = -(-len(energy_NF) // CLUSTER_TOKENS)
    energy = np.ascontiguousarray(energy_NF[::step, rest])
    if config.clustering == "coactivation":
        owners = cluster.coactivated(energy, config.experts, config.chosen, seed)
    elif config.clustering == "random":
        owners = cluster.at_random(len(rest), config.experts, seed)
    else:
        owners = cluster.in_order(len(rest), config.experts)
    groups = np.stack([rest[owners == e] for e in range(config.experts)])
    return torch.from_numpy(common), torch.from_numpy(groups)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Of every token: products between the experts' outputs [N, E, E], and between each and what is wanted of them [N, E], the
    squared length of that [N], and of the whole output [N]."""

    products: Tensor
    wanted: Tensor
    target: Tensor
    whole: Tensor

    @property
    def lengths(self) -> Tensor:
        """Squared lengths of the experts' outputs [N, E]."""
        return self.products.diagonal(dim1=1, dim2=2)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be fitted. groups: [E, O] channels of the experts alone, common: [S] those of all."""

    mlp: Mlp
    samples: Samples
    inner: Tensor
    groups: Tensor
    common: Tensor

    def flat(self, down_EDO: Tensor) -> Tensor:
        """Columns of the down projections, [S + E * O, D]: of the shared channels as they are, then of each expert."""
        return torch.cat([self.mlp.down[:, self.common].T, down_EDO.permute(0, 2, 1).flatten(0, 1)])

    def spread(self, columns: Tensor) -> Tensor:
        """The same as a down projection for each expert, [E, D, S + O], the shared channels in front."""
        shared = columns[: len(self.common)].T.expand(len(self.groups), -1, -1)
        alone = columns[len(self.common) :].view(*self.groups.shape, -1).permute(0, 2, 1)
        return torch.cat([shared, alone], dim=2).contiguous()

    def parts(self) -> _Parts:
        """The experts' outputs against each other; what is wanted of them is the output less that of the shared channels."""
        found: list[tuple[Tensor, ...]] = []
        for h in torch.split(self.inner, CHUNK):
            outputs = torch.stack([h[:, group] @ self.mlp.down[:, group].T for group in self.groups], dim=1)
            whole = h @ self.mlp.down.T
            wanted = whole - h[:, self.common] @ self.mlp.down[:, self.common].T
            products = outputs @ outputs.transpose(1, 2)
            against = (outputs @ wanted[:, :, None])[:, :, 0]
            found.append((products, against, wanted.square().sum(1), whole.square().sum(1)))
        return _Parts(*(torch.cat(column) for column in zip(*found, strict=True)))

    def taken_over(self, columns: Tensor, weights_NE: Tensor) -> Tensor:
        """Ridge regression of the output on the chosen channels, towards these columns: the best of a few on the measured tokens,
        and the columns themselves where none is better."""
        gram = torch.zeros(len(columns), len(columns))
        against = torch.zeros_like(columns)
        for features, target, count in self._features(weights_NE, ~self.samples.measured):
            gram += features.T @ (features * count[:, None])
            against += features.T @ ((target - features @ columns) * count[:, None])
        mean = gram.diagonal().mean()
        found = [(self.error(columns, weights_NE), columns)]
        for damping in _DAMPINGS:
            damped = gram.double()
            damped.diagonal().add_(damping * mean + 1e-20)
            change = torch.cholesky_solve(against.double(), torch.linalg.cholesky(damped)).float()
            found.append((self.error(columns + change, weights_NE), columns + change))
        return min(found, key=lambda one: one[0])[1]

    def error(self, columns: Tensor, weights_NE: Tensor) -> float:
        """Squared error of the output on the measured tokens, as a share of the output's squared length."""
        wrong = whole = 0.0
        for features, target, count in self._features(weights_NE, self.samples.measured):
            wrong += float(((target - features @ columns).square().sum(1) * count).sum())
            whole += float((target.square().sum(1) * count).sum())
        return wrong / max(whole, 1e-30)

    def _features(self, weights_NE: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What the columns are multiplied by [n, S + E * O], the dense output [n, D], and how much each token counts [n].

        The weights of a token add up to 1, so a shared channel counts once.
        """
        for at in torch.split(rows.nonzero()[:, 0], CHUNK):
            h = self.inner[at]
            alone = h[:, self.groups] * weights_NE[at][:, :, None]
            yield torch.cat([h[:, self.common], alone.flatten(1)], dim=1), h @ self.mlp.down.T, self.samples.weight[at]


def _weighed(parts: _Parts, logits_NE: Tensor, samples: Samples, k: int) -> tuple[float, Tensor, float]:
    """What the router is multiplied by, the scale of each expert [E], and the error that is left on the measured tokens."""
    spread = float(logits_NE.std().clamp_min(1e-20))
    found = []
    for t in _TEMPERATURES:
        temperature = t or _EVEN / spread
        weights = weights_of(logits_NE * temperature, k)
        scales = _scales(parts, weights, samples.weight * ~samples.measured, k)
        part = weights * scales
        error = (
            (part[:, None] @ parts.products @ part[:, :, None])[:, 0, 0]
            - 2 * (part * parts.wanted).sum(1)
            + parts.target
        )
        count = samples.weight * samples.measured
        share = float((error * count).sum() / (parts.whole * count).sum().clamp_min(1e-30))
        found.append((share, temperature, scales))
    share, temperature, scales = min(found, key=lambda one: one[0])
    return temperature, scales, share


def _scales(parts: _Parts, weights_NE: Tensor, count_N: Tensor, k: int) -> Tensor:
    """Least squares of the output on the chosen experts' weighted outputs; k where an expert is hardly met."""
    pair = torch.einsum("n,na,nab,nb->ab", count_N, weights_NE, parts.products, weights_NE).double()
    right = torch.einsum("n,na,na->a", count_N, weights_NE, parts.wanted).double()
    ridge = 1e-3 * pair.diagonal().mean() + 1e-30
    towards = torch.full_like(right, float(k))
    eye = torch.eye(len(pair), dtype=torch.float64)
    scales: Tensor = torch.linalg.solve(pair + ridge * eye, right + ridge * towards)
    return scales.float()
