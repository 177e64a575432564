"""DPO and its relatives on packed rows: equal to the same answers one by one, whatever the packing, the micro-batch, the
reference."""

import numpy as np
import pytest
import torch

from gangpao.train.loop import Training
from gangpao.train.step.lanes import Lanes
from gangpao.train.step.loss import NextToken
from gangpao.tune.objectives import losses
from gangpao.tune.objectives.build import objective_of
from gangpao.tune.objectives.config import ObjectiveConfig
from gangpao.tune.objectives.logps import Settings, answers_in, label_logps
from gangpao.tune.objectives.preferences import mismatched
from gangpao.tune.objectives.reference import Counted, keys_of, spans_of
from tests.train.tiny import job
from tests.tune.objectives.tiny import Tuned, answers, packed

DOCUMENTS = answers(6)
ONE_BY_ONE = packed(DOCUMENTS, [[0], [1], [2], [3], [4], [5]])
TIGHT = packed(DOCUMENTS, [[3, 0, 5], [1, 4, 2]])


@pytest.fixture(scope="module")
def tuned():
    return Tuned()


def objective(tuned, **fields):
    return objective_of(ObjectiveConfig(**fields), Settings(), off=tuned.off)


def sums(tuned, batch):
    """Log-probabilities of whole answers and their lengths, the plain way: one document at a time, all logits."""
    out = []
    for row, begin, _, _, last in spans_of(batch):
        ids = torch.from_numpy(batch.ids[row : row + 1, begin : last + 1])
        labels = torch.from_numpy(batch.labels[row, begin : last + 1])
        logps = tuned.model.logits(tuned.model(ids).hidden)[0].log_softmax(-1)
        out.append(logps[labels >= 0].gather(1, labels[labels >= 0, None]).sum())
    return torch.stack(out), torch.tensor([(labels >= 0).sum() for _, labels in DOCUMENTS])


def by_hand(tuned, **fields):
    """The loss of DOCUMENTS from the formulas."""
    c = ObjectiveConfig(**fields)
    said, lengths = sums(tuned, ONE_BY_ONE)
    with torch.no_grad(), tuned.off():
        before = sums(tuned, ONE_BY_ONE)[0]
    means, ratios = said / lengths, said - before
    match c.kind:
        case "dpo":
            options = {"beta": c.strength, "label_smoothing": c.label_smoothing}
            return losses.dpo(ratios[::2], ratios[1::2], **options).mean()
        case "ipo":
            ratios = ratios / lengths
            return losses.ipo(ratios[::2], ratios[1::2], beta=c.strength).mean()
        case "simpo":
            return losses.simpo(means[::2], means[1::2], beta=c.strength, gamma=c.gamma).mean()
        case _:
            return (losses.odds_ratio(means[::2], means[1::2], beta=c.strength) - means[::2]).mean()


