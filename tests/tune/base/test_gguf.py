"""The lab's model on a GGUF file computes what the engine computes, and what the checkpoint computed that the file was made of."""

import numpy as np
import pytest
import torch

from gangpao.deploy import gguf as writer
from gangpao.engine.transformer import Transformer as Engine
from gangpao.formats.gguf import GGUF, ModelFileError
from gangpao.model import layers, weights
from gangpao.tune.base.gguf import read_config, tensors
from gangpao.tune.base.load import base_shape, load_base
from gangpao.tune.base.quantized import QuantizedLinear
from tests.deploy.test_gguf import CASES, IDS, NAMES, VOCAB
from tests.engine.tiny import write_tiny
from tests.formats.gguf_maker import vocabulary
from tests.model.test_transformer import build


def written(path, kind, fields, type_):
    model = build(kind, vocab_size=VOCAB, **fields)
    return model, writer.write(path, model.config, weights.state(model), vocabulary(VOCAB), type_, check=False)


def logits_of(model, ids=IDS):
    with torch.no_grad():
        return model.logits(model(ids).hidden)[0, -1].numpy()


def engine_logits(path, ids=IDS, context=256):
    with GGUF.open(path) as gguf:
        engine = Engine.load(gguf, float32=True)
        out = engine.forward(ids[0].tolist(), engine.new_cache(context)).copy()
        del engine
    return out


@pytest.fixture
def as_the_engine(monkeypatch):
    """as_the_engine(model, ids): logits with keys and values rounded to the fp16 of the engine's cache."""
    attend = layers.attend

    def rounded(q, k, v, mask, scale):
        return attend(q, k.half().float(), v.half().float(), mask, scale)

    def logits(model, ids=IDS):
        with monkeypatch.context() as m:
            m.setattr(layers, "attend", rounded)
            return logits_of(model, ids)

    return logits


def close(a, b):
    """Where rounding to fp16 falls on the other side now and then, the limit is not that of float32."""
    assert np.abs(a - b).max() < 6e-4 * np.abs(b).max()


REFUSED = ("window", "mla", "delta")  # kinds of layers that are not trained on from a file
TRAINED = [(case, name) for case, name in zip(CASES, NAMES, strict=True) if case[0] not in REFUSED]


@pytest.mark.parametrize("kind", REFUSED)
def test_layers_that_are_not_trained_on_from_a_file_are_named(tmp_path, kind):
    fields = next(fields for one, fields in CASES if one == kind)
    _, path = written(tmp_path / "a.gguf", kind, fields, "F32")
    with pytest.raises(ValueError, match="not trained on; give the Hugging Face folder"):
        load_base(path)


@pytest.mark.parametrize(("kind", "fields"), [case for case, _ in TRAINED], ids=[name for _, name in TRAINED])
def test_every_architecture_is_the_engine_and_the_checkpoint(tmp_path, as_the_engine, kind, fields):
    model, path = written(tmp_path / "a.gguf", kind, fields, "F32")
    base = load_base(path)
    np.testing.assert_allclose(logits_of(base.model), logits_of(model), rtol=1e-4, atol=1e-4)
    close(as_the_engine(base.model), engine_logits(path))
    assert base_shape(path) == base.config
    assert not any(p.requires_grad for p in base.model.parameters())


@pytest.mark.parametrize("type_", ["Q8_0", "Q4_0", "Q4_1", "BF16", "F16"])
def test_blocks_are_the_engine_and_the_dequantized_model(tmp_path, as_the_engine, type_):
    _, path = written(tmp_path / "a.gguf", "minicpm", {"attention_bias": True, "tie_word_embeddings": False}, type_)
    base = load_base(path)
    assert isinstance(base.model.lm_head, QuantizedLinear)
    ours = logits_of(base.model)
    close(as_the_engine(base.model), engine_logits(path))
    with GGUF.open(path) as file:
        folder = weights.save(tmp_path / "dense", base.config, dict(tensors(file, read_config(file))))
    np.testing.assert_allclose(ours, logits_of(weights.load(folder)), rtol=1e-5, atol=1e-4)
    for storage in ("fp32", "nf4"):
        other = load_base(path, storage=storage)
        assert other.sha256 == base.sha256
        assert storage != "fp32" or np.allclose(ours, logits_of(other.model), rtol=1e-5, atol=1e-4)


def test_what_the_lab_cannot_say_is_refused(tmp_path):
    _, path = written(tmp_path / "a.gguf", "llama", {}, "F32")
    with GGUF.open(path) as file:
        file.tensors = dict(file.tensors) | {"blk.0.more.weight": file.tensors["blk.0.attn_q.weight"]}
        with pytest.raises(ModelFileError, match=r"1 tensors have no place in this model \(blk.0.more.weight\)"):
            list(tensors(file, read_config(file)))
        file.metadata = dict(file.metadata) | {"llama.rope.dimension_count": 8}
        with pytest.raises(ModelFileError, match="turns 8 of the 16 dimensions"):
            read_config(file)


def test_a_split_file_is_one_base(tmp_path):
    whole = load_base(write_tiny(tmp_path / "whole.gguf"))
    parts = load_base(write_tiny(tmp_path / "parts.gguf", part_tensors=5))
    assert np.array_equal(logits_of(whole.model, IDS % 250), logits_of(parts.model, IDS % 250))
    assert whole.sha256 != parts.sha256
    assert whole.tokenizer.eos_id == 258
    assert whole.storage == "F32 blocks of the file"


@pytest.mark.parametrize("name", ["smollm2-135m", pytest.param("qwen2.5-coder-0.5b", marks=pytest.mark.slow)])
def test_a_real_file_is_the_engine(model_path, as_the_engine, name):
    path = model_path(name)
    base = load_base(path)
    ids = torch.tensor([base.tokenizer.encode("The capital of France is Paris, and that of Italy is")])
    ours, theirs = as_the_engine(base.model, ids), engine_logits(path, ids)
    close(ours, theirs)
    assert ours.argmax() == theirs.argmax()
