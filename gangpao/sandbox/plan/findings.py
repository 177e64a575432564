"""What a sandbox's finished experiments say, as far as a plan rests on it: the law of loss, and values for a recipe.

An outcome that was made with other data, another base or other common values is left out, and a note names what differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gangpao.atomic import read_json
from gangpao.sandbox.bilingual import Text
from gangpao.sandbox.experiments.assumptions import conditions, describe_differences, differing
from gangpao.sandbox.experiments.horizon import FLAT
from gangpao.sandbox.experiments.lr import LrConfig
from gangpao.sandbox.experiments.schedule import DecayShare, smallest_enough_share
from gangpao.sandbox.experiments.study.study import law_of
from gangpao.sandbox.laws import fit
from gangpao.sandbox.laws.coupled import CoupledFit
from gangpao.sandbox.laws.scaling_law import WIDE
from gangpao.sandbox.trials.trial import Lab

_Facts = Mapping[str, Any]
_NAMES = {
    "lr": Text("learning rate", "学习率"),
    "horizon": Text("learning rate's change with tokens", "学习率随 token 数的变化"),
    "batch": Text("batch", "批大小"),
    "schedule": Text("decay share", "退火比例"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Where a batch law was measured: the batches that were tried and the losses of the best ones, smallest and largest.
    covariance: of the law's log a and b."""

    batches: tuple[float, float]
    losses: tuple[float, float]
    covariance: tuple[tuple[float, float], tuple[float, float]]

    def interval(self, law: fit.PowerLaw, loss: float) -> tuple[float, float]:
        """95 % interval of the batch at a loss."""
        (aa, ab), (_, bb) = self.covariance
        x = math.log(loss)
        wide = WIDE * math.sqrt(max(0.0, aa + 2 * ab * x + bb * x * x))
        return law.predict(loss) * math.exp(-wide), law.predict(loss) * math.exp(wide)


@dataclass(frozen=True, slots=True)
class Laws:
    """What finished experiments say. aspects: width / layers of the fitted sizes. speed: FLOP/s of the machine the sandbox ran on.
    tokens_there: of the data. lr: before the transfer rule's factors; horizon: the tokens that it is for, and the exponent with
    which it falls beyond them (0: it stays). batch: of the loss in bits per byte, none: the common size; measured: where that law
    was. notes: where each of these comes from."""

    scaling: fit.ScalingFit | CoupledFit
    conditions: dict[str, Any]
    aspects: tuple[float, float]
    speed: float | None
    tokens_there: int
    lr: float
    horizon: tuple[float, float]
    batch: fit.PowerLaw | None
    decay: float
    shape: str
    notes: tuple[Text, ...]
    measured: Measured | None = None

    def lr_at(self, tokens: float) -> float:
        """The learning rate of a run of so many tokens."""
        at, exponent = self.horizon
        return self.lr * (tokens / at) ** -exponent if exponent else self.lr


def load_laws(out: Path, lab: Lab) -> Laws:
    """What lies in a sandbox's folder. Raises ValueError when there is no scaling law yet."""
    facts = _facts(out, "scaling")
    if facts is None:
        path = out / "scaling" / "outcome.json"
        raise ValueError(f"{path} is missing: a plan needs the law of loss, run `gangpao sandbox scaling` first")
    common, here = lab.config.common, conditions(lab)
    found = {name: _facts(out, name) for name in _NAMES}
    other = {name: differing(name, f["conditions"], here) for name, f in found.items() if f is not None}
    used = {name: f if f is not None and not other[name] else {} for name, f in found.items()}
    shape = common.schedule if common.schedule.startswith("wsd") else "wsd"
    share = _share(used["schedule"], shape)
    law = used["batch"].get("law")
    rate = used["lr"].get("optimum", {}).get(common.rule)
    falls = _falls(used["horizon"])
    notes = []
    for name, value in (("lr", rate), ("horizon", falls), ("batch", law), ("schedule", share.enough)):
        f = found[name]
        differences = (
            describe_differences(other[name], f["conditions"], here) if f is not None and other[name] else None
        )
        notes.append(_source(name, f, value, differences, noisy=name == "schedule" and share.noisy))
    notes += _decay_said(share.enough, facts["conditions"]["common.decay"])
    return Laws(
        scaling=law_of(facts), conditions=facts["conditions"], aspects=(facts["aspects"][0], facts["aspects"][1]),
        speed=facts["speed"], tokens_there=facts["train_tokens"], lr=rate or common.lr,
        horizon=(_rate_tokens(lab, rate is not None), falls or 0.0),
        batch=fit.PowerLaw(**law) if law else None, decay=share.enough or common.decay, shape=shape, notes=tuple(notes),
        measured=_measured(used["batch"]) if law else None,
    )  # fmt: skip


