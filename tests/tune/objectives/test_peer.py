"""Values and gradients of our losses beside TRL's own code on the same log-probabilities, where TRL is installed."""

import pytest
import torch

from gangpao.tune.objectives import logps, losses
from tests.tune.objectives import peer, test_losses, tiny

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install --no-deps trl==1.16.0")

P, T = 5, 9


@pytest.fixture
def drawn():
    """Log-probabilities [2P, T - 1] of answers of different lengths, the mask of their tokens [2P, T], and the reference's sums."""
    if trl.__version__ != peer.VERSION:
        pytest.skip(f"these are the losses of TRL {peer.VERSION}, here is {trl.__version__}")
    generator = torch.Generator().manual_seed(0)
    logps = -3 * torch.rand(2 * P, T - 1, generator=generator)
    lengths = torch.randint(2, T - 1, (2 * P,), generator=generator)
    mask = (torch.arange(T)[None] >= T - lengths[:, None]).long()
    before = (logps * mask[:, 1:]).sum(1) + 4 * torch.randn(2 * P, generator=generator)
    return logps.requires_grad_(), mask, before


def same(ours, theirs, logps):
    """Loss and gradient."""
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5, abs=1e-6)
    expected = torch.autograd.grad(theirs, logps, retain_graph=True)[0]
    found = torch.autograd.grad(ours, logps)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def halves(logps, mask, before):
    """Log-ratios of whole answers and lengths, chosen and rejected."""
    shown = mask[:, 1:]
    ratios = (logps * shown).sum(1) - before
    return (*ratios.chunk(2), *shown.sum(1).float().chunk(2))


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo(drawn, beta):
    logps, mask, before = drawn
    theirs, metrics = peer.dpo(logps, before, mask, beta=beta)
    chosen, rejected, _, _ = halves(logps, mask, before)
    same(losses.dpo(chosen, rejected, beta=beta).mean(), theirs, logps)
    assert metrics["rewards/chosen"][0] == pytest.approx(float(beta * chosen.detach().mean()), rel=1e-5)
    assert metrics["rewards/accuracies"][0] == pytest.approx(float((chosen > rejected).float().mean()))


def test_dpo_smoothed(drawn):
    """TRL's "sigmoid" takes no notice of label_smoothing; its "aot_unpaired" of one pair is the smoothed loss of that pair."""
    logps, mask, before = drawn
    plain, _ = peer.dpo(logps, before, mask)
    assert torch.equal(peer.dpo(logps, before, mask, label_smoothing=0.2)[0], plain)
    chosen, rejected, _, _ = halves(logps, mask, before)
    ours = losses.dpo(chosen, rejected, beta=0.1, label_smoothing=0.2)
    for i in range(P):
        pair = [i, i + P]
        theirs, _ = peer.dpo(logps[pair], before[pair], mask[pair], kind="aot_unpaired", label_smoothing=0.2)
        assert float(ours[i].detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
        torch.testing.assert_close(
            torch.autograd.grad(ours[i], logps, retain_graph=True)[0], torch.autograd.grad(theirs, logps)[0]
        )


def test_ipo(drawn):
    logps, mask, before = drawn
    theirs, _ = peer.dpo(logps, before, mask, kind="ipo")
    chosen, rejected, long, short = halves(logps, mask, before)
    same(losses.ipo(chosen / long, rejected / short, beta=0.1).mean(), theirs, logps)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_simpo(drawn, label_smoothing):
    logps, mask, _ = drawn
    chosen, rejected, long, short = halves(logps, mask, torch.zeros(2 * P))
    chosen, rejected = chosen / long, rejected / short
    options = {"beta": 2.0, "gamma": 1.0, "label_smoothing": label_smoothing}
    same(losses.simpo(chosen, rejected, **options).mean(), peer.simpo(chosen, rejected, **options).mean(), logps)


def test_orpo(drawn):
    """TRL's cross-entropy is over prompt and answer and all tokens of the batch; its odds are of answers."""
    _, mask, _ = drawn
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2 * P, T, 11, generator=generator).requires_grad_()
    ids = torch.randint(0, 11, (2 * P, T), generator=generator)
    theirs, _ = peer.orpo(logits, ids, torch.where(mask == 1, ids, -100), beta=0.3)
    logps = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    chosen, rejected, long, short = halves(logps, mask, torch.zeros(2 * P))
    nll = -logps[:P].mean()
    same(nll + losses.odds_ratio(chosen / long, rejected / short, beta=0.3).mean(), theirs, logits)


