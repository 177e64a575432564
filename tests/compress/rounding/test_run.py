"""A small model rounded whole: what is asked for comes out, in the file's order; killed runs end with the same bytes."""

import numpy as np
import pytest
import torch

from gangpao.compress.rounding import together
from gangpao.compress.rounding.config import RoundingConfig
from gangpao.compress.rounding.layers import Walk, _Summing
from gangpao.compress.rounding.replace import replaced
from gangpao.compress.rounding.replace import types_of as types_in
from gangpao.compress.rounding.run import RowOrders, rounded
from gangpao.compress.rounding.sweep import Sweep
from gangpao.deploy import gguf as writer
from gangpao.formats.adapters.gguf import gguf_name
from gangpao.formats.blocks import dequantize
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from gangpao.tune.base.load import load_base
from tests.formats.gguf_maker import vocabulary
from tests.model.test_transformer import build

VOCAB = 320
LEARNED = RoundingConfig(kind="learned", passes=1, steps=6, step_windows=4, save_every=2, lr=5e-3, batch=16)
GPTQ = RoundingConfig(passes=1, batch=16)


@pytest.fixture(scope="module")
def ids():
    generator = np.random.default_rng(0)
    return generator.integers(0, VOCAB, (24, 36))


@pytest.fixture(params=["llama", "qwen2"])
def source(request, tmp_path):
    model = build(request.param, vocab_size=VOCAB, tie_word_embeddings=request.param == "llama").float()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # what hangs together can be mended: embeddings of few directions
        few = torch.randn(VOCAB, 12, generator=generator) @ torch.randn(12, 64, generator=generator)
        model.model.embed_tokens.weight.mul_(0.2).add_(0.02 * few)
    return writer.write(tmp_path / "a.gguf", model.config, weights.state(model), vocabulary(VOCAB), "F32", check=False)


def types_of(path, kind="Q4_0"):
    with GGUF.open(path) as file:
        found = {name: kind if len(info.shape) > 1 else "F32" for name, info in file.tensors.items()}
    return found | {name: "Q8_0" for name in ("token_embd.weight", "output.weight") if name in found}


def written(path, encode, types):
    """The model that a reader of the new file has: every tensor through its bytes, vectors replaced."""
    out = {}
    with GGUF.open(path) as file:
        for name, info in file.tensors.items():
            values = file.array(name).astype(np.float32)
            if len(info.shape) == 1:
                out[name] = encode.vectors.get(name, values)
                continue
            half = len(values) // 2
            parts = [encode(name, 0, values[:half], types[name]), encode(name, half, values[half:], types[name])]
            out[name] = dequantize(np.concatenate(parts), types[name])
    return out


def model_of(path, tensors):
    """The lab's model with a file's tensors replaced."""
    base = load_base(path, storage="fp32")
    order = RowOrders(path, base)
    for name, p in base.model.named_parameters():
        values, moved = tensors[gguf_name(name)], order(gguf_name(name))
        p.copy_(torch.from_numpy(values if moved is None else values[np.argsort(moved)]))
    return base.model


def divergence(path, tensors, ids):
    with torch.no_grad():
        return together.divergence(load_base(path).model, model_of(path, tensors), torch.from_numpy(ids)).item()


def test_divergence_falls_with_every_kind(source, ids, tmp_path):
    """On ids that nobody saw for gptq; what training lowers on so few tokens is their own divergence."""
    types = types_of(source)
    fresh = np.random.default_rng(1).integers(0, VOCAB, (6, 24))
    found = {}
    for name, config in (("plain", RoundingConfig(kind="plain")), ("gptq", GPTQ), ("learned", LEARNED)):
        tensors = written(source, rounded(source, types, config, ids, folder=tmp_path / "work"), types)
        found[name] = divergence(source, tensors, fresh), divergence(source, tensors, ids)
    assert found["gptq"][0] < 0.75 * found["plain"][0]
    assert found["learned"][1] < found["gptq"][1]


def test_a_first_token_with_a_large_state_stays_where_it_is(source, ids, tmp_path):
    """All others look at it. Where its error did not count, the matrices that mend what others lost moved it: 0.5 of their gap."""
    large = ids.copy()
    large[:, 0] = 1
    base = load_base(source, storage="fp32")
    with torch.no_grad():
        base.model.model.embed_tokens.weight[1] *= 10
    path = writer.write(
        tmp_path / "large.gguf", base.config, weights.state(base.model), vocabulary(VOCAB), "F32", check=False
    )
    types = types_of(path)
    model = model_of(path, written(path, rounded(path, types, GPTQ, large, folder=tmp_path / "work"), types))
    with torch.no_grad():
        exact, ours = (m(torch.from_numpy(large), dtype=torch.float32).hidden for m in (load_base(path).model, model))
    gap = (exact - ours).square().sum(-1) / exact.square().sum(-1)
    assert gap[:, 0].mean() < 0.1 * gap[:, 1:].mean()


def test_what_is_asked_for_are_the_weights_that_the_walk_held(source, ids, tmp_path, monkeypatch):
    """Rows of q and k lie in another order in some files; a reader must see the very matrix that the next layers worked on."""
    types, held = types_of(source, "Q5_0"), {}
    keep = Sweep._matrix

    def kept(self, prefix, name, weights, sums):
        found = keep(self, prefix, name, weights, sums)
        held[prefix + name] = found.clone()
        return found

    monkeypatch.setattr(Sweep, "_matrix", kept)
    encode = rounded(source, types, GPTQ, ids, folder=tmp_path / "work")
    model = model_of(source, written(source, encode, types))
    assert len(held) == 3 * 7
    for name, values in held.items():
        torch.testing.assert_close(model.get_submodule(name).weight, values, rtol=0, atol=0)


