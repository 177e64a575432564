import shutil

import numpy as np
import pytest
import torch

from gangpao.compress.prune.masks import keep_masks, masked, read_masks, write_masks
from gangpao.compress.prune.measure import Judge
from gangpao.compress.prune.patterns import mask_of, pruned
from gangpao.compress.prune.source import build
from gangpao.model import weights
from tests.compress.prune.small import ids, model
from tests.train import tiny

METHODS = ("magnitude", "wanda", "sparsegpt")


def moment(width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(300, width, generator=generator).double() @ torch.randn(width, width, generator=generator).double()
    return x, x.T @ x / len(x)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
@pytest.mark.parametrize("by", METHODS)
def test_every_group_keeps_its_number(by, pattern):
    n, m = map(int, pattern.split(":"))
    w = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    new, mask = pruned(w, moment()[1], by, pattern, 0.01)
    assert (mask.view(7, -1, m).sum(-1) == n).all()
    assert not new[~mask].any()
    assert new.dtype == w.dtype
    if by != "sparsegpt":
        assert torch.equal(new[mask], w[mask])


def test_magnitude_and_wanda_take_the_largest():
    w = torch.tensor([[1.0, -3.0, 2.0, 0.5, 4.0, 4.0, 4.0, 4.0]])
    assert mask_of(w.abs(), 2, 4).int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0]]
    squares = torch.diag(torch.tensor([100.0, 1, 1, 100, 1, 1, 1, 1])).double()
    assert pruned(w, squares, "wanda", "2:4", 0.01)[1].int().tolist() == [[1, 0, 0, 1, 1, 1, 0, 0]]


def test_error_feedback_is_nearer_on_the_text():
    """Of the output, not of the weights: sparsegpt below wanda below magnitude."""
    x, h = moment(64)
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    errors = {}
    for by in METHODS:
        new, _ = pruned(w, h, by, "2:4", 0.01)
        errors[by] = float(((new - w).double() @ x.T).square().mean())
    assert errors["sparsegpt"] < 0.75 * errors["wanda"]
    assert errors["wanda"] < errors["magnitude"]


def test_a_column_that_is_never_there_is_no_error():
    x, _ = moment()
    x[:, 5] = 0
    new, _ = pruned(torch.randn(4, 32), x.T @ x, "sparsegpt", "2:4", 0.01)
    assert new.isfinite().all()
    nothing, mask = pruned(torch.randn(4, 32), torch.zeros(32, 32).double(), "sparsegpt", "2:4", 0.01)
    assert nothing.isfinite().all()
    assert mask.sum() == 64


@pytest.mark.parametrize("by", METHODS)
def test_a_model_is_masked_and_its_masks_read_back(by, tmp_path):
    built, rows = model("qwen2"), ids()
    small = build(built.config, {n: t.clone() for n, t in weights.state(built).items()})
    masks = masked(small, rows, by, "2:4", 0.01)
    assert len(masks) == 7 * 3
    named = dict(small.named_parameters())
    for name, mask in masks.items():
        assert not named[name][~mask].any()
        assert (mask.view(len(mask), -1, 4).sum(-1) == 2).all()
    untouched = dict(built.named_parameters()).keys() - masks.keys()
    assert all(torch.equal(named[n], dict(built.named_parameters())[n]) for n in untouched)
    folder = tmp_path / "model"
    write_masks(folder, masks)
    again = read_masks(folder)
    assert again.keys() == masks.keys()
    assert all(torch.equal(again[n], masks[n]) for n in masks)
    assert read_masks(tmp_path / "other" / "model") == {}
    (tmp_path / "masks.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="make the masks again"):
        read_masks(folder)


def test_better_methods_lose_less():
    built, rows = model("llama"), ids(16)
    judge = Judge(built, ids(4, seed=7), "kl")
    lost = {}
    for by in METHODS:
        small = build(built.config, {n: t.clone() for n, t in weights.state(built).items()})
        masked(small, rows, by, "2:4", 0.01)
        lost[by] = judge(small)
    assert lost["sparsegpt"] < lost["magnitude"]


def test_a_row_that_is_no_whole_groups_is_refused():
    with pytest.raises(ValueError, match=r"o_proj.weight have 20 weights|multiple of 8"):
        masked(model("llama", intermediate_size=92), ids(), "magnitude", "4:8", 0.01)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_masks_survive_training_with_decay_and_a_resumption(kind, tmp_path):
    """AdamW's momentum and decay, Muon's whole matrices: what is masked is exactly zero at each step, also in another process."""
    torch.set_num_threads(1)

    def run(folder):
        j = tiny.job(folder, stages=(("stable", 8),), optimizer=kind)
        generator = torch.Generator().manual_seed(4)
        masks = {
            n: mask_of(torch.rand(p.shape, generator=generator), 2, 4)
            for n, p in j.model.named_parameters()
            if p.ndim == 2 and "layers" in n
        }
        keep_masks(j.model, j.optimizer, masks)
        before = tiny.weights_of(j)
        tiny.fit(j)
        for n, p in j.model.named_parameters():
            if n in masks:
                assert not p[~masks[n]].any()
                assert (p[masks[n]] != 0).float().mean() > 0.99
        return j, before

    job, before = run(tmp_path / "whole")
    assert any(np.abs(before[n] - v).max() > 0.01 for n, v in tiny.weights_of(job).items() if "layers" in n)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "step-00000008")
    run(tmp_path / "killed")
    assert tiny.same_end(tmp_path / "whole", tmp_path / "killed")


def test_masks_of_another_model_are_refused(tmp_path):
    j = tiny.job(tmp_path)
    with pytest.raises(ValueError, match="does not belong"):
        keep_masks(j.model, j.optimizer, {"model.norm.weight": torch.ones(3, dtype=torch.bool)})
    j.report.close()
