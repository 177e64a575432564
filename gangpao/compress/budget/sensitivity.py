"""What each tensor costs at each type, for all of them in one pass back through the model.

The divergence of a model whose weights are off by d is, to second order, half of d'Fd, where F is the mean of g g' over
gradients g of the log-probability of tokens that the model itself draws (Fisher's information). So one pass back gives a
sample for every tensor, and against the error of every type at once: no model has to be run a second time for a second
type. Errors of two rows have nothing to do with one another (each is rounded by itself), so a row's part is squared and the
parts are added: hundreds of samples a tensor, where the whole tensor would be one. Tokens of different positions are drawn
apart, so their gradients do not cancel in the mean, and a sequence's sum is as good as its parts.

The way back goes layer by layer: memory holds the states before each layer, and the activations of one. After every layer the
gradient is written down, so that a run that was killed goes on below it.

What it gives up: third order (probe.py sees that by running the model), experts, and recurrent layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gangpao import atomic
from gangpao.compress.budget.rounding import rounded
from gangpao.formats.adapters.gguf import gguf_name
from gangpao.formats.architectures import EMBEDDING, HEAD
from gangpao.formats.imatrix import Importance
from gangpao.model.layers import Linear, angles, inverse_frequencies, replace_linears
from gangpao.model.transformer import Transformer, layout

_CHUNK = 1 << 24  # numbers of gradients in memory at once: 64 MB

# tensor -> type -> the part of every sequence, nats a token: their mean is the divergence
Scores = dict[str, dict[str, list[float]]]


class Watched(Linear):
    """A Linear that keeps its input [N, T, C] and, on the way back, the gradient of its output [N, T, R]."""

    x: Tensor
    dy: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if y.requires_grad:
            self.x = x.detach()
            y.register_hook(self._keep)  # type: ignore[no-untyped-call]
        return y

    def _keep(self, gradient: Tensor) -> None:
        self.dy = gradient.detach()


def watch(model: Transformer) -> None:
    """Put Watched in place of the matrices inside the layers; what is computed stays the same."""

    def replace(name: str, linear: Linear) -> Watched | None:
        if not name.startswith("model.layers."):
            return None
        out = Watched.__new__(Watched)
        torch.nn.Module.__init__(out)
        out.in_features, out.out_features = linear.in_features, linear.out_features
        out.weight, out.bias = linear.weight, linear.bias
        return out

    replace_linears(model, replace)


@dataclass(frozen=True, slots=True)
class Errors:
    """Which types each tensor of the file may take, and how a type is reached. keeps: name -> the type that costs nothing, since
    the source has it."""

    candidates: Mapping[str, Sequence[str]]
    keeps: Mapping[str, str]
    importance: Importance | None = None

    def of(self, name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(type, what rounding adds to these rows) for every type that costs anything."""
        columns = self.importance.of(name) if self.importance is not None else None
        for kind in self.candidates[name]:
            if kind != self.keeps.get(name):
                yield kind, rounded(weight, kind, columns) - weight


