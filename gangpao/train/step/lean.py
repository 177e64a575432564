"""AdamW for all weights of a model in three to five bytes a weight, where fp32 takes sixteen.

    weights       bf16, 2 bytes
    rounding      "corrected": 1 byte more, the next 8 bits of a float32 (a master of 24 bits); "stochastic": nothing more, the
    last bit               of bf16 is drawn so that the mean is right
    first moment  1 byte: blocks of 256 share their largest magnitude, in a block steps grow with the square root
    second        "blocks": 1 byte of its root, likewise; "factored": a mean of each row and column, next to nothing (Adafactor)
    gradients     "release": used and let go the moment that the backward pass has each, else 2 bytes (bf16)

Whatever is rounded (weights, moments) is rounded up or down so that the mean over steps is right, because a change smaller than
half a step would else be lost for ever: with beta2 = 0.999 an 8-bit moment would never fall. What decides is no random number but a
low-discrepancy sequence over places and steps, so nothing of it has to be saved and a run that goes on has the same bits.

The norm of the whole gradient is known only when its last part is, and by then the others are used. So with `release`, clipping is
one of two: "exact" goes backward twice, first for the norm and then to update (LOMO, arXiv:2306.09782), which takes twice the time
and leaves guard, clipping and a bad step as they are elsewhere; "each" goes once, holds the update of every matrix to a root mean
square of 1 times the learning rate, as Adafactor does, and from the first gradient that is not finite on updates nothing: what
lies nearer to the output has then moved already. What it gives up: ranks that shard (each has only a part already), micro-batches
with `release`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from gangpao.config import Frozen
from gangpao.model.init import Rule
from gangpao.train.config import OptimizerConfig
from gangpao.train.step.optim import Named
from gangpao.train.step.parallel import is_sharded

BLOCK = 256  # weights that share a scale
TILE = 1 << 18  # weights that are float32 at one time; a multiple of BLOCK
LOW = 8  # bits of a float32 that "corrected" keeps below bf16's 16


class LeanConfig(Frozen):
    """How full tuning saves memory."""

    rounding: Literal["corrected", "stochastic"] = Field(
        default="corrected",
        description="corrected: 8 more bits a weight; stochastic: none, the last bit of bf16 is drawn.",
    )
    second: Literal["blocks", "factored"] = Field(
        default="blocks", description="Second moment: 8 bits a weight, or a mean of each row and column."
    )
    release: bool = Field(default=False, description="Gradients are used as they come, one micro-batch a step.")
    clipping: Literal["exact", "each"] = Field(
        default="exact",
        description="With release. exact: backward twice, as if gradients were kept; each: once, every matrix on its own.",
    )


def bytes_of(shape: torch.Size, dtype: torch.dtype, config: LeanConfig) -> int:
    """Bytes of one parameter with its optimizer state, without its gradient."""
    n = math.prod(shape)
    total = n * dtype.itemsize + (n if dtype == torch.bfloat16 and config.rounding == "corrected" else 0) + 8
    if len(shape) < 2:
        return total + 8 * n
    moment = n + 4 * -(-n // BLOCK)
    factors = 4 * (n // shape[-1] + shape[-1])
    return total + moment + (moment if config.second == "blocks" else factors)


def noise(begin: int, count: int, step: int, like: Tensor) -> Tensor:
    """int32 [count] in [0, 2^16): evenly spread over neighbouring weights and, for each, over neighbouring steps."""
    places = torch.arange(begin, begin + count, dtype=torch.int32, device=like.device)
    return ((places & 0xFFFF) * 27146 + (step * 40503) % 65536) & 0xFFFF  # sqrt(2) - 1 and the golden ratio, times 2^16


def split(values: Tensor, noise_N: Tensor, *, corrected: bool) -> tuple[Tensor, Tensor | None]:
    """float32 [N] as bf16 and the 8 bits below it, int8; without them (None) bf16 is rounded by the noise itself."""
    bits = values.view(torch.int32)
    if not corrected:
        return ((bits + noise_N) >> 16).to(torch.int16).view(torch.bfloat16), None
    bits = (
        bits + (noise_N >> LOW)
    ) >> LOW  # the magnitude's lower bits; a sum may carry into the exponent, which is right
    high = (bits + 128) >> 8
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 8)).to(torch.int8)


def join(weights: Tensor, correction: Tensor | None) -> Tensor:
    """What `split` made two of, float32 [N]."""
    if correction is None:
        return weights.float()
    high = weights.view(torch.int16).to(torch.int32) << 16
    return (high + (correction.to(torch.int32) << LOW)).view(torch.float32)


def encode(values: Tensor, noise_N: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Magnitudes of float32 [N] in blocks: squares of 0 .. levels, with the signs, int32 [N]; and the blocks' largest ones."""
    blocks = torch.nn.functional.pad(values.abs(), (0, -len(values) % BLOCK)).view(-1, BLOCK)
    largest = blocks.amax(dim=1)
    scaled = blocks * (levels * levels / largest.clamp_min(1e-38))[:, None]
    scaled = scaled.flatten()[: len(values)]
    root = scaled.sqrt().floor_().clamp_(max=levels - 1)
    up = (scaled - root * root) / (2 * root + 1) > (noise_N.float() + 0.5) / 65536
    return ((root + up) * values.sign()).to(torch.int32), largest


