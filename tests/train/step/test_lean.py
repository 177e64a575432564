"""Lean AdamW: what is rounded is right in the mean, a run goes on with the same bits, and the loss is that of fp32 AdamW."""

import dataclasses

import pytest
import torch
from torch import nn

from gangpao.model.init import Rule, rule_of
from gangpao.model.transformer import Transformer
from gangpao.train.config import OptimizerConfig
from gangpao.train.loop import Training
from gangpao.train.step import lean
from gangpao.train.step.lean import Lean, LeanConfig
from gangpao.train.step.loss import NextToken
from gangpao.train.step.optim import Optimizer
from tests.train.tiny import Memory, fit, job, losses, same_end, shape

RULE = Rule(None, 1.0, 1.0)
WAYS = [LeanConfig(rounding=r, second=s) for r in ("corrected", "stochastic") for s in ("blocks", "factored")]


def named(way):
    return f"{way.rounding}-{way.second}"


def spread(count, seed=0):
    """float32 over ten orders of magnitude, of both signs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator) * 10 ** (10 * torch.rand(count, generator=generator) - 8)


def test_bf16_and_8_bits_are_24_bits():
    x = spread(5000)
    none = torch.zeros(5000, dtype=torch.int32)
    weights, low = lean.split(x, none, corrected=True)
    joined = lean.join(weights, low)
    assert ((x - joined).abs() <= x.abs() * 2.0**-15).all()
    assert torch.equal(joined, (x.view(torch.int32) & ~0xFF).view(torch.float32))  # cut, where the noise is 0
    assert ((weights.float() - joined).abs() <= joined.abs() * 2.0**-8).all()  # the weights are the nearest bf16
    again = lean.split(joined, torch.full((5000,), 255 << 8, dtype=torch.int32), corrected=True)
    assert torch.equal(again[0], weights)  # what is exact stays, whatever the noise
    assert torch.equal(again[1], low)


@pytest.mark.parametrize("corrected", [True, False])
def test_rounding_of_weights_is_right_in_the_mean(corrected):
    x = spread(300)
    total = torch.zeros(300, dtype=torch.float64)
    for step in range(512):
        total += lean.join(*lean.split(x, lean.noise(7, 300, step, x), corrected=corrected)).double()
    ulp = x.abs() * 2.0 ** (-15 if corrected else -7)
    assert ((total / 512 - x).abs() <= 0.02 * ulp).all()


@pytest.mark.parametrize("levels", [127, 255])
def test_moments_in_8_bits(levels):
    x = spread(1000)
    x = x if levels == 127 else x.abs()
    total = torch.zeros(1000, dtype=torch.float64)
    for step in range(512):
        codes, largest = lean.encode(x, lean.noise(0, 1000, step, x), levels)
        assert int(codes.abs().max()) <= levels
        total += lean.decode(codes, largest, levels).double()
    block = largest.repeat_interleave(lean.BLOCK)[:1000]
    root = (x.abs() / block).sqrt() * levels
    assert ((total / 512 - x).abs() <= 0.03 * block * (2 * root + 1) / levels**2).all()


def test_noise_is_even():
    drawn = lean.noise(1 << 28, 4096, 12345, torch.zeros(()))
    assert 0 <= int(drawn.min()) < 32
    assert abs(float(drawn.float().mean()) - 32767.5) < 200


def model_and(make, dtype):
    c = shape(num_hidden_layers=1)
    model = Transformer.build(c, seed=1).to(dtype)
    model.tie()
    return model, make(model.named_parameters(), lambda name: rule_of(name, c))


def curve(make, dtype, steps, lr=0.01, beta2=0.95):
    """Losses of a small model."""
    options = OptimizerConfig(lr=lr, beta2=beta2)
    model, optimizer = model_and(lambda n, rule: make(n, rule, options), dtype)
    source, objective, out = Memory(5), NextToken(dtype=torch.float32), []
    for _ in range(steps):
        batch = source.take(4)
        optimizer.zero_grad()
        terms = objective(model, batch, 1 / objective.measure(batch)[0])
        terms.loss.backward()
        optimizer.step(lr)
        out.append(float(terms.values["loss"]))
    return torch.tensor(out)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=named)
def test_300_steps_are_those_of_fp32(way):
    """At a small learning rate, where a bf16 weight alone would not move, and a moment of 8 bits would never fall."""
    reference = curve(Optimizer, torch.float32, 300, lr=0.001, beta2=0.999)
    found = curve(lambda *a: Lean(*a, way), torch.bfloat16, 300, lr=0.001, beta2=0.999)
    bf16 = curve(Optimizer, torch.bfloat16, 300, lr=0.001, beta2=0.999)
    bound = 0.005 if way.second == "blocks" else 0.1  # a factored moment is another optimizer, no worse one
    assert (found - reference).abs().mean() < bound
    assert found[-50:].mean() < reference[-50:].mean() + bound
    assert bf16[-50:].mean() > found[-50:].mean() + 0.05


def test_the_first_steps_are_those_of_fp32():
    reference = curve(Optimizer, torch.float32, 15)
    for way in (WAYS[0], WAYS[2]):
        found = curve(lambda *a, way=way: Lean(*a, way), torch.bfloat16, 15)
        assert (found - reference).abs().mean() < 0.01


def test_small_and_float32_parameters():
    """Norms keep float32 moments; weights that are float32 need no correction. Both are AdamW to the last digits."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(0))
    options, ps = OptimizerConfig(weight_decay=0.1), [nn.Parameter(values.clone()) for _ in range(2)]
    ours = Lean([("norm", ps[0])], lambda _: RULE, options)
    theirs = Optimizer([("norm", ps[1])], lambda _: RULE, options)
    for step in range(5):
        for p in ps:
            p.grad = torch.cos(values * step)
        ours.step(0.01)
        theirs.step(0.01)
    torch.testing.assert_close(ps[0], ps[1], rtol=1e-5, atol=1e-6)
    assert set(ours.state()) == {"step.norm", "first.norm", "second.norm"}


