"""Scores, which layers go, what takes over, and which shape is solved for."""

import sys
import types

import numpy as np
import pytest
import torch

from gangpao.compress.prune import solve, source
from gangpao.compress.prune.config import Calibration
from gangpao.compress.prune.cut import cut
from gangpao.compress.prune.layers import Order, Remembered
from gangpao.compress.prune.measure import Judge, only_layers
from gangpao.compress.prune.reconstruct import reconstructed, takeover
from gangpao.compress.prune.scores import best, best_heads, keep, lost_ffn, scores
from gangpao.compress.prune.shape import Shape, total
from gangpao.compress.prune.source import build
from gangpao.compress.prune.statistics import collect
from gangpao.model import weights
from tests.compress.prune.small import ids, kept, kill, logits, model


def test_the_best_stay_in_their_order_and_of_equals_the_first():
    assert best(torch.tensor([1.0, 3.0, 2.0, 3.0, 0.5]), 3) == (1, 2, 3)
    assert best(torch.tensor([1.0, 1.0, 1.0]), 2) == (0, 1)


def test_whole_groups_and_heads_within_groups():
    c = model().config  # 4 heads, 2 groups
    values = torch.tensor([9.0, 1.0, 5.0, 6.0])
    assert best_heads(c, values, 2, 1) == ((0, 1), (0,))
    assert best_heads(c, values, 2, 2) == ((0, 3), (0, 1))
    assert best_heads(c, values, 1, 1) == ((0,), (0,))


@pytest.mark.parametrize("by", ["activation", "contribution"])
def test_what_does_nothing_goes_first(by):
    built = model("qwen2")
    c = built.config
    want = kept(c, ffn=range(0, 96, 3), heads=[1, 3], width=[i for i in range(64) if i % 4])
    kill(built, want)
    with torch.no_grad():  # also for scores that look at activations alone
        for i, block in enumerate(built.model.layers):
            gone = [j for j in range(96) if j not in want.ffn[i]]
            block.mlp.up_proj.weight[gone] = 0
            for head in (0, 2):
                block.self_attn.q_proj.weight[head * 16 : head * 16 + 16] = 0
    s = scores(c, weights.state(built), collect(built, ids()), by)
    found = keep(c, s, Shape(3, 32, 4, 2, 48), range(3))
    assert found.ffn == want.ffn
    assert found.width == want.width
    if by == "contribution":
        assert keep(c, s, Shape(3, 32, 2, 2, 48), range(3)).heads == want.heads


def test_importance_of_channels_chooses_better_than_chance():
    built, rows = model("llama"), ids(6)
    c, full = built.config, weights.state(built)
    s = scores(c, full, collect(built, rows), "contribution")
    judge = Judge(built, ids(3, seed=9), "kl")
    ours = judge(build(*cut(c, full, keep(c, s, Shape(3, 64, 4, 2, 64), range(3)))))
    rng = np.random.default_rng(0)
    chance = []
    for _ in range(3):
        random = kept(c, ffn=sorted(rng.permutation(96)[:64].tolist()))
        chance.append(judge(build(*cut(c, full, random))))
    assert ours < min(chance)


def test_what_stays_takes_over():
    built, rows = model("llama"), ids(16)
    c, full = built.config, weights.state(built)
    s = scores(c, full, collect(built, rows), "contribution")
    judge = Judge(built, ids(4, seed=5), "kl")
    for shape in (Shape(3, 48, 4, 2, 64), Shape(3, 96, 2, 1, 64), Shape(3, 96, 4, 2, 48)):
        k = keep(c, s, shape, range(3))
        changed = reconstructed(built, rows, k, 0.01)
        plain, better = (judge(build(*cut(c, full | more, k))) for more in ({}, changed))
        assert better < 0.97 * plain, shape


def test_the_take_over_is_the_least_squares_answer():
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(200, 12, generator=generator, dtype=torch.float64)
        @ torch.randn(12, 12, generator=generator).double()
    )
    w = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    stays = torch.tensor([0, 2, 3, 7, 8, 11])
    found = w[:, stays] + takeover(w, x.T @ x / 200, stays, 1e-12)
    exact = torch.linalg.lstsq(x[:, stays], x @ w.T).solution.T
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
    assert not takeover(w, torch.zeros(12, 12, dtype=torch.float64), stays, 0.01).any()


def test_divergence_and_loss_are_those_of_the_whole_tables():
    built, other, rows = model(), model(seed=3), ids(3)
    logp, logq = (torch.log_softmax(logits(m, rows), -1) for m in (built, other))
    kl = float((logp.exp() * (logp - logq)).sum(-1).mean())
    assert Judge(built, rows, "kl")(other) == pytest.approx(kl, rel=1e-5)
    assert Judge(built, rows, "kl")(built) == pytest.approx(0, abs=1e-7)
    labels = torch.from_numpy(rows[:, 1:])[..., None]
    assert Judge(built, rows, "loss")(other) == pytest.approx(-float(logq[:, :-1].gather(-1, labels).mean()), rel=1e-5)


