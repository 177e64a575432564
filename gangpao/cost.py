"""What an answer costs: tokens per yuan from speed, the machine's price and lifetime, its power and electricity.

The idea: a machine costs its price spread evenly over its lifetime, plus the electricity while it works. A second of
it then has a price in yuan, and everything else is division. Pure arithmetic; the prices live in a dated TOML
(cost.toml), and a file of the same form in the user's configuration folder is merged over it.

Measured against the MiniCPM report's own example: a phone chip of 600 yuan, used for 5 years at 7.5 tokens a second,
without electricity, gives 5 * 365 * 86400 * 7.5 / 600 = 1.97 million tokens for 1 yuan. The report prints 1.7 million,
which would fit 6.5 tokens a second. We keep the arithmetic.

A machine that works only a share of its life (`utilisation`) spreads its price, or its rent, over that share; the default
of 1 takes it as busy its whole life.

What it gives up: power drawn while idle, interest, resale.
"""

import functools
import math
from datetime import date
from pathlib import Path

from gangpao.config import Frozen, config_dir, load_toml
from gangpao.validation import ConfigDict, Field

SECONDS_PER_YEAR = 365 * 86400
JOULES_PER_KWH = 3.6e6


class CostProfile(Frozen):
    """A machine and what it costs to have and to run."""

    model_config = ConfigDict(allow_inf_nan=False)

    title: str = Field(min_length=1, description="What the machine is.")
    price_yuan: float = Field(0.0, ge=0, description="What it was bought for, yuan.")
    lifetime_years: float = Field(1.0, gt=0, description="How long it is used, years.")
    power_watts: float = Field(0.0, ge=0, description="Drawn at the socket while it generates, watts.")
    electricity_yuan_per_kwh: float = Field(0.0, ge=0, description="Price of electricity, yuan per kWh.")
    rent_yuan_per_hour: float = Field(0.0, ge=0, description="Rent of a machine that is not ours, yuan per hour.")
    utilisation: float = Field(1.0, gt=0, le=1, description="Share of its life, or of its rent, in which it works.")
    source: str = Field(min_length=1, description="Where these figures are from.")


class Prices(Frozen):
    """The whole file: its date, the profile to use without a choice, and the profiles by name."""

    as_of: date
    default: str
    profiles: dict[str, CostProfile]


@functools.cache
def _load(user_file: Path) -> Prices:
    prices = load_toml(Path(__file__).with_name("cost.toml"), Prices, user_files=[user_file])
    if prices.default not in prices.profiles:
        raise ValueError(f"{user_file}: default: no such profile {prices.default!r}: {', '.join(prices.profiles)}")
    return prices


def load_prices() -> Prices:
    """The prices shipped with the package with the user's cost.toml merged over them."""
    return _load(config_dir() / "cost.toml")


def load_profiles() -> dict[str, CostProfile]:
    """Profiles by name."""
    return dict(load_prices().profiles)


def get_profile(name: str | None = None) -> tuple[str, CostProfile]:
    """The profile of that name with its name, or the default one. Raises ValueError listing the known names."""
    prices = load_prices()
    name = name or prices.default
    if name not in prices.profiles:
        raise ValueError(
            f"cost profile {name!r}: unknown; there are {', '.join(prices.profiles)}. "
            f"Add your own in {config_dir() / 'cost.toml'}"
        )
    return name, prices.profiles[name]


def yuan_per_second(profile: CostProfile) -> float:
    """Price of one second in which this machine works: its share of the purchase, electricity and rent."""
    purchase = profile.price_yuan / (profile.lifetime_years * SECONDS_PER_YEAR)
    electricity = profile.power_watts * profile.electricity_yuan_per_kwh / JOULES_PER_KWH
    return (purchase + profile.rent_yuan_per_hour / 3600) / profile.utilisation + electricity


def yuan(profile: CostProfile, seconds: float) -> float:
    """Price of that much machine time."""
    return yuan_per_second(profile) * seconds


def tokens_per_yuan(profile: CostProfile, tokens_per_second: float) -> float:
    """Tokens that 1 yuan buys at this speed; infinity for a machine that costs nothing."""
    if tokens_per_second < 0:
        raise ValueError(f"tokens_per_second: {tokens_per_second} is below zero")
    price = yuan_per_second(profile)
    return tokens_per_second / price if price else math.inf


def show_yuan(amount: float) -> str:
    """Two significant digits and no exponent: an answer costs far less than a fen."""
    if amount <= 0:
        return "0 yuan"
    digits = max(2, 1 - math.floor(math.log10(amount)))
    return f"{amount:.{digits}f} yuan"


class Meter:
    """Turns seconds of this machine into yuan, by the cost profile of that name or the default one."""

    def __init__(self, profile: str | None = None) -> None:
        self.name, self._profile = get_profile(profile)

    def yuan(self, seconds: float) -> float:
        """Price of that much machine time."""
        return yuan(self._profile, seconds)