class Killed(Exception):
    pass


@pytest.mark.parametrize("config", [GPTQ, LEARNED], ids=["gptq", "learned"])
def test_a_killed_run_ends_with_the_same_bytes(source, ids, tmp_path, monkeypatch, config):
    types = types_of(source)
    whole = written(source, rounded(source, types, config, ids, folder=tmp_path / "whole"), types)
    for target, name, after in ((Walk, "run", 1), (together, "divergence", 3)):
        left = [after]
        real = getattr(target, name)

        def dying(*args, left=left, real=real):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*args)

        with monkeypatch.context() as m:
            m.setattr(target, name, dying)
            if config.kind == "learned" or target is Walk:
                with pytest.raises(Killed):
                    rounded(source, types, config, ids, folder=tmp_path / "work")
    again = written(source, rounded(source, types, config, ids, folder=tmp_path / "work"), types)
    for name in whole:
        np.testing.assert_array_equal(whole[name], again[name])


def test_a_token_that_counts_three_times_is_three_tokens():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, 5, 8, generator=generator)
    gap, weights = torch.randn(1, 5, 6, generator=generator), torch.tensor([[1.0, 3, 1, 2, 1]])
    weighed, repeated = _Summing(), _Summing()
    weighed.add(x, y, gap, weights)
    each = weights[0].long()
    repeated.add(*(t.repeat_interleave(each, 1) for t in (x, y, gap)), torch.ones(1, 8))
    one, other = weighed.sums(), repeated.sums()
    for name in ("hessian", "drift", "residual"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    assert (one.tokens, other.tokens) == (5, 8)


def test_what_cannot_be_is_said(source, ids, tmp_path):
    types = types_of(source)
    with pytest.raises(ValueError, match="needs calibration ids"):
        rounded(source, types, GPTQ, None, folder=tmp_path / "a")
    with pytest.raises(ValueError, match="nothing follows in them"):
        rounded(source, types, GPTQ, ids[:, :1], folder=tmp_path / "a")
    with pytest.raises(ValueError, match="rows of 64 are not whole blocks of Q4_K"):
        rounded(source, types_of(source, "Q4_K"), GPTQ, ids, folder=tmp_path / "a")
    encode = rounded(source, types, GPTQ, ids, folder=tmp_path / "b")
    with pytest.raises(ValueError, match=r"other ids.*take another folder"):
        rounded(source, types, GPTQ, ids[:4], folder=tmp_path / "b")
    with pytest.raises(ValueError, match=r"blk\.0\.attn_q\.weight: rounded as 64 rows of Q4_0"):
        encode("blk.0.attn_q.weight", 0, np.zeros((2, 64), np.float32), "Q5_0")


def test_a_tensor_that_has_its_type_already_stays(ids, tmp_path):
    """A writer copies it, so the walk must see it as it is."""
    model = build("llama", vocab_size=VOCAB).float()
    path = writer.write(tmp_path / "a.gguf", model.config, weights.state(model), vocabulary(VOCAB), "Q4_0", check=False)
    with GGUF.open(path) as file:
        types = {name: info.type for name, info in file.tensors.items()}
    kept = {name for name in types if "ffn_up" in name}
    types |= {name: "Q5_0" for name, kind in types.items() if kind == "Q4_0" and name not in kept}
    encode = rounded(path, types, GPTQ, ids, folder=tmp_path / "work")
    assert len(encode.tensors) == 3 * 6
    assert not kept & encode.tensors.keys()


def test_a_file_gets_better_numbers_and_keeps_all_other_bytes(source, ids, tmp_path):
    with GGUF.open(source) as file:
        kinds = {name: len(info.shape) for name, info in file.tensors.items()}
    model = load_base(source, storage="fp32").model
    reference = writer.write(
        tmp_path / "q.gguf", model.config, weights.state(model), vocabulary(VOCAB), "Q4_0", check=False
    )
    types = types_in(reference)
    encode = rounded(source, types, LEARNED, ids, folder=tmp_path / "work")
    matrices = sum((dims > 1 and name.startswith("blk.")) or name == "output.weight" for name, dims in kinds.items())
    assert replaced(reference, tmp_path / "b.gguf", encode) == matrices + len(encode.vectors)
    assert types_in(tmp_path / "b.gguf") == types
    assert (tmp_path / "b.gguf").stat().st_size == reference.stat().st_size
    with GGUF.open(tmp_path / "b.gguf") as file, GGUF.open(reference) as old:
        header = min(info.offset for info in old.tensors.values())
        assert (tmp_path / "b.gguf").read_bytes()[:header] == reference.read_bytes()[:header]
        for name in kinds:
            if name in encode.tensors:
                np.testing.assert_array_equal(file.raw(name), encode.tensors[name])
            elif name in encode.vectors:
                np.testing.assert_array_equal(file.array(name), encode.vectors[name])
            else:
                np.testing.assert_array_equal(file.raw(name), old.raw(name))
    with pytest.raises(ValueError, match=r"was rounded to .* bytes and has .* of F32; round for this file's types"):
        replaced(source, tmp_path / "c.gguf", encode)
