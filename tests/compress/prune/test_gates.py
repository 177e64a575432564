import shutil

import pytest
import torch

from gangpao.compress.prune.cut import cut
from gangpao.compress.prune.gates.l0 import Clock, Gated, Gates, attach, folded
from gangpao.compress.prune.shape import Shape
from gangpao.compress.prune.source import build
from gangpao.model import weights
from gangpao.train.step.loss import NextToken
from tests.compress.prune.small import ids, logits, model
from tests.train import tiny

SHAPE = Shape(2, 48, 2, 2, 48)


def gated(shape=SHAPE, **fields):
    built = model("minicpm", **fields)
    gates = Gates(built.config, shape, seed=0)
    attach(built, gates)
    return built.eval(), gates


def test_open_gates_change_nothing():
    rows = ids()
    built, gates = gated()
    assert set(gates.shares) == {"layers", "ffn", "heads", "width"}
    torch.testing.assert_close(logits(built, rows), logits(model("minicpm"), rows), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [SHAPE, Shape(3, 96, 2, 1, 64), Shape(3, 32, 1, 1, 32), Shape(1, 96, 4, 2, 64)])
def test_what_is_cut_computes_what_the_gates_computed(shape):
    """With gates that are shut or (those of the stream) wide open, the small model is the gated one."""
    built, gates = gated(shape, tie_word_embeddings=False)
    kept = gates.kept()
    with torch.no_grad():
        for name in gates.shares:
            a = gates.get_parameter(name)
            a.copy_(torch.where(a >= a.sort(descending=True).values[:, :1], 1.3, a - 20))  # the best a little shut
        for new, i in enumerate(kept.layers):
            if "ffn" in gates.shares:
                gates.get_parameter("ffn")[i, list(kept.ffn[new])] = 2.0
            if "heads" in gates.shares:
                gates.get_parameter("heads")[i] = -20
                gates.get_parameter("heads")[i, list(kept.heads[new])] = 1.7
            if "groups" in gates.shares:
                gates.get_parameter("groups")[i, list(kept.groups[new])] = 2.1
        if "layers" in gates.shares:
            gates.get_parameter("layers")[0, list(kept.layers)] = 1.5
        if "width" in gates.shares:
            gates.get_parameter("width")[0] = -20
            gates.get_parameter("width")[0, list(kept.width)] = 20
    assert gates.kept() == kept
    rows = ids()
    small = build(*cut(built.config, folded(built, gates, kept), kept))
    torch.testing.assert_close(logits(small, rows), logits(built, rows), rtol=1e-4, atol=1e-4)


def test_multipliers_go_up_where_all_else_goes_down():
    gates = Gates(model().config, Shape(3, 48, 4, 2, 64), seed=0)
    gates.penalty(1.0).backward()
    away = gates.open_shares()["ffn"] - 0.5
    assert (gates.get_parameter("ffn_lambda1").grad < 0).all()  # minimised: lambda grows while too many are open
    torch.testing.assert_close(gates.get_parameter("ffn_lambda1").grad, -away.detach())
    assert gates.penalty(0.0).item() == 0  # no multiplier yet
    with torch.no_grad():
        gates.get_parameter("ffn_lambda1").fill_(1.0)
    assert gates.penalty(0.0).abs() < gates.penalty(0.5) < gates.penalty(1.0)


def job(folder, *, steps=60, every=20, micro_rows=4):
    config = tiny.shape()
    shape = Shape(2, 24, 2, 2, 32)
    gates = Gates(config, shape, seed=3)
    clock = Clock(lambda step: 0.1)
    objective = Gated(NextToken(), gates, clock, steps // 2)
    j = tiny.job(folder, stages=(("stable", steps),), config=config, objective=objective, micro_rows=micro_rows)
    attach(j.model, gates)
    j.optimizer = type(j.optimizer)(j.model.named_parameters(), _rule, tiny.OptimizerConfig(lr=0.1))
    j.learning_rate = clock
    j.save = tiny.SaveConfig(every_steps=every)
    torch.manual_seed(0)
    return j, gates


def _rule(name):
    return tiny.rule_of(name, tiny.shape())._replace(
        decay_scale=0.0, lr_scale=1.0 if name.startswith("gates") else 0.05
    )


def test_training_reaches_the_target_and_goes_on_with_the_same_bits(tmp_path):
    j, gates = job(tmp_path / "whole")
    tiny.fit(j)
    shares = gates.open_shares()
    assert shares["ffn"].mean().item() == pytest.approx(0.5, abs=0.12)
    assert shares["heads"].mean().item() == pytest.approx(0.5, abs=0.2)
    values = gates.get_parameter("ffn").detach()
    assert values.max() - values.min() > 2  # decided, not half open everywhere
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "step-00000060")
    j, _ = job(tmp_path / "killed")
    tiny.fit(j)
    assert tiny.same_end(tmp_path / "whole", tmp_path / "killed")


def test_weights_of_gates_are_not_the_models(tmp_path):
    built, gates = gated(tie_word_embeddings=True)
    assert folded(built, gates, gates.kept()).keys() == weights.state(model("minicpm")).keys()
