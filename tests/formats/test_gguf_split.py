"""Models in several files, as llama.cpp's and gguf's writers split them: read as one, or refused by name."""

import shutil
import struct

import numpy as np
import pytest

from gangpao.engine.generate import Engine
from gangpao.formats.gguf import GGUF, ModelFileError
from tests.engine.tiny import write_tiny
from tests.llama_oracle import LlamaOracle

IDS = [5, 99, 40, 7]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same model in one file, and in four parts."""
    folder = tmp_path_factory.mktemp("split")
    return write_tiny(folder / "whole.gguf"), write_tiny(folder / "tiny.gguf", part_tensors=6)


def logits(path):
    model = Engine.load(path, context=64).model
    return model.forward(IDS, model.new_cache(64))


def test_a_split_model_is_the_model(pair):
    whole, first = pair
    assert first.name == "tiny-00001-of-00004.gguf"
    with GGUF.open(whole) as one, GGUF.open(first) as parts:
        assert len(parts.paths) == 4
        assert set(one.tensors) == set(parts.tensors)
        assert sum(t.nbytes for t in one.tensors.values()) == sum(t.nbytes for t in parts.tensors.values())
        assert {k: v for k, v in parts.metadata.items() if not k.startswith("split.")}.keys() == one.metadata.keys()
        for name in one.tensors:
            assert np.array_equal(one.raw(name), parts.raw(name)), name
    assert np.array_equal(logits(whole), logits(first))


def test_any_part_opens_the_whole(pair):
    _, first = pair
    with GGUF.open(first.with_name("tiny-00003-of-00004.gguf")) as model:
        assert model.path == first
        assert len(model.tensors) == 20


def test_llama_cpp_reads_the_same_parts(pair):
    _, first = pair
    ours = logits(first).astype(np.float64)
    ours -= np.log(np.exp(ours - ours.max()).sum()) + ours.max()
    with LlamaOracle(first, n_ctx=64) as oracle:
        for token in (3, 40):
            assert oracle.logprob(IDS, token) == pytest.approx(ours[token], abs=0.01)


def copy(pair, tmp_path):
    for path in pair[1].parent.glob("tiny-*"):
        shutil.copy(path, tmp_path)
    return sorted(tmp_path.iterdir())


def test_a_missing_part_is_named(pair, tmp_path):
    files = copy(pair, tmp_path)
    files[2].unlink()
    for given in (files[0], files[1]):
        with pytest.raises(ModelFileError, match=r"one of 4 parts.*tiny-00003-of-00004\.gguf is not beside it"):
            GGUF.open(given)
    files[0].unlink()
    with pytest.raises(ModelFileError, match=r"tiny-00001-of-00004\.gguf is not beside it"):
        GGUF.open(files[1])


def test_parts_with_names_of_their_own_are_refused(pair, tmp_path):
    files = copy(pair, tmp_path)
    with pytest.raises(ModelFileError, match=r"its name does not say which.*NAME-00001-of-00004\.gguf"):
        GGUF.open(files[0].rename(tmp_path / "model.gguf"))


def test_a_part_under_the_name_of_another_is_refused(pair, tmp_path):
    files = copy(pair, tmp_path)
    shutil.copy(files[1], files[2])
    with pytest.raises(ModelFileError, match="says it is another part than its name does"):
        GGUF.open(files[0])


def test_a_tensor_in_two_parts_is_refused(pair, tmp_path):
    files = copy(pair, tmp_path)
    key = b"split.no" + struct.pack("<I", 2)  # U16
    raw = files[1].read_bytes()
    assert raw.count(key + struct.pack("<H", 1)) == 1
    files[2].write_bytes(raw.replace(key + struct.pack("<H", 1), key + struct.pack("<H", 2)))
    with pytest.raises(ModelFileError, match=r"tensor blk.* is in an earlier part, too"):
        GGUF.open(files[0])
