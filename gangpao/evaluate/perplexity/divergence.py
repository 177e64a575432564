"""Two models on the same tokens: how far their predictions are apart, token by token.

KLD is sum(p log(p / q)) over the vocabulary, p of the base and q of the model that is measured, in nats. dp is q - p for the token
that the text has. Against a saved file the base is what its 16 bits say (base_logits.py), and tokens less likely than e^-16 do
not enter, both as in llama-perplexity; against a model the base is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao.engine import exact
from gangpao.evaluate.perplexity.base_logits import REACH

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(slots=True)
class Compared:
    """Rows of a window: nll of the base, KLD and dp [R], and on how many both have the same best token."""

    nll: Doubles
    kld: Doubles
    dp: Doubles
    same_top: int

    @classmethod
    def joined(cls, parts: list[Compared]) -> Compared:
        """One behind the other."""
        nll, kld, dp = (np.concatenate([getattr(p, name) for p in parts]) for name in ("nll", "kld", "dp"))
        return cls(nll, kld, dp, sum(p.same_top for p in parts))


def compare(
    base: Floats | Doubles, logits: Floats, norms: Doubles, targets: npt.NDArray[np.int64], cut: bool
) -> Compared:
    """Log-probabilities [R, V] of the base beside logits [R, V] with their log(sum(e^logit)), and the tokens [R] of the text.

    cut: leave out what is less likely than e^-16, as llama-perplexity does.
    """
    rows = np.arange(len(targets))
    nll_base = -base[rows, targets].astype(np.float64)
    nll = norms - logits[rows, targets]
    # Not through a sum of squares or BLAS: numpy's pairwise sum has one order on every machine.
    kld = np.array([_kld(p, q, norm, cut) for p, q, norm in zip(base, logits, norms, strict=True)])
    same = int(np.count_nonzero(base.argmax(axis=1) == logits.argmax(axis=1)))
    return Compared(nll_base, kld, exact.exp(-nll) - exact.exp(-nll_base), same)


def _kld(base: Floats | Doubles, logits: Floats, norm: float, cut: bool) -> float:
    if cut:
        kept = base > -REACH
        base, logits = base[kept], logits[kept]
    return float((exact.exp(base) * (base.astype(np.float64) - logits + norm)).sum())
