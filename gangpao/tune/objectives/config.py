"""Which objective a model is tuned by, and its constants."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gangpao.config import Frozen

Kind = Literal["sft", "pretrain", "dpo", "ipo", "simpo", "orpo", "kto", "grpo"]
Average = Literal["grpo", "dr_grpo", "dapo", "cispo"]

PAIRS = frozenset({"dpo", "ipo", "simpo", "orpo"})
BETA: dict[str, float] = {"dpo": 0.1, "ipo": 0.1, "simpo": 2.0, "orpo": 0.1, "kto": 0.1, "grpo": 0.0}


class ObjectiveConfig(Frozen):
    """What is minimised."""

    kind: Kind = Field(
        default="sft",
        description="sft: the assistant's turns; pretrain: every token; dpo, ipo, simpo, orpo: pairs of a chosen and a rejected "
        "answer; kto: answers that are desirable or not; grpo: answers of the model itself, which a program rewards.",
    )
    beta: float | None = Field(
        default=None,
        ge=0,
        description="How strongly the model is held to its reference (dpo, ipo, kto: larger is closer), scale of the reward "
        "(simpo), weight of the odds ratio (orpo), weight of the KL divergence (grpo). None: dpo, ipo, orpo, kto 0.1, simpo "
        "2, grpo 0.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of pairs whose labels may be the wrong way round (dpo, simpo)."
    )
    gamma: float = Field(
        default=1.0, ge=0, description="Margin by which the chosen answer's reward should be larger (simpo)."
    )
    orpo_nll: Literal["answer", "trl"] = Field(
        default="answer",
        description="answer: cross-entropy of the chosen answer, averaged in each pair, as in the paper; trl: of prompt and "
        "answer, averaged over the tokens of the micro-batch, as TRL 1.16 does, so that the micro-batch changes it.",
    )
    desirable_weight: float = Field(default=1.0, ge=0, description="Weight of desirable answers (kto).")
    undesirable_weight: float = Field(default=1.0, ge=0, description="Weight of undesirable answers (kto).")
    average: Average = Field(
        default="dapo",
        description="How tokens are averaged (grpo). grpo: in each answer, then over answers; dapo: over all tokens of a step; "
        "dr_grpo: the sum over answers divided by max_answer_tokens; cispo: as dapo, the clipped ratio as a constant weight.",
    )
    answers: int = Field(
        default=8, ge=2, description="Answers to each prompt, which are compared; batch_answers is a multiple (grpo)."
    )
    temperature: float = Field(default=1.0, gt=0, le=5, description="At which answers are drawn (grpo).")
    rewards: dict[str, float] = Field(
        default_factory=dict,
        description="What an answer is worth: rows of the table of rewards and their weights, { number = 1.0 } (grpo).",
    )
    max_answer_tokens: int = Field(
        default=256, ge=1, description="Most tokens of a generated answer, and dr_grpo's divisor (grpo)."
    )
    epsilon: float = Field(
        default=0.2, gt=0, description="Ratios of probabilities below 1 - epsilon are clipped (grpo)."
    )
    epsilon_high: float | None = Field(
        default=None,
        gt=0,
        description="Ratios above 1 + epsilon_high are clipped (none: epsilon; DAPO: 0.28); cispo: the largest ratio itself.",
    )
    delta: float | None = Field(
        default=None, gt=1, description="Largest ratio also where the advantage is negative (grpo)."
    )
    ratio: Literal["token", "sequence"] = Field(
        default="token", description="Ratios of probabilities of each token, or of each answer (GSPO) (grpo)."
    )
    advantages: Literal["group", "batch", "none"] = Field(
        default="group",
        description="Rewards minus the mean of their prompt, divided by the standard deviation of their prompt, of the batch, "
        "or by nothing (grpo).",
    )

    @model_validator(mode="after")
    def _check(self) -> ObjectiveConfig:
        if self.kind == "ipo" and self.beta == 0:
            raise ValueError(
                "ipo: beta = 0 asks for an infinite margin (1 / (2 beta)); set objective.beta above 0, for example 0.1"
            )
        if self.kind == "grpo" and self.average == "cispo" and self.epsilon_high is None:
            raise ValueError(
                "cispo: epsilon_high is the largest ratio of probabilities; set objective.epsilon_high, for example 5.0"
            )
        if self.kind == "grpo" and self.ratio == "sequence" and self.average != "grpo":
            raise ValueError(
                f"ratio = sequence gives every answer one ratio, which {self.average} would count once a token; set "
                "objective.average to grpo"
            )
        return self

    @property
    def strength(self) -> float:
        """beta, or this kind's usual one."""
        return BETA.get(self.kind, 0.0) if self.beta is None else self.beta

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with what the model said before it was tuned."""
        return self.kind in ("dpo", "ipo", "kto") or (self.kind == "grpo" and self.strength > 0)
