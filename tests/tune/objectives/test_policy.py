"""GRPO's objective on packed rows: equal to the formula on answers one by one, whatever the packing and the micro-batches."""

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch

from gangpao.tune.objectives import losses
from gangpao.tune.objectives.build import objective_of
from gangpao.tune.objectives.config import ObjectiveConfig
from gangpao.tune.objectives.logps import Settings, label_logps
from tests.tune.objectives.tiny import Batch, Tuned, answers, packed

DOCUMENTS = answers(6)
ADVANTAGES = np.array([1.5, -0.5, 0.25, -1.25, 0.5, -0.5], np.float32)


@dataclass(frozen=True)
class Rewarded(Batch):
    advantages: np.ndarray
    rewards: np.ndarray
    old: np.ndarray | None


@pytest.fixture(scope="module")
def tuned():
    return Tuned()


def drawn(tuned, rows, *, old=True):
    """A batch of DOCUMENTS, drawn from a model whose log-probabilities were a little different."""
    batch = packed(DOCUMENTS, rows)
    numbers = sorted(n for row in rows for n in row)
    before = np.zeros(batch.ids.shape, np.float32)
    with torch.no_grad():
        logps = label_logps(tuned.model, batch, Settings()).logps.numpy()
    noise = np.sin(1.0 * batch.labels[batch.labels >= 0] * batch.ids[batch.labels >= 0])
    before[batch.labels >= 0] = logps + 0.4 * noise
    same = {f.name: getattr(batch, f.name) for f in fields(batch)}
    gains = ADVANTAGES[numbers]
    return Rewarded(**same, advantages=gains, rewards=gains + 2, old=before if old else None)


def objective(tuned, **fields):
    return objective_of(ObjectiveConfig(kind="grpo", **fields), Settings(), off=tuned.off)


OPTIONS = [
    {"average": "grpo"},
    {"average": "dapo", "beta": 0.1},
    {"average": "dr_grpo", "max_answer_tokens": 8, "epsilon_high": 0.28},
    {"average": "cispo", "epsilon_high": 1.1},
    {"average": "grpo", "ratio": "sequence", "delta": 1.4},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_micro_batches_and_packing_change_nothing(tuned, options):
    whole, gradient = tuned.gradient(objective(tuned, **options), [drawn(tuned, [[3, 0, 5], [1, 4, 2]])])
    rows = [[[0, 1, 2, 3]], [[4], [5]]]
    values, added = tuned.gradient(objective(tuned, **options), [drawn(tuned, r) for r in rows])
    assert values == pytest.approx(whole, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(added, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("average", ["grpo", "dapo", "dr_grpo"])
def test_by_hand(tuned, average):
    options = {"average": average, "beta": 0.1, "max_answer_tokens": 8}
    batch = drawn(tuned, [[3, 0, 5], [1, 4, 2]])
    made = objective(tuned, **options)
    values, gradient = tuned.gradient(made, [batch])
    tuned.adapter.grad = None
    total, count, kls = [], 0, 0.0
    for n, (ids, labels) in enumerate(DOCUMENTS):
        single = packed(DOCUMENTS, [[n]])
        logps = label_logps(tuned.model, single, Settings()).logps
        with torch.no_grad(), tuned.off():
            before = label_logps(tuned.model, single, Settings()).logps
        old = torch.from_numpy(batch.old[batch.sequences == n])
        gains = torch.full_like(logps, float(ADVANTAGES[n]))
        kl = losses.divergence(logps, before)
        tokens = losses.clipped((logps - old).exp(), gains, low=0.2, high=0.2) + 0.1 * kl
        total.append(tokens.mean() if average == "grpo" else tokens.sum())
        count, kls = count + len(tokens), kls + float(kl.detach().sum())
        assert len(ids) == len(labels)
    loss = sum(total) / {"grpo": 6, "dapo": count, "dr_grpo": 6 * 8}[average]
    loss.backward()
    assert values["loss"] == pytest.approx(float(loss.detach()), rel=1e-5, abs=1e-7)
    torch.testing.assert_close(gradient, tuned.adapter.grad, rtol=1e-4, atol=1e-6)
    summary = made.summary(values)
    assert summary["kl"] == pytest.approx(kls / count, rel=1e-4)
    assert summary["reward"] == pytest.approx(float(ADVANTAGES.mean() + 2), rel=1e-5)
    assert summary["length"] == pytest.approx(count / 6, rel=1e-5)
    assert summary.keys() == {"loss", "reward", "advantage", "length", "kl", "clipped"}


def test_just_drawn(tuned):
    """Without `old` every ratio is 1: the gradient is that of advantage times log-probability."""
    batch = drawn(tuned, [[3, 0, 5], [1, 4, 2]], old=False)
    values, gradient = tuned.gradient(objective(tuned, average="grpo"), [batch])
    tuned.adapter.grad = None
    said = label_logps(tuned.model, batch, Settings())
    (-(said.sums() / said.lengths) * torch.from_numpy(ADVANTAGES)).mean().backward()
    torch.testing.assert_close(gradient, tuned.adapter.grad, rtol=1e-4, atol=1e-6)
    assert values["clipped"] == 0.0


def test_advantages_of_other_answers(tuned):
    batch = drawn(tuned, [[0, 1]])
    with pytest.raises(ValueError, match="2 answers has 1 advantages"):
        objective(tuned).measure(Rewarded(**{**vars(batch), "advantages": batch.advantages[:1]}))
