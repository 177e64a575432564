"""What a token costs at a speed, and which assumption moves that most.

    Workload        how fast prompts are read and answers written, and how many of the tokens are prompts
    yuan_per_million    of such tokens on a machine
    sensitivity         the same with one assumption at a time at a low and at a high value

What it gives up: assumptions are varied one by one, not together, and their ranges are no probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gangpao import cost
from gangpao.cost import CostProfile

SPEED = "speed"
# Assumption -> factors on its value. A second-hand machine or one twice as dear; half its life or half as long again; the span
# of household tariffs; power at the socket is rarely known better than by half; reserved machines cost half as much.
_FACTORS = {
    "price_yuan": (0.5, 2.0),
    "lifetime_years": (0.5, 1.5),
    "power_watts": (0.5, 1.5),
    "electricity_yuan_per_kwh": (0.5, 2.0),
    "rent_yuan_per_hour": (0.5, 2.0),
    SPEED: (0.7, 1.3),
}
_UTILISATION = (0.1, 1.0)  # one that answers for 2.4 hours a day, and one that never rests
INPUTS = (*_FACTORS, "utilisation")
UNITS = {
    "price_yuan": "yuan", "lifetime_years": "years", "power_watts": "W", "electricity_yuan_per_kwh": "yuan/kWh",
    "rent_yuan_per_hour": "yuan/hour", SPEED: "x", "utilisation": "of the time",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Workload:
    """decode_tps: tokens of answers a second, of all answers together; prefill_tps: of prompts, None where it is not known;
    input_share: tokens of prompts among all, 0 to 1. Raises ValueError for what cannot be priced."""

    decode_tps: float
    prefill_tps: float | None = None
    input_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.input_share <= 1:
            raise ValueError(f"--input-share {self.input_share:g}: a share is between 0 and 1")
        for name, speed in (("answers", self.decode_tps), ("prompts", self.prefill_tps)):
            if speed is not None and not 0 < speed < float("inf"):
                raise ValueError(f"the speed of {name} is {speed:g} tokens/s: it must be above 0")
        if self.input_share and self.prefill_tps is None:
            raise ValueError(
                "--input-share needs the speed of prompts: give --prefill-speed, or a --bench file that has it"
            )

    @property
    def tps(self) -> float:
        """Tokens a second of prompts and answers in their shares."""
        prompts = self.input_share / self.prefill_tps if self.prefill_tps else 0.0
        return 1 / (prompts + (1 - self.input_share) / self.decode_tps)


def yuan_per_million(profile: CostProfile, work: Workload, speed: float = 1.0) -> float:
    """Price of a million tokens. speed: a factor on both speeds."""
    return cost.yuan(profile, cost_seconds(work) / speed)


def cost_seconds(work: Workload) -> float:
    """Seconds of machine for a million tokens."""
    return 1e6 / work.tps


@dataclass(frozen=True, slots=True)
class Swing:
    """One assumption at its low and high value, and the price of a million tokens there, yuan."""

    name: str
    value: float
    low: float
    high: float
    at_low: float
    at_high: float

    @property
    def width(self) -> float:
        """How far the price moves."""
        return abs(self.at_high - self.at_low)


def sensitivity(
    profile: CostProfile, work: Workload, ranges: Mapping[str, tuple[float, float]] | None = None
) -> tuple[list[Swing], list[str]]:
    """The assumptions, the most important first, and the names of those that cannot be varied: zero, without a range in `ranges`.

    ranges: low and high value by name (INPUTS) instead of ours; of `speed` it is a pair of factors.
    Raises ValueError for a value that the profile cannot have.
    """
    out, fixed = [], []
    for name in INPUTS:
        value = 1.0 if name == SPEED else float(getattr(profile, name))
        low, high = (ranges or {}).get(name) or _default_range(name, value)
        if low == high:
            fixed.append(name)
            continue
        at_low, at_high = (_price_at(profile, work, name, at) for at in (low, high))
        out.append(Swing(name, value, low, high, at_low, at_high))
    return sorted(out, key=lambda swing: -swing.width), fixed


def _default_range(name: str, value: float) -> tuple[float, float]:
    if name == "utilisation":
        return min(value, _UTILISATION[0]), _UTILISATION[1]
    low, high = _FACTORS[name]
    return value * low, value * high


def _price_at(profile: CostProfile, work: Workload, name: str, value: float) -> float:
    if name == SPEED:
        if value <= 0:
            raise ValueError(f"--range speed: {value:g} is a factor on the speed and must be above 0")
        return yuan_per_million(profile, work, value)
    return yuan_per_million(changed(profile, {name: value}, "--range"), work)


def changed(profile: CostProfile, values: Mapping[str, object], where: str) -> CostProfile:
    """The profile with other values, checked. Raises ValueError saying `where` they are from."""
    from pydantic import ValidationError

    from gangpao.config import explained

    data = profile.model_dump() | dict(values)
    try:
        return CostProfile.model_validate(data)
    except ValidationError as error:
        raise ValueError(explained(error, CostProfile, data, where)) from error