class Measurement:
    """One pass over ids [N, T]. keep: the folder in which gradients lie in between; None keeps nothing."""

    def __init__(self, model: Transformer, ids: Tensor, errors: Errors, keep: Path | None, seed: int = 0) -> None:
        self.model, self.ids, self.errors, self.keep = model, ids, errors, keep
        self.layers = len(model.model.layers)
        self._generator = torch.Generator().manual_seed(seed)
        self._tied = model.config.tie_word_embeddings

    @torch.no_grad()
    def run(
        self, get: Callable[[str], Any], put: Callable[[str, Scores], None], advance: Callable[[Iterable[str]], None]
    ) -> Scores:
        """All scores. get, put: what was measured before, by stage; advance: gets the tensors that each stage
        gave, those of an earlier run first."""
        states, turns = self._forward()
        found: Scores = {}
        done = next((i for i in range(self.layers) if get(f"layer {i}") is not None), self.layers)
        if self.keep is None or not self._kept(done).is_file():
            done = self.layers
        for number in range(done, self.layers):
            found |= get(f"layer {number}")
        advance(found)
        gradient, top = self._head(states[-1])
        if done < self.layers:
            gradient = torch.from_numpy(np.load(self._kept(done)))
        for number in reversed(range(done)):
            scores, gradient = self._layer(number, states[number], turns, gradient)
            if self.keep is not None:
                with atomic.new_file(self._kept(number)) as path, path.open("wb") as file:
                    np.save(file, gradient.numpy())
            put(f"layer {number}", scores)
            if self.keep is not None:
                self._kept(number + 1).unlink(missing_ok=True)
            found |= scores
            advance(scores)
        if (outer := get("outside")) is None:
            outer = self._outside(*top, gradient * self.model.config.embedding_scale)
            put("outside", outer)
        advance(outer)
        return {**found, **outer}

    def _kept(self, number: int) -> Path:
        return (self.keep or Path()) / f"gradient-{number}.npy"

    def _forward(self) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        """States before every layer and behind the last, and the angles."""
        c = self.model.config
        positions, _ = layout(self.ids, None, 0)
        cos, sin = angles(*inverse_frequencies(c, self.ids.shape[1]), positions)
        states = [self.model.model.embed_tokens(self.ids) * c.embedding_scale]
        for block in self.model.model.layers:
            states.append(block(states[-1], cos, sin, None, None)[0])
        return states, (cos, sin)

    def _head(self, last: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The gradient behind the last layer; inputs of the head, drawn tokens and normalisers, from which its scores come."""
        inputs, drawn, levels, back = [], [], [], []
        weight = self.model.lm_head.weight
        for state in last:
            with torch.enable_grad():
                h = state[None].clone().requires_grad_()
                x = self.model.model.norm(h) * self.model.config.logit_scale
            logits = x[0].detach() @ weight.T
            level = logits.logsumexp(-1)
            p = (logits - level[:, None]).exp()
            token = torch.multinomial(p, 1, generator=self._generator)[:, 0]
            dlogits = F.one_hot(token, p.shape[-1]).to(p.dtype).sub_(p)
            x.backward((dlogits @ weight)[None])
            assert h.grad is not None
            inputs.append(x[0].detach())
            drawn.append(token)
            levels.append(level)
            back.append(h.grad[0])
        return torch.stack(back), (torch.stack(inputs), torch.stack(drawn), torch.stack(levels))

    def _layer(
        self, number: int, state: Tensor, turns: tuple[Tensor, Tensor], gradient: Tensor
    ) -> tuple[Scores, Tensor]:
        block = self.model.model.layers[number]
        with torch.enable_grad():
            h = state.clone().requires_grad_()
            y, _ = block(h, *turns, None, None)
            y.backward(gradient)
        assert h.grad is not None
        scores: Scores = {}
        for inner, module in block.named_modules():
            if isinstance(module, Watched):
                name = gguf_name(f"model.layers.{number}.{inner}.weight")
                if name is None:
                    raise ValueError(f"layer {number}: {inner} has no tensor of its own in a GGUF file (experts)")
                scores[name] = self._scores(name, module.weight, self._of_product(module))
                del module.x, module.dy
        return scores, h.grad

    def _of_product(self, module: Watched) -> Callable[[int, int], Tensor]:
        return lambda begin, end: torch.bmm(module.dy[:, :, begin:end].transpose(1, 2), module.x)

    def _scores(
        self,
        name: str,
        weight: Tensor,
        gradients: Callable[[int, int], Tensor],
        extra: Mapping[str, Tensor] | None = None,
    ) -> dict[str, list[float]]:
        """Parts of the sequences by type. gradients(begin, end): [N, rows, C] of some rows; extra: by type what another use of the
        tensor adds to a row's product with its error [N, R]."""
        n, rows = len(self.ids), len(weight)
        sums: dict[str, Tensor] = {kind: torch.zeros(n, dtype=torch.float64) for kind in self.errors.candidates[name]}
        at_once = max(1, _CHUNK // (n * weight.shape[1]))
        for begin in range(0, rows, at_once):
            part = weight[begin : begin + at_once]
            g = gradients(begin, begin + len(part))
            for kind, error in self.errors.of(name, part):
                products = torch.linalg.vecdot(g, error[None])
                if extra is not None:
                    products = products + extra[kind][:, begin : begin + len(part)]
                sums[kind] += products.double().square().sum(1)
        return {kind: (total / (2 * self.ids.shape[1])).tolist() for kind, total in sums.items()}

    def _outside(self, inputs: Tensor, drawn: Tensor, levels: Tensor, gradient: Tensor) -> Scores:
        """Of the embedding and the head; where they are one tensor, of both uses together."""
        table, head = self.model.model.embed_tokens.weight, self.model.lm_head.weight
        found: Scores = {}

        def at_head(begin: int, end: int) -> Tensor:
            d = (inputs @ head[begin:end].T - levels[..., None]).exp_().neg_()
            inside = (drawn >= begin) & (drawn < end)
            n, t = inside.nonzero(as_tuple=True)
            d[n, t, drawn[n, t] - begin] += 1
            return torch.bmm(d.transpose(1, 2), inputs)

        name, own = gguf_name(EMBEDDING), gguf_name(HEAD)
        assert name is not None
        assert own is not None
        used, place = torch.unique(self.ids, return_inverse=True)
        errors = dict(self.errors.of(name, table[used]))
        products = {
            kind: torch.zeros(len(self.ids), len(used)).scatter_add_(1, place, (gradient * error[place]).sum(-1))
            for kind, error in errors.items()
        }
        if self._tied:
            whole = {kind: torch.zeros(len(self.ids), len(table)) for kind in errors}
            for kind, sums in products.items():
                whole[kind][:, used] = sums
            found[name] = self._scores(name, table, at_head, whole)
            return found
        t = 2 * self.ids.shape[1]
        zero = {kind: [0.0] * len(self.ids) for kind in self.errors.candidates[name]}
        found[name] = zero | {k: (s.double().square().sum(1) / t).tolist() for k, s in products.items()}
        found[own] = self._scores(own, head, at_head)
        return found