def decode(codes: Tensor, largest: Tensor, levels: int) -> Tensor:
    """float32 [N] of codes and the largest magnitudes of their blocks."""
    scale = (largest / (levels * levels)).repeat_interleave(BLOCK)[: len(codes)]
    x = codes.float()
    return x * x.abs() * scale


class _Constants(NamedTuple):
    lr_scale: float
    weight_decay: float
    eps: float


class Lean:
    """As gangpao.train.step.optim.Optimizer. `rule` gives each parameter's factors; frozen parameters are left out.

    Parameters of fewer than two dimensions keep float32 moments. Raises ValueError for sharded parameters, and for weights that are
    neither bf16 nor fp32.
    """

    def __init__(
        self, named: Named, rule: Callable[[str], Rule], options: OptimizerConfig, config: LeanConfig | None = None
    ) -> None:
        self.config = config or LeanConfig()
        self.named = {name: p for name, p in named if p.requires_grad}
        self.parameters = list(self.named.values())
        self.betas = (options.beta1, options.beta2)
        self._of = {name: self._constants(rule(name), options) for name in self.named}
        self._state: dict[str, dict[str, Tensor]] = {}
        for name, p in self.named.items():
            if is_sharded(p):
                raise ValueError(
                    f"{name} is sharded: lean optimizers are for whole weights; use kind adamw with shards"
                )
            if p.dtype not in (torch.bfloat16, torch.float32):
                raise ValueError(f"{name} is {p.dtype}: a lean optimizer takes bfloat16 or float32 weights")
            if not p.is_contiguous():
                raise ValueError(f"{name} is a view of other weights; a lean optimizer takes contiguous ones")
        self._release = _Release(self) if self.config.release else None

    @staticmethod
    def _constants(r: Rule, o: OptimizerConfig) -> _Constants:
        return _Constants(r.lr_scale, o.weight_decay * r.decay_scale, o.eps * r.eps_scale)

    @property
    def release(self) -> _Release | None:
        """What the loop has to do otherwise where gradients are not kept; None where they are."""
        return self._release

    def step(self, lr: float) -> None:
        """Update every parameter that has a gradient, at this learning rate times its factor."""
        for name, p in self.named.items():
            if p.grad is not None:
                self.update(name, p.grad, lr)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in self.parameters:
            p.grad = None

    # --- one parameter

    @torch.no_grad()
    def update(self, name: str, gradient: Tensor, lr: float, *, factor: float = 1.0, limit: bool = False) -> None:
        """Update one parameter by a gradient times `factor`. limit: the root mean square of the update, before the learning rate,
        is held to 1."""
        p, state = self.named[name], self._state_of(name)
        state["step"] += 1
        step = int(state["step"])
        flat, g = p.detach().view(-1), gradient.detach().reshape(-1)
        if "rows" in state:
            self._factors(p, g, state, factor, step)
        shrink = 1.0
        if limit:
            total = sum(float(self._direction(name, g, a, factor, step, keep=False).square().sum()) for a in _tiles(p))
            shrink = 1 / max(1.0, math.sqrt(total / p.numel()))
        constants = self._of[name]
        rate = lr * constants.lr_scale
        corrected = "correction" in state
        for begin in _tiles(p):
            part = slice(begin, begin + TILE)
            direction = self._direction(name, g, begin, factor, step)
            correction = state["correction"].view(-1)[part] if corrected else None
            master = join(flat[part], correction)
            master = master * (1 - rate * constants.weight_decay) - direction * (rate * shrink)
            if p.dtype == torch.float32:
                flat[part] = master
                continue
            flat[part], low = split(master, noise(begin, len(master), step, master), corrected=corrected)
            if correction is not None and low is not None:
                correction.copy_(low)

    def _direction(
        self, name: str, gradient: Tensor, begin: int, factor: float, step: int, *, keep: bool = True
    ) -> Tensor:
        """The update of a tile before the learning rate, float32. keep: the moments move."""
        state, (beta1, beta2) = self._state[name], self.betas
        p, part = self.named[name], slice(begin, begin + TILE)
        g = gradient[part].float() * factor
        small = "first" in state and state["first"].dtype == torch.float32
        blocks = slice(begin // BLOCK, (begin + TILE) // BLOCK)
        drawn = noise(begin, len(g), step, g)

        def moved(kind: str, beta: float, value: Tensor, levels: int) -> Tensor:
            """A moment that moved towards `value`: the first as it is, the second through its root."""
            if small:
                new = state[kind][part] * beta + value * (1 - beta)
                if keep:
                    state[kind][part] = new
                return new
            codes, largest = state[kind].view(-1)[part], state[f"{kind}_scale"][blocks]
            old = decode(codes, largest, levels)
            root = kind == "second"
            new = (old.square() if root else old) * beta + value * (1 - beta)
            if keep:
                code, found = encode(new.sqrt() if root else new, drawn if root else drawn ^ 0x5555, levels)
                # A root of zero beside a first moment that is none would be an enormous step.
                codes.copy_(code.clamp_(min=1) if root else code)
                largest.copy_(found)
            return new

        first = moved("first", beta1, g, 127) / (1 - beta1**step)
        if "rows" in state:
            columns = p.shape[-1]
            places = torch.arange(begin, begin + len(g), device=g.device)
            rows = state["rows"][places // columns]
            second = rows * state["columns"][places % columns] / state["rows"].mean().clamp_min(1e-30)
        else:
            second = moved("second", beta2, g.square(), 255)
        return first / ((second / (1 - beta2**step)).sqrt() + self._of[name].eps)

    def _factors(self, p: Tensor, gradient: Tensor, state: dict[str, Tensor], factor: float, step: int) -> None:
        """Move the means of squares of each row and column."""
        beta, columns = self.betas[1], p.shape[-1]
        at_once = max(1, TILE // columns)
        rows, sums = [], torch.zeros_like(state["columns"])
        for part in torch.split(gradient.view(-1, columns), at_once):
            squares = (part.float() * factor).square_()
            rows.append(squares.mean(dim=1))
            sums += squares.sum(dim=0)
        state["rows"].lerp_(torch.cat(rows), 1 - beta)
        state["columns"].lerp_(sums / (p.numel() // columns), 1 - beta)

    def _state_of(self, name: str) -> dict[str, Tensor]:
        """The state of a parameter; zeros before its first update."""
        if name in self._state:
            return self._state[name]
        p = self.named[name]
        n, device = p.numel(), p.device
        state = {"step": torch.zeros((), dtype=torch.int64)}
        if p.dtype == torch.bfloat16 and self.config.rounding == "corrected":
            state["correction"] = torch.zeros(p.shape, dtype=torch.int8, device=device)
        if p.ndim < 2:
            state |= {kind: torch.zeros(n, device=device) for kind in ("first", "second")}
        else:
            scales = -(-n // BLOCK)
            state["first"] = torch.zeros(p.shape, dtype=torch.int8, device=device)
            state["first_scale"] = torch.zeros(scales, device=device)
            if self.config.second == "blocks":
                state["second"] = torch.zeros(p.shape, dtype=torch.uint8, device=device)
                state["second_scale"] = torch.zeros(scales, device=device)
            else:
                state["rows"] = torch.zeros(n // p.shape[-1], device=device)
                state["columns"] = torch.zeros(p.shape[-1], device=device)
        self._state[name] = state
        return state

    # --- checkpoints

    def state(self) -> dict[str, Tensor]:
        """All state as `<kind>.<parameter name>`; what has no state yet is left out."""
        return {f"{kind}.{name}": value for name, kinds in self._state.items() for kind, value in kinds.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave, in another process. Raises ValueError when it belongs to other parameters or options."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if name not in self.named:
                raise ValueError(
                    f"the optimizer's state has {name}, which this model does not train: another model, or frozen"
                )
            found.setdefault(name, {})[kind] = value
        self._state = {}
        for name, kinds in found.items():
            mine = self._state_of(name)
            if mine.keys() != kinds.keys() or any(
                mine[k].shape != v.shape or mine[k].dtype != v.dtype for k, v in kinds.items()
            ):
                raise ValueError(
                    f"the optimizer's state of {name} is {', '.join(kinds)}, this run keeps {', '.join(mine)}; go on with "
                    "the options it was saved with"
                )
            self._state[name] = {k: v.to(mine[k].device) for k, v in kinds.items()}


def _tiles(p: Tensor) -> range:
    return range(0, p.numel(), TILE)


class _Release:
    """Gradients that are used as they come. The loop says what a backward pass is for: `norm`, then `update`, or both at once."""

    def __init__(self, optimizer: Lean) -> None:
        self.optimizer = optimizer
        self.exact = optimizer.config.clipping == "exact"
        self._use: Callable[[str, Tensor], None] = self._measure
        self._squares: list[Tensor] = []
        self._broken = False
        for name, p in optimizer.named.items():
            p.register_post_accumulate_grad_hook(lambda p, name=name: self._take(name, p))  # type: ignore[no-untyped-call]

    def _take(self, name: str, p: Tensor) -> None:
        gradient, p.grad = p.grad, None
        assert gradient is not None
        self._use(name, gradient)

    def _measure(self, name: str, gradient: Tensor) -> None:
        self._squares.append(torch.linalg.vector_norm(gradient, dtype=torch.float32))

    def measuring(self) -> None:
        """The next backward pass is for the norm alone."""
        self._squares, self._use = [], self._measure

    def updating(self, lr: float, factor: float = 1.0) -> None:
        """The next backward pass updates. Unless clipping is exact, it also measures, and stops at what is not finite."""

        def use(name: str, gradient: Tensor) -> None:
            if not self.exact:
                self._measure(name, gradient)
                self._broken = self._broken or not bool(self._squares[-1].isfinite())
                if self._broken:
                    return
            self.optimizer.update(name, gradient, lr, factor=factor, limit=not self.exact)

        self._squares, self._broken, self._use = [], False, use

    def norm(self) -> Tensor:
        """Of all gradients since `measuring` or `updating`."""
        return torch.linalg.vector_norm(torch.stack(self._squares)) if self._squares else torch.zeros(())
