"""GRPO: answers of the model itself, each pushed by how much better it was than the others to the same prompt.

With average "dapo" and "cispo" a step's loss is the sum over its tokens divided by their number, with "grpo" and "dr_grpo" a sum
over answers divided by theirs, so micro-batches and ranks change nothing. (TRL's loss_type "bnpo" is "dapo" of one micro-batch.)
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gangpao.train.step.loss import Terms
from gangpao.tune.objectives import losses
from gangpao.tune.objectives.config import ObjectiveConfig
from gangpao.tune.objectives.logps import Answers, Labelled, Settings, answers_in, label_logps, with_balance
from gangpao.tune.objectives.preferences import ratios
from gangpao.tune.objectives.reference import Switched


class Rewarded(Answers, Protocol):
    """Answers with their advantages, float32 [S], and rewards, float32 [S]. old: log-probability of every label when it was drawn,
    float32 [B, T], or None where the model has not changed since."""

    @property
    def advantages(self) -> np.ndarray: ...
    @property
    def rewards(self) -> np.ndarray: ...
    @property
    def old(self) -> np.ndarray | None: ...


class Grpo:
    """GRPO, Dr. GRPO, DAPO's or CISPO's loss. reference: where beta > 0.

    Reported: loss; reward, its deviation from 0 advantage ("advantage", mean of absolute values) and length as means over answers;
    kl and clipped as means over tokens.
    """

    separable = False
    RATIOS: ClassVar = {
        "reward": "answers",
        "advantage": "answers",
        "length": "answers",
        "kl": "answer_tokens",
        "clipped": "answer_tokens",
    }

    def __init__(self, config: ObjectiveConfig, settings: Settings, reference: Switched | None = None) -> None:
        assert config.kind == "grpo"
        assert reference is not None or not config.needs_reference
        self.config, self.settings, self.reference = config, settings, reference

    def measure(self, batch: Rewarded) -> tuple[int, int]:
        """(answers, or tokens of answers where these are averaged; ids) of a batch."""
        count = answers_in(batch)
        if len(batch.advantages) != count:
            raise ValueError(f"a batch of {count} answers has {len(batch.advantages)} advantages")
        tokens = int((batch.sequences >= 0).sum())
        return (count if self.config.average in ("grpo", "dr_grpo") else tokens), batch.ids.size

    def __call__(self, model: nn.Module, batch: Rewarded, scale: float) -> Terms:
        """The summed loss of a batch times `scale`, which is 1 / (what measure counts, of the whole step)."""
        before = self.reference.tokens(model, batch) if self.reference is not None else None
        said = label_logps(model, batch, self.settings)
        device = said.logps.device
        advantages = torch.from_numpy(np.asarray(batch.advantages, dtype=np.float32)).to(device)
        old = said.logps.detach()
        if batch.old is not None:
            old = torch.from_numpy(np.asarray(batch.old, dtype=np.float32)[batch.sequences >= 0]).to(device)
        token_losses, clipped = self._tokens(said, old, advantages[said.sequences])
        kl = torch.zeros_like(token_losses)
        if before is not None and self.config.strength:
            kl = losses.divergence(said.logps, before)
            token_losses = token_losses + self.config.strength * kl
        loss = self._summed(said, token_losses) * scale
        values = {
            "loss": loss,
            "reward": torch.from_numpy(np.asarray(batch.rewards, dtype=np.float32)).to(device).sum() * scale,
            "advantage": advantages.abs().sum() * scale,
            "length": said.lengths.sum() * scale,
            "kl": kl.sum() * scale,
            "clipped": clipped.sum() * scale,
            "answers": torch.full_like(loss, len(advantages) * scale),
            "answer_tokens": torch.full_like(loss, len(token_losses) * scale),
        }
        values = {name: v.detach() for name, v in values.items()}
        total, values = with_balance(model, said, loss, values, self.measure(batch)[0] * scale)
        return Terms(total, values)

    def _tokens(self, said: Labelled, old_R: Tensor, advantages_R: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of the labels [R] without the divergence, and 1 where the ratio of a label is clipped."""
        c = self.config
        log_ratios = said.logps - old_R
        if c.ratio == "sequence":
            log_ratios = (said.add(log_ratios) / said.lengths)[said.sequences]
        ratios_R = log_ratios.exp()
        high = c.epsilon if c.epsilon_high is None else c.epsilon_high
        if c.average == "cispo":
            clipped = (ratios_R > high) & (advantages_R > 0)
            return losses.weighted(said.logps, ratios_R, advantages_R, largest=high), clipped.float()
        below = (ratios_R < 1 - c.epsilon) & (advantages_R < 0)
        above = (ratios_R > 1 + high) & (advantages_R > 0)
        found = losses.clipped(ratios_R, advantages_R, low=c.epsilon, high=high, delta=c.delta)
        return found, (below | above).float()

    def _summed(self, said: Labelled, token_losses_R: Tensor) -> Tensor:
        """Losses of the labels, summed as the average asks."""
        match self.config.average:
            case "grpo":
                return (said.add(token_losses_R) / said.lengths).sum()
            case "dr_grpo":
                return token_losses_R.sum() / self.config.max_answer_tokens
            case _:
                return token_losses_R.sum()

    def summary(self, numbers: dict[str, float]) -> dict[str, float]:
        """Sums over a step as means over the answers or tokens that they belong to."""
        return ratios(numbers, self.RATIOS)
