import numpy as np
import pytest
import torch

from gangpao.compress.prune.cut import Kept, cut
from gangpao.compress.prune.reconstruct import reconstructed
from gangpao.compress.prune.shape import Shape, total
from gangpao.compress.prune.source import build
from gangpao.compress.prune.statistics import collect
from gangpao.model import weights
from gangpao.model.count import parameters
from tests.compress.prune.small import ids, kept, kill, logits, model
from tests.model.tiny import KINDS

PLAIN = ("llama", "minicpm", "qwen2", "qwen3")
WIDTH = [i for i in range(64) if i % 3]
CUTS = {
    "layers": {"layers": [0, 2]},
    "ffn": {"ffn": range(1, 96, 2)},
    "groups": {"heads": [2, 3], "groups": [1]},
    "heads": {"heads": [1, 2]},
    "width": {"width": WIDTH},
    "all": {"layers": [1, 2], "ffn": range(40), "heads": [0], "groups": [0], "width": WIDTH},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("what", CUTS)
@pytest.mark.parametrize("kind", PLAIN)
def test_what_is_zero_can_go_and_nothing_changes(kind, what, tied):
    built = model(kind, tie_word_embeddings=tied)
    k = kept(built.config, **CUTS[what])
    kill(built, k)
    rows = ids()
    before = logits(built, rows)
    full = weights.state(built)
    energies = {n.removesuffix(".square"): t for n, t in collect(built, rows).items() if n.endswith("weight.square")}
    for seen in (None, energies):
        small = build(*cut(built.config, full, k, seen))
        after = logits(small, rows)
        if what == "layers":  # the factor of a branch is computed from a rounded scale_depth
            torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
        elif kind == "qwen3" and "width" in CUTS[what]:  # epsilon inside the heads' norms changes with the others'
            torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
        else:
            torch.testing.assert_close(after, before, rtol=2e-5, atol=2e-5)
        assert after.abs().max() > 0.1
    changed = reconstructed(built, rows, k, 0.01)
    again = logits(build(*cut(built.config, full | changed, k)), rows)
    torch.testing.assert_close(again, logits(build(*cut(built.config, full, k)), rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("what", CUTS)
def test_parameters_are_what_the_shape_says(kind, what):
    built = model(kind)
    k = kept(built.config, **CUTS[what])
    small, tensors = cut(built.config, weights.state(built), k)
    count = sum(t.numel() for t in tensors.values())
    assert count == parameters(small).total == total(built.config, k.shape) == total(small, Shape.of(small))
    assert count < parameters(built.config).total


def test_what_stays_keeps_its_order():
    built = model("qwen2")
    c = built.config
    k = kept(c, layers=[0, 2], ffn=[3, 5, 90], heads=[1, 2], width=WIDTH)
    _, small = cut(c, weights.state(built), k)
    old, new = built.model.layers[2], "model.layers.1"
    up = old.mlp.up_proj.weight[[3, 5, 90]][:, WIDTH]
    assert torch.equal(small[f"{new}.mlp.up_proj.weight"], up)
    assert torch.equal(small[f"{new}.mlp.down_proj.weight"], old.mlp.down_proj.weight[:, [3, 5, 90]][WIDTH])
    assert torch.equal(small[f"{new}.self_attn.q_proj.bias"], old.self_attn.q_proj.bias[16:48])
    assert torch.equal(small[f"{new}.self_attn.o_proj.weight"], old.self_attn.o_proj.weight[WIDTH][:, 16:48])
    assert torch.equal(small[f"{new}.self_attn.k_proj.weight"], old.self_attn.k_proj.weight[:, WIDTH])
    assert torch.equal(small["model.embed_tokens.weight"], built.model.embed_tokens.weight[:, WIDTH])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": [0, 1, 2], "groups": [0, 1]}, "equally many"),
        ({"heads": [0, 1], "groups": [0, 1]}, "equally many"),
        ({"ffn": [5, 3]}, "ascending"),
        ({"ffn": [95, 96]}, "below 96"),
        ({"layers": [0, 3]}, "below 3"),
        ({"width": [1, 1]}, "ascending"),
    ],
)
def test_a_selection_that_is_none_is_refused(changes, words):
    built = model()
    with pytest.raises(ValueError, match=words):
        cut(built.config, weights.state(built), kept(built.config, **changes))


@pytest.mark.parametrize("kind", ["moe", "mla"])
def test_of_experts_and_latent_attention_layers_can_go(kind):
    built = model(kind)
    k = kept(built.config, layers=[0, 2])
    kill_layer(built, 1)
    small = build(*cut(built.config, weights.state(built), k))
    torch.testing.assert_close(logits(small, ids()), logits(built, ids()), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="only whole layers"):
        cut(built.config, weights.state(built), kept(built.config, ffn=range(32)))


def kill_layer(built, i):
    for name, p in built.model.layers[i].named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "w2.weight")):
            p.zero_()


def test_energy_that_goes_is_taken_out_of_the_norms():
    """A norm over what stays gives the size that it gave before, as far as calibration text says."""
    built = model("llama")
    with torch.no_grad():
        built.model.embed_tokens.weight[:, ::4] *= 5  # much of the energy lies where it is cut
    rows = ids()
    k = kept(built.config, width=[i for i in range(64) if i % 4])
    found = collect(built, rows)
    energies = {n.removesuffix(".square"): t for n, t in found.items() if n.endswith("weight.square")}
    name = "model.layers.0.input_layernorm.weight"
    full = weights.state(built)
    small = build(*cut(built.config, full, k, energies))
    outs = [collect(m, rows)[f"{name}.out"] for m in (built, small)]
    assert float(outs[1].sum() / outs[0][list(k.width)].sum()) == pytest.approx(1, rel=0.15)
    plain = build(*cut(built.config, full, k))
    assert float(collect(plain, rows)[f"{name}.out"].sum() / outs[0][list(k.width)].sum()) > 2


def test_what_stays_is_read_back():
    k = kept(model().config, **{n: list(v) for n, v in CUTS["all"].items()})
    assert Kept.read(k.facts()) == k
    k.check(model().config)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_the_forward_pass(kind):
    built, rows = model(kind), ids(2)
    found = collect(built, rows)
    seen = []
    handle = built.model.norm.register_forward_hook(lambda _, i, o: seen.append((i[0], o)))
    built(torch.from_numpy(rows))
    handle.remove()
    (x, y), c = seen[0], built.config
    torch.testing.assert_close(found["model.norm.weight.square"], x.square().mean((0, 1)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["model.norm.weight.absolute"], y.abs().mean((0, 1)), rtol=1e-5, atol=1e-6)
    assert found["cosine"].shape == (c.num_hidden_layers + 1,) * 2
    np.testing.assert_allclose(found["cosine"].diagonal(), 1, rtol=1e-5)
    assert ("ffn_square" in found, "head_norm" in found) == (kind != "moe", kind not in ("mla", "delta"))