def test_a_parameter_in_tiles_is_one_in_one_piece(monkeypatch):
    def run(way):
        p = nn.Parameter(spread(3000).view(60, 50).bfloat16())
        optimizer = Lean([("w", p)], lambda _: RULE, OptimizerConfig(), way)
        for step in range(3):
            p.grad = torch.sin(p.detach().float() * step).bfloat16()
            optimizer.step(0.01)
        return p.detach()

    whole = [run(way) for way in WAYS]
    monkeypatch.setattr(lean, "TILE", 2 * lean.BLOCK)
    for way, expected in zip(WAYS, whole, strict=True):
        torch.testing.assert_close(run(way), expected, rtol=0, atol=0) if way.second == "blocks" else (
            torch.testing.assert_close(run(way), expected)
        )


@pytest.mark.parametrize(("way", "bytes_a_weight"), list(zip(WAYS, [5, 4, 4, 3], strict=True)))
def test_bytes_a_weight(way, bytes_a_weight):
    p = nn.Parameter(torch.zeros(512, 1024, dtype=torch.bfloat16))
    optimizer = Lean([("w", p)], lambda _: RULE, OptimizerConfig(), way)
    p.grad = torch.ones_like(p)
    optimizer.step(0.01)
    kept = p.nbytes + sum(t.nbytes for t in optimizer.state().values())
    assert kept == lean.bytes_of(p.shape, p.dtype, way)
    assert kept / p.numel() == pytest.approx(bytes_a_weight, abs=0.04)


# --- in the loop


def lean_job(folder, config, **fields):
    made = job(folder, **fields)
    made.model.to(torch.bfloat16)
    made.model.tie()
    rules = lambda name: rule_of(name, made.model.config)  # noqa: E731
    optimizer = Lean(made.model.named_parameters(), rules, OptimizerConfig(lr=0.02), config)
    return dataclasses.replace(made, optimizer=optimizer, objective=NextToken(dtype=torch.float32))


RELEASED = LeanConfig(release=True)


