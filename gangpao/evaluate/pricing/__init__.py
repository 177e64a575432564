"""What tokens cost, for `gangpao cost` (commands/cost.py), and quality against price for the report.

measured.py     speeds out of a bench, a suite or a run
devices.toml    phones and how fast they are; devices.py reads it
workload.py     speed and machine -> yuan per million tokens, and which assumption moves that most
api_prices.toml what others ask for; api.py reads it
against.py      scores and prices of several runs and APIs
plots.py        the tornado, and quality against price
text.py         what the command prints
"""

from gangpao.evaluate.pricing.plots import quality_price

__all__ = ["quality_price"]
