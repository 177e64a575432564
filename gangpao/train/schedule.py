"""The learning rate of a step, by pure functions: warmup, stable, decay (WSD), and cosine and linear to compare with.

WSD (MiniCPM, arXiv:2404.06395, section 4) warms up in W steps, stays at the peak as long as data keeps coming, and decays
only at the end. A decay can begin at any stable checkpoint, so one long run answers "how good after 10, 20, 30 billion
tokens?" where cosine needs a run for each.

`step` counts optimizer steps from 1, and every function returns a factor of the peak between 0 and 1.

What it gives up: no restarts, no schedule that looks at the loss.
"""

import math
from typing import Literal, NamedTuple

Kind = Literal["wsd", "wsd_linear", "cosine", "linear", "constant"]


def warm(step: int, warmup: int) -> float:
    """step / warmup during the first steps, then 1."""
    return min(1.0, step / warmup) if warmup else 1.0


def wsd(step: int, *, warmup: int, decay_start: int, half_life: float) -> float:
    """The paper's form: s/W, then 1, then 0.5 ** ((s - S) / half_life) from step S = decay_start on."""
    if step <= decay_start:
        return warm(step, warmup)
    return float(0.5 ** ((step - decay_start) / half_life))


def wsd_linear(step: int, *, warmup: int, decay_start: int, total: int, final: float) -> float:
    """WSD with a straight line from the peak to `final` at the last step (WarmupStableDrop of MiniCPM's code)."""
    if step <= decay_start:
        return warm(step, warmup)
    return 1.0 - (1.0 - final) * min(1.0, (step - decay_start) / (total - decay_start))


def cosine(step: int, *, warmup: int, total: int, final: float) -> float:
    """Half a cosine from the peak after warmup to `final` at the last step."""
    if step <= warmup:
        return warm(step, warmup)
    done = min(1.0, (step - warmup) / (total - warmup))
    return final + (1.0 - final) * (1.0 + math.cos(math.pi * done)) / 2


def linear(step: int, *, warmup: int, total: int, final: float) -> float:
    """A straight line from the peak after warmup to `final` at the last step."""
    return wsd_linear(step, warmup=warmup, decay_start=warmup, total=total, final=final)


def half_life_to(final: float, decay_steps: int) -> float:
    """The half-life with which a decay of that many steps ends at `final` of the peak: 10 % takes 3.3 half-lives."""
    return decay_steps / -math.log2(final)


class Schedule(NamedTuple):
    """A whole run. peak is the learning rate at factor 1; decay_start = total means that no step decays."""

    kind: Kind
    peak: float
    total: int
    warmup: int = 0
    decay_start: int = 0
    half_life: float = 1.0
    final: float = 0.1

    def factor(self, step: int) -> float:
        """The factor of the peak at a step counted from 1."""
        match self.kind:
            case "wsd":
                return wsd(step, warmup=self.warmup, decay_start=self.decay_start, half_life=self.half_life)
            case "wsd_linear":
                start = self.decay_start
                return wsd_linear(step, warmup=self.warmup, decay_start=start, total=self.total, final=self.final)
            case "cosine":
                return cosine(step, warmup=self.warmup, total=self.total, final=self.final)
            case "linear":
                return linear(step, warmup=self.warmup, total=self.total, final=self.final)
            case "constant":
                return warm(step, self.warmup)

    def learning_rate(self, step: int) -> float:
        """The learning rate at a step counted from 1."""
        return self.peak * self.factor(step)
