"""Perplexity of real models against llama.cpp on the same tokens, in windows of 256 that start from an empty cache.

The measure: exp of the mean negative log-likelihood of every token but the first of a window; ours divided by
llama.cpp's, minus one. Both quantise activations on the fly (we in groups of 32, llama.cpp's K-quants in groups of 256),
so they are close, not equal. The text is WikiText-2's test set; a shorter test needs nothing but this repository.
"""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from gangpao.engine.transformer import Transformer
from gangpao.formats.gguf import GGUF
from tests.llama_oracle import LlamaBatch, LlamaOracle, log_likelihoods

ROOT = Path(__file__).resolve().parents[2]
WINDOW = 256
LIMIT = 0.003


def wikitext():
    folder = Path(os.environ.get("GANGPAO_SHARED", ROOT.parent / "shared"))
    path = folder / "data" / "eval" / "wikitext2_test.jsonl.zst"
    if not path.is_file():
        pytest.skip("wikitext2_test.jsonl.zst is not there: set GANGPAO_SHARED to the folder that holds data/eval")
    zstandard = pytest.importorskip("zstandard")
    with path.open("rb") as f:
        lines = zstandard.ZstdDecompressor().stream_reader(f).read().decode().splitlines()
    return "\n".join(json.loads(line)["text"] for line in lines)


def tokens(path, text):
    """Ids by llama.cpp, so that a difference of tokenizers cannot hide here."""
    with LlamaOracle(path, n_ctx=64) as oracle:
        return oracle.tokenize(text)


def compare(path, ids, windows):
    """(ours, theirs, mean |difference| of log-likelihoods, positions) over the first `windows` windows."""
    parts = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW, WINDOW)][:windows]
    a, b = [], []
    with GGUF.open(path) as gguf, LlamaBatch(path, n_ctx=WINDOW) as oracle:
        model = Transformer.load(gguf)
        assert oracle.vocab_size == model.config.vocab_size
        for part in parts:
            a.append(log_likelihoods(model.forward(part, model.new_cache(WINDOW), all_logits=True), part))
            b.append(log_likelihoods(oracle.logits(part), part))
        del model
    x, y = np.concatenate(a), np.concatenate(b)
    return np.exp(-x.mean()), np.exp(-y.mean()), np.abs(x - y).mean(), len(x)


def check(name, path, ids, windows, at_least, record):
    ours, theirs, difference, positions = compare(path, ids, windows)
    said = f"{name}: perplexity {ours:.4f}, llama.cpp {theirs:.4f} ({ours / theirs - 1:+.4%}), " \
           f"mean difference of log-likelihoods {difference:.4f}, {positions} positions"  # fmt: skip
    record("perplexity", said)
    print(said)
    assert positions >= at_least
    assert abs(ours / theirs - 1) <= LIMIT, said


def test_the_oracles_agree(model_path):
    """The batch interface is used through its binary layout; the server says the same numbers."""
    path = model_path("smollm2-135m")
    ids = tokens(path, "The river rises in the hills, crosses the plain and reaches the sea near the old harbour.")
    with LlamaBatch(path) as batch:
        found = log_likelihoods(batch.logits(ids), ids)
    with LlamaOracle(path, kv="F16") as oracle:
        expected = np.array(list(itertools.islice(oracle.sequence(ids), 8)))
    assert np.abs(found[:8] - expected).mean() < 0.1


def test_perplexity_of_our_own_text(model_path, record_property):
    path = model_path("smollm2-135m")
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "README.md"))
    check("smollm2-135m, our documents", path, tokens(path, text), 2, 500, record_property)


def test_perplexity_of_smollm2_on_wikitext(model_path, record_property):
    path = model_path("smollm2-135m")
    ids = tokens(path, wikitext()[:20000])
    check("smollm2-135m, WikiText-2", path, ids, 8, 2000, record_property)


@pytest.mark.slow
def test_perplexity_of_qwen_on_wikitext(model_path, record_property):
    path = model_path("qwen2.5-coder-0.5b")
    ids = tokens(path, wikitext()[:20000])
    check("qwen2.5-coder-0.5b, WikiText-2", path, ids, 8, 2000, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_perplexity_on_the_whole_of_wikitext(model_path, record_property, name):
    path = model_path(name)
    ids = tokens(path, wikitext())
    check(f"{name}, all of WikiText-2", path, ids, len(ids), 200_000, record_property)