FIELDS = [
    {"kind": "dpo", "label_smoothing": 0.1},
    {"kind": "dpo"},
    {"kind": "ipo"},
    {"kind": "simpo"},
    {"kind": "orpo"},
]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_packed_is_one_by_one_is_the_formula(tuned, fields):
    tuned.adapter.grad = None
    loss = by_hand(tuned, **fields)
    loss.backward()
    for batch in (ONE_BY_ONE, TIGHT):
        expected = torch.clone(tuned.adapter.grad)
        values, gradient = tuned.gradient(objective(tuned, **fields), [batch])
        assert values["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_micro_batches_add_up(tuned, fields):
    """Two batches of 2 and 1 pairs: a mean of means would be wrong."""
    parts = [packed(DOCUMENTS, [[0, 2], [3, 1]]), packed(DOCUMENTS, [[4, 5]])]
    whole, gradient = tuned.gradient(objective(tuned, **fields), [TIGHT])
    values, added = tuned.gradient(objective(tuned, **fields), parts)
    assert values == pytest.approx(whole, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(added, gradient, rtol=1e-4, atol=1e-6)


def test_values_reported(tuned):
    values, _ = tuned.gradient(objective(tuned, kind="dpo", beta=0.5), [TIGHT])
    with torch.no_grad():
        said, _ = sums(tuned, TIGHT)
        with tuned.off():
            rewards = 0.5 * (said - sums(tuned, TIGHT)[0])
    chosen, rejected = rewards[::2], rewards[1::2]
    expected = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "logps/chosen": said[::2],
        "logps/rejected": said[1::2],
    }
    assert {k: v for k, v in values.items() if k != "loss"} == pytest.approx(
        {k: float(v.mean()) for k, v in expected.items()}, rel=1e-4, abs=1e-5
    )


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_a_reference_counted_beforehand_is_the_adapter_off(tuned, kind, tmp_path):
    """Counted in one packing, written, read, used in another one."""
    counted = Counted("base")
    with tuned.off():
        counted.count(tuned.model, [packed(DOCUMENTS, [[0, 2, 3, 1]]), packed(DOCUMENTS, [[5, 4]])], Settings())
    counted.save(tmp_path / "reference.npz")
    read = Counted.load(tmp_path / "reference.npz", "base")
    assert len(read.known) == 6
    config = ObjectiveConfig(kind=kind)
    values, gradient = tuned.gradient(objective_of(config, Settings(), counted=read), [TIGHT])
    expected, other = tuned.gradient(objective(tuned, kind=kind), [TIGHT])
    assert values == pytest.approx(expected, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="this run tunes other"):
        Counted.load(tmp_path / "reference.npz", "other")
    (tmp_path / "reference.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="remove it to count anew"):
        Counted.load(tmp_path / "reference.npz", "base")
    with pytest.raises(ValueError, match="2 of 2 answers have no reference"):
        read.sums(tuned.model, packed(answers(2, seed=9), [[0, 1]]))


def test_keys_are_of_answers_not_of_places():
    assert keys_of(ONE_BY_ONE) == keys_of(TIGHT)
    assert len(set(keys_of(TIGHT))) == 6


def test_orpo_as_trl_counts_it(tuned):
    """Cross-entropy of prompt and answer, over the tokens of the micro-batch together."""
    values, _ = tuned.gradient(objective(tuned, kind="orpo", orpo_nll="trl"), [TIGHT])
    nll, tokens = 0.0, 0
    with torch.no_grad():
        for ids, labels in DOCUMENTS[::2]:
            whole = np.append(ids, labels[-1])
            logps = tuned.model.logits(tuned.model(torch.from_numpy(ids)[None]).hidden)[0].log_softmax(-1)
            nll -= float(logps.gather(1, torch.from_numpy(whole[1:])[:, None]).sum())
            tokens += len(ids)
        said, lengths = sums(tuned, TIGHT)
        means = said / lengths
        odds = losses.odds_ratio(means[::2], means[1::2], beta=0.1).mean()
    assert values["nll"] == pytest.approx(nll / tokens, rel=1e-5)
    assert values["loss"] == pytest.approx(nll / tokens + float(odds), rel=1e-5)


# --- KTO


def test_kto_by_hand(tuned):
    """The KL estimate pairs every prompt with the answer before it; undesirable answers are pushed the other way."""
    config = {"kind": "kto", "beta": 0.3, "desirable_weight": 1.5}
    found, gradient = tuned.gradient(objective(tuned, **config), [TIGHT])
    tuned.adapter.grad = None
    said, _ = sums(tuned, TIGHT)
    other = mismatched(TIGHT, spans_of(TIGHT))
    with torch.no_grad():
        others = sums(tuned, other)[0]
        with tuned.off():
            before, others_before = sums(tuned, TIGHT)[0], sums(tuned, other)[0]
    kl = (others - others_before).mean().clamp(min=0)
    desirable = torch.from_numpy(TIGHT.desirable)
    loss = losses.kto(said - before, desirable, kl, beta=0.3, desirable=1.5).mean()
    loss.backward()
    torch.testing.assert_close(gradient, tuned.adapter.grad, rtol=1e-4, atol=1e-6)
    assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found["kl"] == pytest.approx(float(kl), rel=1e-4, abs=1e-6)
    summary = objective(tuned, **config).summary(found)
    rewards = 0.3 * (said - before).detach()
    assert summary["rewards/chosen"] == pytest.approx(float(rewards[desirable].mean()), rel=1e-4)
    assert summary["rewards/rejected"] == pytest.approx(float(rewards[~desirable].mean()), rel=1e-4)
    assert "desirable" not in summary


def test_mismatched_answers():
    """Every document is the prompt of one answer and the answer before it, the first with the last."""
    other = mismatched(TIGHT, spans_of(TIGHT))
    for i, (row, begin, _, first, last) in enumerate(spans_of(other)):
        ids, labels = DOCUMENTS[i]
        prompt = ids[: int(np.argmax(labels >= 0)) + 1]
        answer = DOCUMENTS[i - 1][1][DOCUMENTS[i - 1][1] >= 0]
        assert other.ids[row, begin : first + 1].tolist() == prompt.tolist()
        assert other.labels[row, first : last + 1].tolist() == answer.tolist()
        assert other.ids[row, first + 1 : last + 1].tolist() == answer[:-1].tolist()
    assert other.ids.shape[1] == TIGHT.ids.shape[1]


def test_kto_of_one_answer_has_no_divergence(tuned):
    values, _ = tuned.gradient(objective(tuned, kind="kto"), [packed(DOCUMENTS, [[0]])])
    assert values["kl"] == 0.0


# --- what all have in common


def test_nothing_but_labels_is_multiplied_by_the_head():
    """And in pieces: the memory of logits does not grow with the batch."""
    rows = []
    tuned = Tuned()
    tuned.model.lm_head.weight.requires_grad_(True)  # a frozen one is multiplied without being called
    tuned.model.lm_head.register_forward_pre_hook(lambda _, x: rows.append(len(x[0])))
    label_logps(tuned.model, TIGHT, Settings())
    assert sum(rows) == int((TIGHT.labels >= 0).sum())


def test_objectives_without_preferences_are_the_usual_loss():
    for kind in ("sft", "pretrain"):
        made = objective_of(ObjectiveConfig(kind=kind), Settings(recompute=True), z_loss=1e-4)
        assert isinstance(made, NextToken)
        assert (made.recompute, made.z_loss) == (True, 1e-4)


@pytest.mark.parametrize(("kind", "words"), [("dpo", "simpo or orpo"), ("kto", "lora"), ("grpo", "beta to 0")])
def test_a_reference_that_cannot_be(kind, words):
    with pytest.raises(ValueError, match=words):
        objective_of(ObjectiveConfig(kind=kind, beta=0.1), Settings())


def test_pairs_are_not_split_over_lanes(tmp_path, tuned):
    made = job(tmp_path, objective=objective(tuned, kind="dpo"), lanes=Lanes(2, 1))
    with pytest.raises(ValueError, match="use one lane"):
        Training(made)
    made.lanes.close()
    made.report.close()


def test_batches_that_are_none(tuned):
    pairs = objective(tuned, kind="dpo")
    with pytest.raises(ValueError, match="kind kto"):
        pairs.measure(packed(DOCUMENTS, [[0, 1, 2]]))
    broken = packed(DOCUMENTS, [[0, 1]])
    broken.sequences[broken.sequences == 1] = 2
    with pytest.raises(ValueError, match="without a gap"):
        answers_in(broken)
    broken = packed(DOCUMENTS, [[0, 1]])
    broken.labels[0, 0] = 3
    with pytest.raises(ValueError, match="without an answer's number"):
        answers_in(broken)
    broken = packed(DOCUMENTS, [[0, 1]])
    broken.documents[:] = 0
    with pytest.raises(ValueError, match="shares a document"):
        spans_of(broken)
