"""Objectives over answers that people preferred or did not: DPO, IPO, SimPO, ORPO over pairs, KTO over single answers.

The loss of a step is the sum over its pairs (or answers) divided by their number, whatever the micro-batches and ranks. Two things
depend on the micro-batch, because their definition does: KTO's KL estimate, and ORPO's cross-entropy with orpo_nll = "trl".

Rows of these batches are not independent (a pair may lie in two rows), so a step runs in one lane (gangpao.train.step.lanes).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gangpao.train.step.loss import IGNORE, Terms
from gangpao.train.step.parallel import World
from gangpao.tune.objectives import losses
from gangpao.tune.objectives.config import PAIRS, ObjectiveConfig
from gangpao.tune.objectives.logps import (
    NONE,
    Answers,
    Labelled,
    Packed,
    Preferences,
    Settings,
    answers_in,
    label_logps,
    with_balance,
)
from gangpao.tune.objectives.reference import Reference, Switched, spans_of


class Pairs:
    """DPO, IPO, SimPO or ORPO. reference: of dpo and ipo.

    Reported, as means over pairs: loss; rewards/chosen, /rejected, /margins, /accuracies; logps/chosen, /rejected (of whole
    answers; simpo, orpo: a token); nll (orpo).
    """

    separable = False

    def __init__(self, config: ObjectiveConfig, settings: Settings, reference: Reference | None = None) -> None:
        assert config.kind in PAIRS
        assert reference is not None or not config.needs_reference
        self.config, self.settings, self.reference = config, settings, reference

    def measure(self, batch: Preferences) -> tuple[int, int]:
        """(pairs, ids) of a batch. Raises ValueError where its answers are not pairs."""
        count = answers_in(batch)
        wanted = np.arange(count) % 2 == 0
        if count % 2 or not np.array_equal(np.asarray(batch.desirable, dtype=bool), wanted):
            raise ValueError(
                f"{self.config.kind} needs pairs, chosen and rejected in turn; this batch has {count} answers, of which "
                f"{int(np.sum(batch.desirable))} are desirable; use objective.kind kto for answers without a partner"
            )
        return count // 2, batch.ids.size

    def __call__(self, model: nn.Module, batch: Preferences, scale: float) -> Terms:
        """The summed loss of the pairs of a batch times `scale`, which is 1 / (pairs of the whole step)."""
        before = self.reference.sums(model, batch) if self.reference is not None else None
        asked = _with_prompts(batch) if self.config.orpo_nll == "trl" and self.config.kind == "orpo" else batch
        said = label_logps(model, asked, self.settings)
        answers = said.answers(batch, asked)
        loss, scores, values = self._losses(answers, before)
        if self.config.kind == "orpo":
            nll = _chosen_nll(said, together=asked is not batch)
            loss, values["nll"] = loss + nll, nll
        rewards = self.config.strength * scores.detach()
        chosen, rejected = rewards[::2], rewards[1::2]
        values |= {
            "loss": loss,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).float(),
        }
        summed = {name: v.detach().sum() * scale for name, v in values.items()}
        total, summed = with_balance(model, said, loss.sum() * scale, summed, len(chosen) * scale)
        return Terms(total, summed)

    def _losses(self, answers: Labelled, before: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Losses of the pairs [P]; what the reward is beta times of [S]; log-probabilities to report."""
        c, sums = self.config, answers.sums()
        if before is None:
            means = sums / answers.lengths
            values = {"logps/chosen": means[::2], "logps/rejected": means[1::2]}
            if c.kind == "simpo":
                return (
                    losses.simpo(
                        means[::2], means[1::2], beta=c.strength, gamma=c.gamma, label_smoothing=c.label_smoothing
                    ),
                    means,
                    values,
                )
            return losses.odds_ratio(means[::2], means[1::2], beta=c.strength), means, values
        ratios = sums - before
        values = {"logps/chosen": sums[::2], "logps/rejected": sums[1::2]}
        if c.kind == "ipo":
            means = ratios / answers.lengths
            return losses.ipo(means[::2], means[1::2], beta=c.strength), ratios, values
        return (
            losses.dpo(ratios[::2], ratios[1::2], beta=c.strength, label_smoothing=c.label_smoothing),
            ratios,
            values,
        )


def _with_prompts(batch: Preferences) -> Packed:
    """The same rows with every token of a chosen answer's document as a label."""
    labels, sequences = batch.labels.copy(), batch.sequences.copy()
    for number, (row, begin, end, _, last) in enumerate(spans_of(batch)):
        if number % 2:
            continue
        inside = slice(begin, min(end - 1, last))
        labels[row, inside] = batch.ids[row, begin + 1 : inside.stop + 1]
        sequences[row, begin : last + 1] = number
    return Packed(batch.ids, labels, batch.documents, sequences)


def _chosen_nll(said: Labelled, *, together: bool) -> Tensor:
    """Cross-entropy of the chosen answers [P], averaged in each, or (`together`) over the labels of all of them."""
    nll, lengths = -said.sums()[::2], said.lengths[::2]
    return nll / (lengths.mean() if together else lengths)


