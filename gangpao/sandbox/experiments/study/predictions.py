"""What the laws say of larger runs, written down before those runs are submitted and never changed afterwards.

predictions.json has a `Prediction` for each target and law, with its time, and the fingerprint of the points that the laws were
fitted to. From the same points a prediction of the same target by the same law under the same floor is made once: later ones keep
its time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gangpao.atomic import read_json, write_json
from gangpao.config import Frozen
from gangpao.sandbox.experiments.study.study import Fitted, fingerprint
from gangpao.sandbox.trials.trial import Lab, Result, Spec, cost_of
from gangpao.units import utc_now

FILE = "predictions.json"
_NOT_FOR_TARGETS = "total"  # the law with N of all parameters is beside the others, for comparison


class Target(Frozen):
    """A run to predict: N without the embedding, D tokens, FLOPs of the run."""

    size: str
    N: int
    D: int
    seed: int
    flops: float


class Prediction(Frozen):
    """Bits per byte that a law gives a target, with the 95 % interval. when: UTC; unknown_then: had the target no result yet?

    floor: (bits, deviation) that the law of coupled terms was fitted under, None for the others."""

    target: Target
    law: str
    value: float
    low: float
    high: float
    when: str
    unknown_then: bool
    floor: tuple[float, float] | None = None

    @property
    def subject(self) -> tuple[Target, str, tuple[float, float] | None]:
        """Of what it is the one prediction."""
        return self.target, self.law, self.floor


class Record(Frozen):
    """The file. written: when; points_sha256: of the points that the laws are fitted to."""

    written: str
    points_sha256: str
    predictions: tuple[Prediction, ...]


def target_of(lab: Lab, spec: Spec) -> Target:
    """The target that a trial is."""
    N, _, flops = cost_of(lab, spec)
    return Target(size=f"{spec.width}x{spec.layers}", N=N, D=spec.tokens, seed=spec.seed, flops=flops)


def predict(lab: Lab, fits: Mapping[str, Fitted], targets: Sequence[Spec], floor: tuple[float, float] | None) -> Record:
    """The predictions of the targets, on disk before a target is submitted.

    Where all are there already, the file stays as it is. Else it is moved aside, but not when all targets have run by then: what is
    said so late is no prediction, and is not written.
    """
    path = lab.out / "scaling" / FILE
    unknown = [lab.result(spec) is None for spec in targets]
    now = _said_now(fits, [target_of(lab, spec) for spec in targets], unknown, floor)
    old = _read(path)
    if old is not None and old.points_sha256 == now.points_sha256:
        kept = {p.subject: p for p in old.predictions}
        now = now.model_copy(update={"predictions": tuple(kept.get(p.subject, p) for p in now.predictions)})
        if now.predictions == old.predictions:
            return old
    if old is not None and not any(unknown):
        return now
    if old is not None:
        path.rename(path.with_name(f"predictions-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, now.model_dump(mode="json"))
    return now


def _read(path: Path) -> Record | None:
    if not path.exists():
        return None
    try:
        return Record.model_validate(json.loads(json.dumps(read_json(path))))
    except ValidationError as error:
        raise ValueError(
            f"{path}: not predictions of this version ({error.errors()[0]['msg']}); move it elsewhere if it is to be kept, and "
            "the same command predicts anew"
        ) from error


def _said_now(
    fits: Mapping[str, Fitted], targets: Sequence[Target], unknown: Sequence[bool], floor: tuple[float, float] | None
) -> Record:
    now = utc_now()
    said = []
    for target, unknown_then in zip(targets, unknown, strict=True):
        for name, f in fits.items():
            if f.law is None or name == _NOT_FOR_TARGETS:
                continue
            low, high = f.law.interval(target.N, target.D)
            own = floor if name == "coupled" else None
            value = f.law.predict(target.N, target.D)
            said.append(
                Prediction(
                    target=target,
                    law=name,
                    value=value,
                    low=low,
                    high=high,
                    when=now,
                    unknown_then=unknown_then,
                    floor=own,
                )
            )
    points = fingerprint({name: f.results for name, f in fits.items()})
    return Record(written=now, points_sha256=points, predictions=tuple(said))


def judged(
    predictions: Sequence[Prediction], fits: Mapping[str, Fitted], ran: Mapping[Target, Result]
) -> list[dict[str, Any]]:
    """Predicted against actual, as plain data; the actual loss is None where a target did not end well. error: percent.
    study_share: what the trials of the law cost, of the target's cost."""
    out = []
    for p in predictions:
        actual = ran[p.target].bpb
        out.append({
            **p.target.model_dump(), "law": p.law, "predicted": p.value, "low": p.low, "high": p.high, "actual": actual,
            "error": None if actual is None else 100 * (p.value / actual - 1),
            "inside": None if actual is None else p.low <= actual <= p.high,
            "unknown_then": p.unknown_then, "when": p.when, "floor": p.floor and list(p.floor),
            "study_share": fits[p.law].flops / p.target.flops,
        })  # fmt: skip
    return out
