"""Perplexity, bits per byte and divergence of a model by part of the texts, by the measurement of `gangpao eval perplexity`.

Each part is a run of its own, so that each score has its own error; totals are weighted by tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gangpao.compress.compare.texts import TEXTS
from gangpao.engine.generate import Engine
from gangpao.evaluate.perplexity import texts
from gangpao.evaluate.perplexity.run import run_perplexity
from gangpao.evaluate.perplexity.scorers import EngineScorer, check_same_vocabulary
from gangpao.evaluate.perplexity.windows import Windowing
from gangpao.evaluate.results import ModelFacts, RunResult
from gangpao.progress import Progress

CONTEXT = 1024
TOTAL = "all"


@dataclass(frozen=True, slots=True)
class Value:
    """A score with its standard error, where there is one."""

    value: float
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one part of the texts. divergence: mean KL from the reference, nats a token; divergence_99: what 99 % of the tokens stay
    below; same_top: share of tokens at which both think the same one most likely. None for the reference, and beside another
    vocabulary. growth: perplexity over the reference's, by the same tokens, so that its interval is narrow."""

    part: str
    tokens: int
    perplexity: Value
    bits_per_byte: Value
    divergence: Value | None = None
    divergence_99: float | None = None
    same_top: Value | None = None
    growth: Value | None = None


def parts_of(given: Sequence[str | Path], folder: Path) -> dict[str, list[str]]:
    """Parts of the texts and what to give for each; ours are written into the folder where none are given."""
    if given:
        parts: dict[str, list[str]] = {}
        for file in texts.text_files(given):
            parts.setdefault(file.part, []).append(f"{file.part}={file.path}")
        return parts
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for part, documents in TEXTS.items():
        path = folder / f"{part}.jsonl"
        path.write_text(
            "".join(json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in documents), encoding="utf-8"
        )
        found[part] = [f"{part}={path}"]
    return found


def scorer_of(engine: Engine, facts: ModelFacts) -> EngineScorer:
    """The engine as one that gives probabilities."""
    return EngineScorer(engine, facts)


def comparable(reference: EngineScorer, scorer: EngineScorer) -> str:
    """Why there is no divergence between two models; "" where there is."""
    try:
        check_same_vocabulary(reference, scorer)
    except ValueError as error:
        return str(error)
    return ""


def measure(
    scorer: EngineScorer,
    reference: EngineScorer | None,
    parts: dict[str, list[str]],
    out: Path | None,
    limit: int | None,
    progress: Progress,
) -> list[Quality]:
    """A part after the other, and behind them the total where there are several. reference: None gives no divergence."""
    context = min(CONTEXT, scorer.limit, reference.limit if reference else CONTEXT)
    found = []
    for part, given in parts.items():
        run = run_perplexity(
            scorer, given, windowing=Windowing(context, context // 2), against=reference, limit=limit, progress=progress,
            out=out / f"texts-{part}" if out is not None else None,
        )  # fmt: skip
        found.append(_quality(part, run))
    return found if len(found) < 2 else [*found, _total(found)]


def _quality(part: str, run: RunResult) -> Quality:
    scores = {task.metric: task for task in run.tasks}

    def value(metric: str) -> Value | None:
        return Value(scores[metric].value, scores[metric].stderr) if metric in scores else None

    perplexity, bits = value("perplexity"), value("bits_per_byte")
    assert perplexity is not None
    assert bits is not None
    high = scores.get("kl_divergence_p99")
    return Quality(
        part, run.tokens["counted"], perplexity, bits, value("kl_divergence"), None if high is None else high.value,
        value("same_top"), _exp(value("ln_perplexity_ratio")),
    )  # fmt: skip


def _total(parts: Sequence[Quality]) -> Quality:
    """Means over tokens. Bits per byte are a plain mean over the parts, and the 99 % that of the worst part."""
    tokens = [part.tokens for part in parts]
    divergences, tops = [p.divergence for p in parts if p.divergence], [p.same_top for p in parts if p.same_top]
    growths = [p.growth for p in parts if p.growth]
    highs = [p.divergence_99 for p in parts if p.divergence_99 is not None]
    return Quality(
        TOTAL, sum(tokens), _geometric([p.perplexity for p in parts], tokens),
        _mean([p.bits_per_byte for p in parts], [1] * len(parts)), _mean(divergences, tokens) if divergences else None,
        max(highs, default=None), _mean(tops, tokens) if tops else None,
        _geometric(growths, tokens) if growths else None,
    )  # fmt: skip


def _exp(log: Value | None) -> Value | None:
    if log is None:
        return None
    value = math.exp(log.value)
    return Value(value, None if log.error is None else value * log.error)


def _geometric(values: Sequence[Value], weights: Sequence[int]) -> Value:
    logs = [Value(math.log(v.value), None if v.error is None else v.error / v.value) for v in values]
    found = _exp(_mean(logs, weights))
    assert found is not None
    return found


def _mean(values: Sequence[Value], weights: Sequence[int]) -> Value:
    whole = sum(weights)
    mean = math.fsum(v.value * w for v, w in zip(values, weights, strict=True)) / whole
    errors = [v.error for v in values]
    if any(e is None for e in errors):
        return Value(mean)
    return Value(mean, math.hypot(*(e * w for e, w in zip(errors, weights, strict=True) if e is not None)) / whole)