@pytest.mark.parametrize(
    "config", [WAYS[0], WAYS[3], RELEASED], ids=["corrected-blocks", "stochastic-factored", "released"]
)
def test_resumed_is_uninterrupted_to_the_bit(tmp_path, config):
    fit(lean_job(tmp_path / "whole", config, stages=(("stable", 8),)))
    first = lean_job(tmp_path / "parts", config, stages=(("stable", 8),))
    training = Training(first)
    first.report.begin(0, 8)
    while training.step < 5:
        training._advance()
    training.save()
    first.report.close()
    fit(lean_job(tmp_path / "parts", config, stages=(("stable", 8),)))
    assert same_end(tmp_path / "parts", tmp_path / "whole")


class Dropping(NextToken):
    """Draws random numbers, so that the second backward pass has to draw the same ones."""

    def __call__(self, model, batch, scale):
        keep = torch.rand(batch.labels.shape) < 0.8
        labels = torch.where(keep, torch.from_numpy(batch.labels), -100).numpy()
        return super().__call__(model, dataclasses.replace(batch, labels=labels), scale)


@pytest.mark.parametrize("clip", [0.0, 0.25])
def test_released_exactly_is_kept(tmp_path, clip):
    """The same bits, and no gradient is left. Where it is clipped, kept gradients are rounded to bf16 once more."""
    ends = []
    for config in (LeanConfig(), RELEASED):
        torch.manual_seed(0)
        made = lean_job(tmp_path / str(config.release), config, stages=(("stable", 5),), clip=clip)
        fit(dataclasses.replace(made, objective=Dropping(dtype=torch.float32)))
        ends.append(losses(tmp_path / str(config.release)))
        assert all(p.grad is None for p in made.model.parameters())
    assert ends[0] == ends[1] if not clip else ends[0] == pytest.approx(ends[1], rel=1e-3)


def test_released_at_once_learns(tmp_path):
    fit(lean_job(tmp_path, LeanConfig(release=True, clipping="each", second="factored"), stages=(("stable", 25),)))
    found = losses(tmp_path)
    assert found[25] < found[1] - 0.2


def test_released_gradients_are_used_one_after_the_other():
    """While one is there, the others are not yet or not any more."""
    model, optimizer = model_and(lambda n, r: Lean(n, r, OptimizerConfig(), RELEASED), torch.bfloat16)
    most = []
    update = optimizer.update

    def counting(name, gradient, lr, **options):
        most.append(sum(p.grad is not None for p in model.parameters()))
        update(name, gradient, lr, **options)

    optimizer.update = counting
    optimizer.release.updating(0.01)
    NextToken(dtype=torch.float32)(model, Memory(0).take(2), 0.1).loss.backward()
    assert most == [0] * len(optimizer.parameters)


def test_from_a_gradient_that_is_not_finite_nothing_moves():
    p, q = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = Lean([("p", p), ("q", q)], lambda _: RULE, OptimizerConfig(), LeanConfig(release=True, clipping="each"))
    optimizer.release.updating(0.1)
    (p * float("nan")).sum().backward()
    q.sum().backward()
    assert torch.equal(p, torch.ones(4, 4))
    assert torch.equal(q, p)
    assert not float(optimizer.release.norm()) < float("inf")


def test_what_cannot_be(tmp_path):
    p = nn.Parameter(torch.ones(4, 4, dtype=torch.float16))
    with pytest.raises(ValueError, match="bfloat16 or float32"):
        Lean([("p", p)], lambda _: RULE, OptimizerConfig())
    made = lean_job(tmp_path, RELEASED, micro_rows=2)
    with pytest.raises(ValueError, match="2 micro-batches a step"):
        Training(made)
    made.report.close()
    one = Lean([("p", nn.Parameter(torch.ones(4, 4)))], lambda _: RULE, OptimizerConfig())
    one.named["p"].grad = torch.ones(4, 4)
    one.step(0.1)
    other = Lean([("p", one.named["p"])], lambda _: RULE, OptimizerConfig(), LeanConfig(second="factored"))
    with pytest.raises(ValueError, match="options it was saved with"):
        other.restore(one.state())
    with pytest.raises(ValueError, match="does not train"):
        other.restore({"step.q": torch.zeros(())})
