"""All stages, by the word that their tables have."""

from __future__ import annotations

from gangpao.forge.config import ORDER
from gangpao.forge.stages import finishing, training
from gangpao.forge.stages.stage import Stage

STAGES: dict[str, Stage] = {
    "data": training.DATA, "sandbox": training.SANDBOX, "plan": training.PLAN, "train": training.TRAIN,
    "tune": finishing.TUNE, "compress": finishing.COMPRESS, "evaluate": finishing.EVALUATE, "export": finishing.EXPORT,
    "check": finishing.CHECK,
}  # fmt: skip
assert tuple(STAGES) == ORDER


def stage_of(name: str) -> Stage:
    """Of a name as `ForgeConfig.stages` gives them: "tune-sft" is a tune."""
    return STAGES[name.partition("-")[0]]
