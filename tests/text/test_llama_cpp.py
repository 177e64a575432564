"""Ids, ends of generation and pieces equal llama.cpp's, on thousands of odd lines for each catalog model."""

import pytest

from gangpao.formats.gguf import GGUF
from gangpao.text.pretokenizers import RULES
from gangpao.text.tokenizer import Tokenizer
from tests.core_speed import seconds_of
from tests.llama_oracle import LlamaOracle
from tests.text.corpus import lines

LINES = 2_000
# llama.cpp cuts these two with regular expressions of the C++ library, in which \s and a list of characters mean a
# little less beyond ASCII than in the models' own; what is left out here are the few white-space characters concerned.
NARROW = ("deepseek-llm", "deepseek-coder")
WIDE_SPACES = dict.fromkeys(map(ord, "\u1680\u2003\u2028\u2029\u3000\xa0\x85"))


def compare(tokenizer, path, texts, parse_special=(False, True)):
    with LlamaOracle(path, n_ctx=64) as oracle:
        for parse in parse_special:
            for text in texts:
                assert tokenizer.encode(text, parse_special=parse) == oracle.tokenize(text, parse_special=parse), text
        for text in texts[:20]:
            ids = tokenizer.encode(text, add_bos=tokenizer.adds_bos)
            assert ids == oracle.tokenize(text, add_special=True)


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b", "gemma3-270m"])
def test_ids_equal_llama_cpp_s(model_path, name):
    path = model_path(name)
    compare(Tokenizer.from_gguf(GGUF.open(path).metadata), path, lines(LINES))


def test_the_larger_coder_has_the_vocabulary_of_the_smaller(model_path):
    small, large = (GGUF.open(model_path(f"qwen2.5-coder-{size}")).metadata for size in ("0.5b", "1.5b"))
    for key in ("tokens", "merges", "token_type", "pre", "model", "eos_token_id"):
        assert list_of(small[f"tokenizer.ggml.{key}"]) == list_of(large[f"tokenizer.ggml.{key}"]), key


def list_of(value):
    return value.tolist() if hasattr(value, "tolist") else value


def test_a_large_vocabulary_does_not_keep_anybody_waiting(model_path):
    """0.7 s of a quiet core; more than twice that would be another way of building it, not a busy machine."""
    metadata = GGUF.open(model_path("qwen2.5-coder-0.5b")).metadata
    assert seconds_of(lambda: Tokenizer.from_gguf(metadata)) < 2.0


@pytest.mark.slow
@pytest.mark.parametrize("name", [names[0] for names in RULES.values()])
def test_every_pre_tokenizer_cuts_as_llama_cpp_s(model_path, name, tmp_path):
    """smollm2's vocabulary under another pre-tokenizer's name, in a file with a tiny random model."""
    metadata = GGUF.open(model_path("smollm2-135m")).metadata
    path = tmp_path / "tiny.gguf"
    write_tiny(path, metadata, name)
    texts = lines(500, seed=1)
    if name in NARROW:
        texts = [text.translate(WIDE_SPACES) for text in texts]
    compare(Tokenizer.from_gguf(GGUF.open(path).metadata), path, texts, parse_special=(False,))


def write_tiny(path, metadata, pre):
    import gguf
    import numpy as np

    width, random = 32, np.random.default_rng(0)
    tokens = metadata["tokenizer.ggml.tokens"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(list_of(metadata["tokenizer.ggml.token_type"]))
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes = {f"blk.0.{name}.weight": (width, width) for name in matrices}
    shapes |= {f"blk.0.{name}.weight": (width,) for name in ("attn_norm", "ffn_norm")}
    shapes |= {"token_embd.weight": (len(tokens), width), "output_norm.weight": (width,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
