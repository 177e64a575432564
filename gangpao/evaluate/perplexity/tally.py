"""From answers of windows to scores: sums in total, by part and by language, and what they say at the end.

An answer is what the journal keeps of a window: sums, and against another model the KLD and dp of every token, because their
percentiles cannot be had from sums.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gangpao.evaluate.perplexity.divergence import Compared
from gangpao.evaluate.perplexity.statistics import Quotient, naive, percentiles, perplexity_of
from gangpao.evaluate.results import TaskResult

Doubles = npt.NDArray[np.float64]
Answer = dict[str, Any]
_ENOUGH_DOCUMENTS = 20  # from so many on they are the clusters of standard errors; below, windows are


def answer_of(log_probs: Doubles, compared: Compared | None, seconds: float) -> Answer:
    """What is kept of a window whose tokens had these log-probabilities."""
    nll = -log_probs
    answer: Answer = {"nll": float(nll.sum()), "squares": float((nll * nll).sum()), "seconds": round(seconds, 4)}
    if compared is None:
        return answer
    more = {"nll_base": float(compared.nll.sum()), "same": compared.same_top}
    return answer | more | {"kld": _written(compared.kld), "dp": _written(compared.dp)}


def _written(values: Doubles) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def values_of(answer: Answer, name: str) -> Doubles:
    """kld or dp of a window's tokens."""
    return np.frombuffer(base64.b64decode(answer[name]), "<f4").astype(np.float64)


def stored(value: Any) -> Answer:
    """A window's answer in a journal. Raises ValueError for anything else."""
    names = ("nll", "squares", "seconds", *(("nll_base", "same") if isinstance(value, dict) and "kld" in value else ()))
    if not isinstance(value, dict) or not all(isinstance(value.get(name), int | float) for name in names):
        raise ValueError(f"{value!r:.60}: no answer of a window")
    if "kld" in value:
        values_of(value, "kld")
        values_of({"dp": None} | value, "dp")
    return value


def sums_of(answer: Answer, tokens: int) -> dict[str, float]:
    """What is added up over tokens."""
    sums = {"nll": answer["nll"]}
    if "kld" in answer:
        kld, dp = values_of(answer, "kld"), values_of(answer, "dp")
        gap = answer["nll"] - answer["nll_base"]
        sums |= {"nll_base": answer["nll_base"], "gap": gap, "same": float(answer["same"])}
        sums |= {"kld": float(kld.sum()), "dp": float(dp.sum()), "dp2": float((dp * dp).sum())}
    assert tokens > 0
    return sums


@dataclass(slots=True)
class Clusters:
    """Quotients over tokens by name, and the negative log-likelihood over bytes."""

    over_tokens: dict[str, Quotient] = field(default_factory=dict)
    over_bytes: Quotient = field(default_factory=Quotient)

    def add(self, sums: Mapping[str, float], tokens: int, nbytes: int) -> None:
        for name, value in sums.items():
            self.over_tokens.setdefault(name, Quotient()).add(value, tokens)
        self.over_bytes.add(sums["nll"], nbytes)


@dataclass(slots=True)
class Scope:
    """The sums of everything, of a part, or of a language."""

    windows: Clusters = field(default_factory=Clusters)
    documents: Clusters = field(default_factory=Clusters)
    squares: float = 0.0

    @property
    def clusters(self) -> Clusters:
        """Those that standard errors are taken from."""
        return self.documents if self.documents.over_bytes.clusters >= _ENOUGH_DOCUMENTS else self.windows

    @property
    def count(self) -> int:
        """Windows."""
        return self.windows.over_bytes.clusters

    @property
    def perplexity(self) -> float:
        nll = self.windows.over_tokens["nll"]
        return perplexity_of(nll.x, nll.n)

    @property
    def bits_per_byte(self) -> float:
        return self.windows.over_bytes.value / math.log(2)

    @property
    def naive_stderr(self) -> float | None:
        """Of the perplexity, as llama-perplexity says it."""
        total = self.windows.over_tokens["nll"]
        error = naive(total.x, self.squares, int(total.n))
        return None if error is None else error * self.perplexity


