"""llama.cpp loads a file of every mixture, and finds a text as likely in it as our engine does."""

import numpy as np
import pytest

from gangpao import kernels
from gangpao.compress.importance.calibration import calibration_ids
from gangpao.compress.quantize.mixtures import MIXTURES, NEEDS_IMPORTANCE
from gangpao.compress.quantize.run import Guide, quantized
from gangpao.engine.generate import Engine
from gangpao.formats.blocks import BY_NAME
from gangpao.formats.gguf import GGUF
from gangpao.formats.imatrix import Importance
from gangpao.text.tokenizer import Tokenizer
from tests.formats.gguf_maker import random_model
from tests.llama_oracle import LlamaBatch, log_likelihoods

WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256, "num_layers": 1}
QUANTIZED = [name for name, found in MIXTURES.items() if BY_NAME[found.usual].block_size > 1]


def runs(path) -> bool:
    """Whether the engine of this build has kernels for all types of a file."""
    with GGUF.open(path) as gguf:
        for kind in {t.type for t in gguf.tensors.values() if len(t.shape) > 1}:
            try:
                kernels.packed_bytes(kind, 1, 256)
            except ValueError:
                return False
    return True


def ours(path, windows, *, float32=False) -> np.ndarray:
    engine = Engine.load(path, context=512, num_threads=1, float32=float32)
    rows = [engine.model.forward(ids.tolist(), engine.model.new_cache(512), all_logits=True) for ids in windows]
    return np.concatenate([log_likelihoods(logits, ids) for logits, ids in zip(rows, windows, strict=True)])


def theirs(path, windows) -> np.ndarray:
    with LlamaBatch(path, n_ctx=512) as batch:
        return np.concatenate([log_likelihoods(batch.logits(ids), ids) for ids in windows])


def guide_of(source, name) -> Guide | None:
    """Ones where a mixture must have an importance matrix."""
    if name not in NEEDS_IMPORTANCE:
        return None
    with GGUF.open(source) as gguf:
        sums = {t.name: np.ones(t.shape[-1], np.float32) for t in gguf.tensors.values() if t.name.startswith("blk.")}
    return Guide(Importance(sums, {tensor: np.array([1]) for tensor in sums}, 1), "ones")


@pytest.mark.parametrize("name", ["Q4_K_M", "Q2_K_S", "IQ4_XS", "TQ2_0"])
def test_a_random_model_of_a_mixture(name, tmp_path) -> None:
    source = random_model(tmp_path / "float.gguf", "llama", **WIDE)
    path = quantized(source, tmp_path / "out.gguf", name, guide=guide_of(source, name)).path
    windows = np.random.default_rng(1).integers(0, 300, (1, 64))
    found = theirs(path, windows)
    assert np.isfinite(found).all()
    if not runs(path):
        pytest.skip("this build of the engine does not run the type")
    np.testing.assert_allclose(ours(path, windows, float32=True).mean(), found.mean(), rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZED)
def test_smollm2_of_a_mixture_has_the_perplexity_of_llama_cpp(name, model_path, tmp_path, record_property) -> None:
    source = model_path("smollm2-135m")
    path = quantized(source, tmp_path / "out.gguf", name, guide=guide_of(source, name)).path
    with GGUF.open(source) as gguf:
        windows = calibration_ids(Tokenizer.from_gguf(gguf.metadata), windows=3, length=256)
    found = theirs(path, windows)
    record_property("llama.cpp", f"{name} {np.exp(-found.mean()):.3f}")
    if not runs(path):
        pytest.skip("this build of the engine does not run the type")
    mine = ours(path, windows)
    record_property("gangpao", f"{name} {np.exp(-mine.mean()):.3f}")
    # Both round activations to 8 bits, each in its own way: 0.3 %, as far as so few tokens can tell.
    differences = mine - found
    assert abs(differences.mean()) < max(0.003, 3 * differences.std() / np.sqrt(len(differences)))