def test_a_layer_left_out_keeps_the_factor_of_the_others():
    built, rows = model(), ids()
    with only_layers(built, [0, 2]) as without:
        shorter = logits(without, rows)
    assert len(built.model.layers) == 3
    small = build(*cut(built.config, weights.state(built), kept(built.config, layers=[0, 2])))
    torch.testing.assert_close(logits(small, rows), shorter, rtol=1e-5, atol=1e-5)


def test_searches_leave_out_what_matters_least():
    costs = {0: 5.0, 1: 1.0, 2: 1.1, 3: 0.9, 4: 4.0}

    def without(gone):  # 1 and 3 together are worse than either says
        return sum(costs[i] for i in gone) + (10 if {1, 3} <= set(gone) else 0)

    cosine = torch.eye(6)
    assert Order(5, "kl", "each", cosine, without).stays(3) == (0, 2, 4)
    assert Order(5, "kl", "greedy", cosine, without).stays(3) == (0, 1, 4)
    assert Order(5, "kl", "block", cosine, without).stays(3) == (0, 1, 4)
    assert Order(5, "kl", "block", cosine, without).stays(2) == (0, 1)
    near = torch.tensor([[abs(i - j) for j in range(6)] for i in range(6)]) * -0.1 + 1
    near[3, 4] = 0.99
    assert Order(5, "influence", "each", near, without).stays(4) == (0, 1, 2, 4)
    near[1, 4] = 0.995
    assert Order(5, "influence", "block", near, without).stays(2) == (0, 4)


def test_measurements_are_remembered_also_past_a_line_that_was_cut(tmp_path):
    asked = []
    path = tmp_path / "layers.jsonl"

    def measure(key):
        asked.append(key)
        return sum(key) / 3

    first = Remembered(path, measure)
    assert [first((1,)), first((1, 2)), first((1,))] == [1 / 3, 1.0, 1 / 3]
    path.write_text(path.read_text() + '{"key": [2')
    again = Remembered(path, measure)
    assert [again((1, 2)), again((2,))] == [1.0, 2 / 3]
    assert asked == [(1,), (1, 2), (2,)]
    assert Remembered(path, measure).known == again.known


def wanted(**given):
    none = dict.fromkeys(("layers", "ffn", "heads", "kv_heads", "width", "parameters"))
    return solve.Wanted(**(none | {"multiple": 8, "least": 0.5} | given))


def test_shapes_for_a_number_of_parameters():
    c = model().config
    full = total(c, Shape.of(c))
    found = solve.shapes(c, wanted(parameters=0.6))
    assert all(0.5 * full < total(c, shape) <= round(0.6 * full) for shape in found if shape.ffn < 90)
    assert len({(s.layers, s.width) for s in found}) > 3
    only = solve.shapes(c, wanted(parameters=0.8, layers=3, width=1.0, heads=1.0))
    assert [(s.layers, s.width, s.heads) for s in only] == [(3, 64, 4)]
    assert total(c, Shape(3, only[0].ffn + 8, 4, 2, 64)) > 0.8 * full
    with pytest.raises(ValueError, match="cannot be reached; the smallest shape here"):
        solve.shapes(c, wanted(parameters=0.1))
    with pytest.raises(ValueError, match="cannot be reached"):
        solve.shapes(c, wanted(parameters=0.5, layers=1.0, ffn=1.0, heads=1.0, width=1.0))


def test_the_best_of_each_kind_is_measured_first():
    shapes = [Shape(n, f, 4, 2, 64) for n in (3, 2) for f in (96, 64, 32)]
    ranked = [(i / 10, shape) for i, shape in enumerate(shapes)]
    assert solve.chosen(ranked, 3) == [shapes[0], shapes[3], shapes[1]]
    s = scores(model().config, weights.state(model()), collect(model(), ids()), "contribution")
    assert lost_ffn(s, 96) == pytest.approx(0, abs=1e-9)
    assert 0 < lost_ffn(s, 64) < lost_ffn(s, 32) < 1


def test_no_window_is_both_for_importance_and_for_comparison(monkeypatch, tmp_path):
    asked = {}

    def calibration_ids(tokenizer, files, *, windows, length):
        asked.update(files=files, windows=windows, length=length)
        return np.arange(windows * length).reshape(windows, length)

    stand_in = types.SimpleNamespace(calibration_ids=calibration_ids)
    monkeypatch.setitem(sys.modules, "gangpao.compress.importance.calibration", stand_in)
    told = Calibration(root=str(tmp_path), files=("a.txt",), windows=5, measured=3, length=8)
    first, second = source.windows(None, told)
    assert (first.shape, second.shape) == ((5, 8), (3, 8))
    assert sorted([*first[:, 0], *second[:, 0]]) == list(range(0, 64, 8))
    assert second[[0, -1], 0].tolist() == [0, 56]  # over the whole text, which goes from language to language
    assert asked == {"files": [tmp_path / "a.txt"], "windows": 8, "length": 8}
