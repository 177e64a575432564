"""Where GRPO's batches come from: prompts in a shuffled order, answers that the model of this moment gives, their rewards.

A row of a batch is a prompt with all of its answers, because an answer's advantage is over the others to the same prompt. So
`rows` of a step are prompts, and a rank generates for its own. The position is one integer: order and seeds follow from it, and a
run that goes on asks for the same answers of the same weights.

Who generates is an argument (gangpao.tune connects the engine): it is asked for ids, so that what is learned is what was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gangpao.data.tokens.order import Permutation, key_of
from gangpao.train.step.loss import IGNORE
from gangpao.tune.objectives import losses
from gangpao.tune.objectives.preferences import pack
from gangpao.tune.objectives.rewards import Reward

Generate = Callable[[Sequence[Sequence[int]], int, int], list[list[list[int]]]]
"""(prompts as ids, answers to each, seed) -> for every prompt its answers as ids, with the token that ends a turn where one
came."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """ids: as the model is asked, up to where its answer begins. expected: what the data say is right."""

    ids: tuple[int, ...]
    expected: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """Packed answers with their advantages (gangpao.tune.objectives.policy.Rewarded)."""

    ids: np.ndarray
    labels: np.ndarray
    documents: np.ndarray
    sequences: np.ndarray
    advantages: np.ndarray
    rewards: np.ndarray
    old: np.ndarray | None = None


class Rollouts:
    """A gangpao.train.loop.Source. text: ids of an answer -> what the reward reads (without the end of the turn). scale: see
    ObjectiveConfig.advantages; "batch" is the batch of one call. row_length: of the packed rows; longer answers make longer ones.

    Raises ValueError for no prompts, or fewer than two answers to each.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        generate: Generate,
        reward: Reward,
        text: Callable[[list[int]], str],
        *,
        answers: int = 8,
        scale: str = "group",
        row_length: int = 1024,
        seed: int = 0,
    ) -> None:
        if not prompts:
            raise ValueError("rollouts: there are no prompts to ask")
        empty = next((i for i, p in enumerate(prompts) if not p.ids), None)
        if empty is not None:
            raise ValueError(f"rollouts: prompt {empty} is empty; an answer needs a token before it")
        if answers < 2:
            raise ValueError(f"rollouts: {answers} answers to a prompt; it needs at least 2, which are compared")
        self.prompts, self.generate, self.reward, self.text = prompts, generate, reward, text
        self.answers, self.scale, self.row_length, self.seed = answers, scale, row_length, seed
        self.position = 0

    def prompt(self, position: int) -> Prompt:
        """The prompt at a place of the endless order: every one once, then all again in another order."""
        epoch, index = divmod(position, len(self.prompts))
        return self.prompts[Permutation(len(self.prompts), key_of("prompts", self.seed, epoch))(index)]

    def take(self, rows: int, rank: int = 0, world: int = 1) -> Rollout:
        """Answers to those of the next `rows` prompts that belong to `rank`."""
        places = range(self.position + rank, self.position + rows, world)
        prompts = [self.prompt(place) for place in places]
        seed = key_of("answers", self.seed, self.position, rank) % 2**31
        self.position += rows
        drawn = self.generate([p.ids for p in prompts], self.answers, seed)
        if [len(group) for group in drawn] != [self.answers] * len(prompts) or not all(
            a for group in drawn for a in group
        ):
            raise ValueError(f"rollouts: {len(prompts)} prompts need {self.answers} answers each, none of them empty")
        rewards = [
            [self.reward(self.text(answer), p.expected) for answer in group]
            for p, group in zip(prompts, drawn, strict=True)
        ]
        gains = losses.advantages(torch.tensor(rewards, dtype=torch.float32), self.scale)
        documents = [_document(p.ids, answer) for p, group in zip(prompts, drawn, strict=True) for answer in group]
        packed = pack(documents, self.row_length)
        return Rollout(
            packed.ids,
            packed.labels,
            packed.documents,
            packed.sequences,
            gains.flatten().numpy(),
            np.array(rewards, np.float32).reshape(-1),
        )

    def state(self) -> dict[str, Any]:
        """The position as JSON."""
        return {"seed": self.seed, "prompts": len(self.prompts), "answers": self.answers, "position": self.position}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken. Raises ValueError for another seed, number of prompts or of answers."""
        mine = self.state()
        for what in ("seed", "prompts", "answers"):
            if state.get(what) != mine[what]:
                raise ValueError(
                    f"the saved position of rollouts has {what} {state.get(what)}, this run {mine[what]}; use the same to go on"
                )
        self.position = int(state["position"])


def _document(prompt: Sequence[int], answer: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """ids and labels of a prompt and its answer."""
    whole = np.array([*prompt, *answer], dtype=np.int64)
    labels = whole[1:].copy()
    labels[: len(prompt) - 1] = IGNORE
    return whole[:-1], labels
