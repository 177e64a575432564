"""In bf16 small factors count: fair rounding, and IA3 and DoRA learn as much in bf16 as in float32."""

import pytest
import torch

from gangpao.model.transformer import Transformer
from gangpao.tune.methods import MethodConfig, apply
from gangpao.tune.methods.rounding import round_fairly, scaled
from tests.model.tiny import tiny
from tests.tune.methods.peers import IDS


def test_rounding_is_right_in_the_mean_and_keeps_what_bf16_holds():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(round_fairly(x.float(), torch.bfloat16), x)
    for factor in (1.0005, 0.9995, 1.003):
        y = scaled(x, torch.full((200_000,), factor))
        assert y.dtype == torch.bfloat16
        mean = float(y.double().abs().sum() / x.double().abs().sum())
        assert mean == pytest.approx(factor, abs=1e-4)
        assert torch.equal(y, scaled(x, torch.full((200_000,), factor)))


def test_the_gradients_of_a_scaled_product_are_those_of_the_product():
    generator = torch.Generator().manual_seed(2)
    x, f = torch.randn(3, 5, 8, generator=generator).bfloat16().requires_grad_(), torch.ones(8, requires_grad=True)
    dy = torch.randn(3, 5, 8, generator=generator).bfloat16()
    dx, df = torch.autograd.grad(scaled(x, f), [x, f], dy)
    assert torch.equal(dx, dy)
    torch.testing.assert_close(df, (dy.float() * x.float()).sum((0, 1)), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", ["ia3", "dora"])
def test_small_steps_lower_the_loss_in_bf16_as_in_float32(kind):
    """Steps so small that a factor stays within half a step of bf16 around 1."""
    fallen = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = Transformer.build(tiny("llama"), seed=3)
        applied = apply(model, MethodConfig(kind=kind, rank=4), seed=1)
        values = [p for n, p in applied.trainable.items() if n.endswith(("factors", "magnitude"))]
        optimizer = torch.optim.SGD(values, lr=1.0)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            hidden = model(IDS, dtype=dtype).hidden
            logits = model.logits(hidden.float())[:, :-1].flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, IDS[:, 1:].flatten())
            loss.backward()
            for p in values:
                p.grad.sign_().mul_(6e-4)
            losses.append(float(loss.detach()))
            optimizer.step()
        fallen[dtype] = losses[0] - losses[-1]
    assert fallen[torch.float32] > 0
    assert fallen[torch.bfloat16] > 0.6 * fallen[torch.float32]