class Kto:
    """KTO. Reported: loss and kl as means over answers; rewards and logps of desirable ("chosen") and undesirable answers.

    kl is, as in TRL 1.16 and the paper, the mean log-ratio of mismatched answers (every prompt with the answer before it in the
    micro-batch, over all ranks), no less than 0. It stays 0 for a micro-batch of one answer, whose only mismatch is itself.
    """

    separable = False
    RATIOS: ClassVar = {
        **{f"{what}/chosen": "desirable" for what in ("rewards", "logps")},
        **{f"{what}/rejected": "undesirable" for what in ("rewards", "logps")},
    }

    def __init__(
        self, config: ObjectiveConfig, settings: Settings, reference: Switched, world: World | None = None
    ) -> None:
        assert config.kind == "kto"
        self.config, self.settings, self.reference = config, settings, reference
        self.world = world or World()

    def measure(self, batch: Preferences) -> tuple[int, int]:
        """(answers, ids) of a batch."""
        count = answers_in(batch)
        if len(batch.desirable) != count:
            raise ValueError(f"a batch of {count} answers has {len(batch.desirable)} marks of what is desirable")
        return count, batch.ids.size

    def __call__(self, model: nn.Module, batch: Preferences, scale: float) -> Terms:
        """The summed loss of the answers of a batch times `scale`, which is 1 / (answers of the whole step)."""
        c = self.config
        kl = self._divergence(model, batch)
        before = self.reference.sums(model, batch)
        said = label_logps(model, batch, self.settings)
        sums = said.sums()
        desirable = torch.from_numpy(np.asarray(batch.desirable, dtype=bool)).to(sums.device)
        loss = losses.kto(
            sums - before,
            desirable,
            kl,
            beta=c.strength,
            desirable=c.desirable_weight,
            undesirable=c.undesirable_weight,
        )
        rewards = c.strength * (sums - before)
        good = desirable.float()
        values = {
            "loss": loss,
            "kl": kl.expand_as(loss),
            "rewards/chosen": rewards * good,
            "rewards/rejected": rewards * (1 - good),
            "logps/chosen": sums * good,
            "logps/rejected": sums * (1 - good),
            "desirable": good,
            "undesirable": 1 - good,
            "rewards/accuracies": ((rewards > c.strength * kl) == desirable).float(),
        }
        summed = {name: v.detach().sum() * scale for name, v in values.items()}
        total, summed = with_balance(model, said, loss.sum() * scale, summed, len(loss) * scale)
        return Terms(total, summed)

    @torch.no_grad()
    def _divergence(self, model: nn.Module, batch: Answers) -> Tensor:
        """The KL estimate, one number."""
        spans = spans_of(batch)
        total, count = 0.0, 0
        device = next(model.parameters()).device
        if len(spans) > 1:
            other = mismatched(batch, spans)
            before = self.reference.sums(model, other)
            differences = label_logps(model, other, self.settings).sums() - before
            total, count = float(differences.sum()), len(spans)
        total, count_of_all = self.world.sums([total, count])
        return torch.tensor(max(0.0, total / max(1.0, count_of_all)), device=device)

    def summary(self, numbers: dict[str, float]) -> dict[str, float]:
        """Sums over a step as means over the answers that they belong to."""
        out = ratios(numbers, self.RATIOS)
        return out | {"rewards/margins": out["rewards/chosen"] - out["rewards/rejected"]}


def ratios(numbers: dict[str, float], of: dict[str, str]) -> dict[str, float]:
    """Numbers with those named in `of` divided by another one, which is left out; nothing of nothing is 0."""
    out = {name: v / max(numbers[of[name]], 1e-30) if name in of else v for name, v in numbers.items()}
    return {name: v for name, v in out.items() if name not in of.values()}


def mismatched(batch: Answers, spans: list[tuple[int, int, int, int, int]]) -> Packed:
    """Every prompt with the answer before it (the first with the last one), packed into rows as long as the batch's, or as the
    longest one where that is longer."""
    prompts, answers, marks = [], [], []
    for row, begin, _, first, last in spans:
        prompts.append(batch.ids[row, begin : first + 1])
        # The last label may be an id that no row goes on to.
        answers.append(np.append(batch.ids[row, first + 1 : last + 1], batch.labels[row, last]))
        marks.append(batch.labels[row, first : last + 1] != IGNORE)
    documents = []
    for i, prompt in enumerate(prompts):
        answer, known = answers[i - 1], marks[i - 1]
        ids = np.concatenate([prompt, answer[:-1]])
        labels = np.concatenate([np.full(len(prompt) - 1, IGNORE), np.where(known, answer, IGNORE)])
        documents.append((ids, labels))
    return pack(documents, batch.ids.shape[1])


def pack(documents: list[tuple[np.ndarray, np.ndarray]], row_length: int) -> Packed:
    """Documents (ids, labels) in rows, each in the first row with room for it; the number of an answer is its document's."""
    row_length = max(row_length, *(len(ids) for ids, _ in documents))
    used: list[int] = []
    places = []
    for ids, _ in documents:
        row = next((r for r, n in enumerate(used) if n + len(ids) <= row_length), len(used))
        if row == len(used):
            used.append(0)
        places.append((row, used[row]))
        used[row] += len(ids)
    shape = (len(used), row_length)
    out = Packed(
        np.zeros(shape, np.int64), np.full(shape, IGNORE), np.full(shape, len(documents)), np.full(shape, NONE)
    )
    for number, ((row, begin), (ids, labels)) in enumerate(zip(places, documents, strict=True)):
        inside: Any = (row, slice(begin, begin + len(ids)))
        out.ids[inside], out.labels[inside], out.documents[inside] = ids, labels, number
        out.sequences[inside] = np.where(labels == IGNORE, NONE, number)
    return out
