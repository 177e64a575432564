"""What every experiment is made of: trials that it asks for, and an outcome of facts.

An experiment is a function `run(lab, submit) -> Outcome`. `submit(specs)` returns their results in the same order, however
long that takes; results that are known already come at once. It may be called several times, when later trials follow
from earlier results. text/page.py says the facts in words and writes both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gangpao.atomic import read_json
from gangpao.config import Frozen
from gangpao.sandbox.laws.verdict import Verdict
from gangpao.sandbox.reasons import Reason
from gangpao.sandbox.trials.trial import Result, Spec
from gangpao.units import utc_now

Submit = Callable[[Sequence[Spec]], list[Result]]


class LeftOut(Frozen):
    """What was not used. kind: which words name it (text/page.py); values: what it is; state: how a trial ended; reason: why."""

    kind: str
    values: dict[str, Any]
    state: str | None = None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an experiment found.

    facts: numbers, codes and intervals, as JSON has them, among them all that its table, plot and sentences are made of. verdicts:
    the questions that it answers, each by its interval. left_out: trials and points that were not used. results: of all trials.
    """

    name: str
    facts: dict[str, Any]
    results: list[Result]
    verdicts: Sequence[Verdict] = ()
    left_out: Sequence[LeftOut] = field(default_factory=list)

    def record(self, made: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The outcome as plain data, equal to what a JSON file of it gives back, with what its trials cost. made: of
        `provenance`."""
        unique = {r.key: r for r in self.results}.values()
        found = {
            "name": self.name,
            "written": utc_now(),
            "verdicts": [v.json() for v in self.verdicts],
            "facts": self.facts,
            "left_out": [one.model_dump(mode="json") for one in self.left_out],
            "trials": len(unique),
            "flops": sum(r.flops for r in unique),
            "seconds": sum(r.seconds for r in unique),
            "busy": sum(r.busy for r in unique),
            "yuan": sum(r.yuan for r in unique),
            "made": made,
        }
        return dict(json.loads(json.dumps(found, allow_nan=False)))


def read_outcome(path: Path) -> dict[str, Any]:
    """An outcome.json. Raises ValueError saying what to do where it is none of this version."""
    found = read_json(path)
    if not isinstance(found, dict) or not {"name", "facts", "verdicts", "left_out"} <= found.keys():
        raise ValueError(
            f"{path}: not an outcome of this version; run `gangpao sandbox {path.parent.name}` again: no finished trial is trained"
        )
    return found


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def ended_badly(results: Sequence[Result]) -> list[LeftOut]:
    """The trials that have no loss, and why."""
    bad = {r.key: r for r in results if r.bpb is None}
    return [LeftOut(kind="trial", values=_named(r.spec), state=r.state, reason=reason_of(r)) for r in bad.values()]


def reason_of(r: Result) -> Reason | None:
    """Why a trial has no loss; None where it does not say."""
    return Reason.of("no_text") if r.state == "done" else r.reason


def _named(q: Spec) -> dict[str, Any]:
    size = f"{q.width}x{q.layers}"
    own = {"size": size, "rule": q.rule, "optimizer": q.optimizer, "lr": q.lr, "batch": q.batch_tokens}
    return own | {"tokens": q.tokens, "seed": q.seed}
