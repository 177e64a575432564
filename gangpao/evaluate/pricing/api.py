"""Prices of APIs in yuan for a million tokens, from a dated TOML with the user's own merged over it.

A row is either prices in a currency, or a multiple of the MiniCPM report's example, which is all that the report says of GPT-4
and Mistral-Medium. What it gives up: prices by time of day, of cached prompts, and free quotas.
"""

from __future__ import annotations

import functools
from pathlib import Path

from pydantic import ConfigDict, Field, model_validator

from gangpao.config import Frozen, config_dir, load_toml

MILLION = 1e6
DATE = r"^\d{4}-\d{2}(-\d{2})?$"


class Rate(Frozen):
    """What one unit of a currency is in yuan, and since when."""

    yuan: float = Field(gt=0)
    date: str = Field(pattern=DATE)
    source: str = Field(min_length=1)


class Example(Frozen):
    """The report's own example: its inputs, and the result that it prints."""

    profile: str
    tok_s: float = Field(gt=0)
    printed_tokens_per_yuan: float = Field(gt=0)
    source: str


class ApiPrice(Frozen):
    """One API: prices of prompts and answers, or a multiple of the example's price."""

    model_config = ConfigDict(allow_inf_nan=False)

    title: str
    input: float | None = Field(None, ge=0, description="For per_tokens tokens of prompts.")
    output: float | None = Field(None, ge=0, description="For per_tokens tokens of answers.")
    currency: str = "CNY"
    per_tokens: float = Field(MILLION, gt=0)
    times_example: float | None = Field(None, gt=0, description="Price of a token over the example's.")
    scores: dict[str, float] = Field({}, description="Published scores by task, as shares of the best possible.")
    date: str = Field(pattern=DATE)
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> ApiPrice:
        prices = self.input is not None and self.output is not None
        some = self.input is not None or self.output is not None
        if (self.times_example is None) != prices or (some and not prices):
            raise ValueError("a row has input and output, or times_example")
        return self


class ApiPrices(Frozen):
    """The whole file."""

    example: Example
    rates: dict[str, Rate] = Field({}, description="Currencies in yuan.")
    prices: dict[str, ApiPrice]

    def yuan_per_million(self, name: str, input_share: float) -> float:
        """Price of a million tokens, of which input_share are prompts. Raises ValueError without a rate of its currency."""
        row = self.prices[name]
        if row.times_example is not None:
            return row.times_example * MILLION / self.example.printed_tokens_per_yuan
        assert row.input is not None
        assert row.output is not None
        mixed = input_share * row.input + (1 - input_share) * row.output
        return mixed * self._rate(name) * MILLION / row.per_tokens

    def rate_line(self, name: str) -> str:
        """How the currency of a row became yuan, in a line; empty for yuan and for multiples."""
        row = self.prices[name]
        rate = None if row.times_example or row.currency == "CNY" else self.rates.get(row.currency)
        return f"1 {row.currency} = {rate.yuan:g} yuan ({rate.date}, {rate.source})" if rate else ""

    def _rate(self, name: str) -> float:
        currency = self.prices[name].currency
        if currency == "CNY":
            return 1.0
        if currency not in self.rates:
            raise ValueError(
                f"{user_file()}: prices.{name}: no rate for {currency}: add [rates.{currency}] with yuan, date and source"
            )
        return self.rates[currency].yuan


def user_file() -> Path:
    """Where a user's own prices are."""
    return config_dir() / "api_prices.toml"


@functools.cache
def _load(user: Path) -> ApiPrices:
    return load_toml(Path(__file__).with_name("api_prices.toml"), ApiPrices, user_files=[user])


def load() -> ApiPrices:
    """The prices shipped with the package with the user's api_prices.toml merged over them."""
    return _load(user_file())