def _facts(out: Path, name: str) -> dict[str, Any] | None:
    path = out / name / "outcome.json"
    if not path.exists():
        return None
    facts = dict(read_json(path)["facts"])
    if "conditions" not in facts:
        raise ValueError(f"{path}: it does not say what it holds for; run `gangpao sandbox {name}` again")
    return facts


def _falls(facts: _Facts) -> float | None:
    """The exponent over tokens, where it surely is one: 0 where the best rate stays, None where that cannot be told."""
    law = facts.get("law")
    if law is None or law["low"] is None or law["high"] is None:
        return None
    if law["low"] > 0 or law["high"] < 0:
        return float(law["value"])
    return 0.0 if max(abs(law["low"]), abs(law["high"])) <= FLAT else None


def _rate_tokens(lab: Lab, measured: bool) -> float:
    """Tokens of the runs that the learning rate was found with."""
    own = lab.config.table(LrConfig).tokens if measured else None
    return float(own or lab.config.common.tokens)


def _share(facts: _Facts, shape: str) -> DecayShare:
    """The share of the decay that is enough, and whether noise hides it."""
    return smallest_enough_share(facts.get("horizons", ()), shape, facts.get("wide"))


def _measured(facts: _Facts) -> Measured | None:
    sweeps = [s for s in facts.get("sweeps", ()) if not s["check"] and s["optimum"]]
    if not sweeps:
        return None
    tried, losses = [x for s in sweeps for x in s["x"]], [s["optimum"]["loss"] for s in sweeps]
    (aa, ab), (ba, bb) = facts["laws"]["loss"]["covariance"]
    return Measured((min(tried), max(tried)), (min(losses), max(losses)), ((aa, ab), (ba, bb)))


# --- notes


def _source(name: str, facts: _Facts | None, value: Any, differences: Text | None, *, noisy: bool) -> Text:
    en, zh = _NAMES[name]
    if value is not None:
        return Text(f"The {en} comes from the experiment {name}.", f"{zh}来自实验 {name}。")
    if facts is None:
        why = Text("was not run", "没有做")
    elif differences is not None:
        why = Text(f"was run with another {differences.en}", f"的条件不同：{differences.zh}")
    elif noisy:
        why = Text(
            "cannot tell, the noise between its seeds is too large; more seeds would help",
            "种子间噪声太大，无法分辨，增加种子会有帮助",
        )
    else:
        why = Text("has no answer", "没有结论")
    if name == "horizon":
        return Text(
            f"The learning rate is taken to hold at every number of tokens: the experiment {name} {why.en}.",
            f"假定学习率不随 token 数变化：实验 {name} {why.zh}。",
        )
    return Text(f"The {en} is the common one: the experiment {name} {why.en}.", f"{zh}用公共值：实验 {name} {why.zh}。")


def _decay_said(share: float | None, law: float) -> list[Text]:
    if share is None or math.isclose(share, law):
        return []
    en = f"The predicted loss comes from runs with a decay of {law:.3g} of the steps; this plan takes {share:.3g}."
    return [Text(en, f"预测的损失来自退火比例为 {law:.3g} 的训练；本方案取 {share:.3g}。")]
