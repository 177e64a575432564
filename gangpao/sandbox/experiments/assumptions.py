"""What an outcome holds for: every experiment writes it, and whoever uses the outcome later compares it with the sandbox at hand.

What it gives up: what a rule of transfer says is not among it, only its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gangpao.sandbox.bilingual import Text
from gangpao.sandbox.experiments import EXPERIMENTS
from gangpao.sandbox.trials.trial import Lab

_COMMON = ("lr", "batch_tokens", "schedule", "decay", "warmup", "weight_decay")


def conditions(lab: Lab) -> dict[str, Any]:
    """What the trials of a sandbox have in common and a law rests on, as plain data: data, shapes, rule, base, common values."""
    c = lab.config
    same: dict[str, Any] = {"data": lab.built.fingerprint, "vocab_size": lab.built.vocab_size}
    same |= {key: getattr(c, key) for key in ("seq_len", "head_dim", "mlp_ratio", "precision", "heldout_tokens")}
    same |= {"rule": c.common.rule, "optimizer": c.common.optimizer}
    same |= {f"base.{key}": value for key, value in c.base.model_dump().items()}
    same |= {f"common.{key}": getattr(c.common, key) for key in _COMMON}
    return same | {"mixture.stable": dict(lab.stable), "mixture.decay": dict(lab.decay)}


def differing(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What an experiment's outcome says otherwise than this sandbox, or does not say."""
    return [key for key in here if key not in EXPERIMENTS[name].free and there.get(key) != here[key]]


def describe_differences(keys: Sequence[str], there: Mapping[str, Any], here: Mapping[str, Any]) -> Text:
    """The differences with both values."""
    values = [(key, f"{there.get(key)!r:.60}", f"{here[key]!r:.60}") for key in keys]
    en = ", ".join(f"{key} ({old} there, {new} in this configuration)" for key, old, new in values)
    return Text(en, "、".join(f"{key}（彼处 {old}，本配置 {new}）" for key, old, new in values))
