"""A configuration -> an objective of the one training loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from gangpao.train.loop import Objective
from gangpao.train.step.loss import NextToken
from gangpao.train.step.parallel import World
from gangpao.tune.objectives.config import PAIRS, ObjectiveConfig
from gangpao.tune.objectives.logps import Settings
from gangpao.tune.objectives.policy import Grpo
from gangpao.tune.objectives.preferences import Kto, Pairs
from gangpao.tune.objectives.reference import Counted, Switched

Off = Callable[[], AbstractContextManager[object]]


def objective_of(
    config: ObjectiveConfig,
    settings: Settings,
    *,
    off: Off | None = None,
    counted: Counted | None = None,
    world: World | None = None,
    z_loss: float = 0.0,
) -> Objective:
    """What is minimised. off: a context in which the model is what it was before tuning (Applied.off); counted: its
    log-probabilities of all answers, where there is no such context or no time for its forward passes; world: the ranks that share
    KTO's estimate.

    Raises ValueError when this objective needs a reference and neither can be one.
    """
    if config.kind in ("sft", "pretrain"):
        return NextToken(dtype=settings.dtype, recompute=settings.recompute, z_loss=z_loss, device=settings.device)
    switched = Switched(off, settings) if off is not None else None
    if config.kind in PAIRS:
        reference = (counted or switched) if config.needs_reference else None
        if config.needs_reference and reference is None:
            raise ValueError(
                f"{config.kind} compares with the model before tuning, which full tuning changes: tune an adapter (method.kind "
                "lora), count the reference beforehand, or choose simpo or orpo, which need none"
            )
        return Pairs(config, settings, reference)
    if config.needs_reference and switched is None:
        raise ValueError(
            f"{config.kind} asks the model before tuning about answers that each step makes anew, so it needs an adapter that "
            "can be switched off: set method.kind to lora"
            + (", or objective.beta to 0" if config.kind == "grpo" else "")
        )
    if config.kind == "kto":
        assert switched is not None
        return Kto(config, settings, switched, world)
    return Grpo(config, settings, switched if config.needs_reference else None)