def test_odds_of_likely_answers():
    """Both forms of log(1 - p), and their border."""
    _, trainer_of = peer.experimental()
    logps = torch.tensor([-20.0, -3.0, -0.7, -0.6931, -0.69, -0.5, -1e-3, -1e-6], requires_grad=True)
    ours = losses.log_odds(logps)
    trainer = peer.bare(trainer_of, beta=1.0)
    theirs = trainer.odds_ratio_loss(logps, torch.full((8,), -0.6931472))[0]  # odds of 1
    torch.testing.assert_close(torch.nn.functional.logsigmoid(ours), theirs, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(ours.sum(), logps)[0].isfinite().all()


@pytest.mark.parametrize("shift", [2.0, -2.0], ids=["KL above 0", "KL held at 0"])
def test_kto(drawn, shift):
    logps, mask, before = drawn
    other = -3 * torch.rand(2 * P, T - 1, generator=torch.Generator().manual_seed(2))
    other_before = (other * mask[:, 1:]).sum(1) - shift
    desirable = torch.tensor([True, False, True, True, False] * 2)
    theirs, metrics = peer.kto(logps, before, other, other_before, mask, desirable, weights=(1.5, 0.5))
    ratios = (logps * mask[:, 1:]).sum(1) - before
    kl = torch.tensor(max(0.0, shift))
    ours = losses.kto(ratios, desirable, kl, beta=0.1, desirable=1.5, undesirable=0.5)
    same(ours.mean(), theirs, logps)
    assert metrics["kl"][0] == pytest.approx(float(kl), abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("average", ["grpo", "dapo", "bnpo", "dr_grpo", "cispo"])
def test_grpo(drawn, average, beta):
    logps, mask, _ = drawn
    mask = mask[:, 1:]
    generator = torch.Generator().manual_seed(3)
    old = logps.detach() + 0.4 * torch.randn(logps.shape, generator=generator)
    before = logps.detach() + 0.4 * torch.randn(logps.shape, generator=generator)
    gains = torch.randn(2 * P, generator=generator)
    high = 1.1 if average == "cispo" else 0.28
    theirs, _ = peer.grpo(logps, old, before, mask, gains, average=average, beta=beta, high=high)
    ratios = (logps - old).exp()
    if average == "cispo":
        tokens = losses.weighted(logps, ratios, gains[:, None], largest=high)
    else:
        tokens = losses.clipped(ratios, gains[:, None], low=0.2, high=high)
    tokens = (tokens + beta * losses.divergence(logps, before)) * mask
    whole = {"grpo": (tokens.sum(1) / mask.sum(1)).mean(), "dr_grpo": tokens.sum() / (2 * P * 8)}
    same(whole.get(average, tokens.sum() / mask.sum()), theirs, logps)


def test_grpo_of_sequences_and_two_sided(drawn):
    logps, mask, _ = drawn
    mask = mask[:, 1:]
    old = logps.detach() + 0.9 * torch.randn(logps.shape, generator=torch.Generator().manual_seed(3))
    gains = torch.linspace(-2, 2, 2 * P)
    theirs, _ = peer.grpo(logps, old, None, mask, gains, average="grpo", delta=1.5)
    tokens = losses.clipped((logps - old).exp(), gains[:, None], low=0.2, high=0.2, delta=1.5)
    same(((tokens * mask).sum(1) / mask.sum(1)).mean(), theirs, logps)
    theirs, _ = peer.grpo(logps, old, None, mask, gains, average="grpo", ratio="sequence")
    ratios = (((logps - old) * mask).sum(1) / mask.sum(1)).exp()
    same(losses.clipped(ratios, gains, low=0.2, high=0.2).mean(), theirs, logps)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages(scale):
    """The formula of GRPOTrainer._generate_and_score_completions, through its own standard deviation."""
    from trl.trainer.utils import nanstd

    rewards = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    expected = rewards - rewards.mean(1, keepdim=True)
    if scale == "group":
        expected = expected / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    torch.testing.assert_close(losses.advantages(rewards, scale), expected)


def test_the_table_of_the_fast_tests(drawn):
    """The numbers in test_losses.py are those of the TRL that is installed."""
    logps = test_losses.LOGPS
    mask = torch.cat([torch.zeros(4, 1, dtype=torch.long), test_losses.MASK], dim=1)
    before, old, gains = test_losses.BEFORE, test_losses.OLD, test_losses.ADVANTAGES
    means = (test_losses.LOGPS * test_losses.MASK).sum(1) / test_losses.MASK.sum(1)
    _, orpo = peer.experimental()
    kl = torch.zeros(4, 3)
    desirable = torch.tensor([True, True, False, False])

    def grpo(average, beta=0.0):
        high = 1.1 if average == "cispo" else 0.28
        options = {"average": average, "beta": beta, "high": high}
        return peer.grpo(test_losses.LOGPS, old, old, test_losses.MASK, gains, **options)[0]

    found = {
        "dpo": peer.dpo(logps, before, mask, beta=0.3)[0],
        "ipo": peer.dpo(logps, before, mask, kind="ipo")[0],
        "simpo": peer.simpo(means[:2], means[2:], beta=2.0, gamma=1.0, label_smoothing=0.1).mean(),
        "odds": -peer.bare(orpo, beta=0.1).odds_ratio_loss(means[:2], means[2:])[0].mean(),
        "kto": peer.kto(logps, before, kl, kl.sum(1) - 0.25, mask, desirable, weights=(1.5, 0.5))[0],
        **{average: grpo(average) for average in ("grpo", "dapo", "dr_grpo", "cispo")},
        "dapo with KL": grpo("dapo", 0.04),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(test_losses.TRL, rel=1e-6)


def test_log_probabilities_of_answers_in_packed_rows():
    """From the same logits, which TRL has whole."""
    trainer_of, _ = peer.experimental()
    tuned, documents = tiny.Tuned(), tiny.answers(4)
    packed = logps.label_logps(tuned.model, tiny.packed(documents, [[2, 0], [1, 3]]), logps.Settings()).sums()
    for i, (ids, labels) in enumerate(documents):
        logits = tuned.model.logits(tuned.model(torch.from_numpy(ids)[None]).hidden)
        shifted = torch.cat([torch.tensor([[-100]]), torch.from_numpy(labels)[None]], dim=1)
        padded = torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1)
        torch.testing.assert_close(packed[i], trainer_of.get_batch_logps(padded, shifted)[0], rtol=1e-5, atol=1e-5)