@dataclass(slots=True)
class Tally:
    """Add every window in order, then `finish`."""

    total: Scope = field(default_factory=Scope)
    parts: dict[str, Scope] = field(default_factory=dict)
    languages: dict[str, Scope] = field(default_factory=dict)
    seconds: float = 0.0
    computed: int = 0  # ids that went through the model
    _kld: list[Doubles] = field(default_factory=list)
    _document: tuple[int, str, str] | None = None
    _sums: dict[str, float] = field(default_factory=dict)
    _tokens: int = 0
    _bytes: int = 0

    def add(self, document: tuple[int, str, str], answer: Answer, tokens: int, nbytes: int) -> None:
        """A window of a document (its number, part and language)."""
        if document != self._document:
            self.finish()
            self._document = document
        sums = sums_of(answer, tokens)
        for scope in self._scopes(document):
            scope.windows.add(sums, tokens, nbytes)
            scope.squares += answer["squares"]
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in sums.items()}
        self._tokens, self._bytes = self._tokens + tokens, self._bytes + nbytes
        self.seconds += answer["seconds"]
        if "kld" in answer:
            self._kld.append(values_of(answer, "kld").astype(np.float32))

    def _scopes(self, document: tuple[int, str, str]) -> list[Scope]:
        _, part, language = document
        parts, languages = self.parts.setdefault(part, Scope()), self.languages.setdefault(language, Scope())
        return [self.total, parts, languages]

    def finish(self) -> None:
        """Close the last document. Harmless twice."""
        if self._document is not None:
            for scope in self._scopes(self._document):
                scope.documents.add(self._sums, self._tokens, self._bytes)
        self._document, self._sums, self._tokens, self._bytes = None, {}, 0, 0

    def groups(self) -> dict[str, Scope]:
        """Scores by part where there are several, else by language where there are; else nothing."""
        for scopes in (self.parts, self.languages):
            if len(scopes) > 1:
                return scopes
        return {}

    def kld_percentiles(self) -> dict[str, float]:
        return percentiles(np.concatenate(self._kld)) if self._kld else {}


def task_results(tally: Tally, common: Mapping[str, Any], bits_first: bool) -> list[TaskResult]:
    """Every score. common: what all results say alike. bits_first: tables show bits per byte, not perplexity."""
    total, groups = tally.total, tally.groups()
    clusters = total.clusters

    def result(metric: str, value: float, stderr: float | None, **more: Any) -> TaskResult:
        settings = {"higher_is_better": False, "items": total.count, "main": False} | dict(common) | more
        return TaskResult(metric=metric, value=value, stderr=stderr, mode="perplexity", **settings)

    error = clusters.over_tokens["nll"].stderr
    ppl, bits = total.perplexity, total.bits_per_byte
    bits_error = _times(clusters.over_bytes.stderr, 1 / math.log(2))
    found = [
        result("perplexity", ppl, _times(error, ppl), main=not bits_first, parts={k: v.perplexity for k, v in groups.items()}),
        result("bits_per_byte", bits, bits_error, main=bits_first, parts={k: v.bits_per_byte for k, v in groups.items()}),
    ]  # fmt: skip
    if len(tally.parts) > 1 and len(tally.languages) > 1:
        by_language = {name: scope.bits_per_byte for name, scope in tally.languages.items()}
        found.append(result("bits_per_byte_by_language", bits, bits_error, parts=by_language))
    return found + ([] if "kld" not in clusters.over_tokens else _divergence(tally, groups, result))


def _divergence(tally: Tally, groups: Mapping[str, Scope], result: Any) -> list[TaskResult]:
    over, q = tally.total.clusters.over_tokens, tally.total.windows.over_tokens
    base = perplexity_of(q["nll_base"].x, q["nll_base"].n)
    rms = math.sqrt(q["dp2"].value)
    kld_parts = {name: scope.windows.over_tokens["kld"].value for name, scope in groups.items()}
    return [
        result("kl_divergence", q["kld"].value, over["kld"].stderr, main=True, parts=kld_parts),
        *(result(f"kl_divergence_{name}", value, None) for name, value in tally.kld_percentiles().items()),
        result("perplexity_base", base, _times(over["nll_base"].stderr, base)),
        result("ln_perplexity_ratio", q["gap"].value, over["gap"].stderr),
        result("delta_p_mean", q["dp"].value, over["dp"].stderr, higher_is_better=True),
        result("delta_p_rms", rms, _times(over["dp2"].stderr, 0.5 / rms) if rms else None),
        result("same_top", q["same"].value, over["same"].stderr, higher_is_better=True),
    ]


def _times(error: float | None, factor: float) -> float | None:
    return None if error is None else error * factor


def table(results: Sequence[TaskResult]) -> list[str]:
    """Lines for a terminal: every metric with its error, then the parts of the first two."""
    lines = []
    for r in results:
        plus = "" if r.stderr is None else f" ± {r.stderr:.2g}"
        lines.append(f"{r.metric:26} {r.value:12.6g}{plus}")
    names = results[0].parts
    if names:
        lines += ["", f"{'part':26} {'perplexity':>12} {'bits/byte':>12}"]
        lines += [f"{name:26.26} {results[0].parts[name]:12.4f} {results[1].parts[name]:12.4f}" for name in names]
    return lines
