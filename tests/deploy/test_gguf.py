"""One model, four readers: our torch model, our engine and llama.cpp on the GGUF we write, transformers on the folded form.

transformers is compared in tests/model; here the torch model's log-probabilities, at scales away from neutral, are the truth.
"""

import json

import numpy as np
import pytest
import torch

from gangpao import atomic
from gangpao.deploy import gguf as writer
from gangpao.deploy.header import differences, form_of
from gangpao.engine.transformer import Transformer as Engine
from gangpao.formats.blocks import WRITTEN
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from gangpao.model.config import MLAConfig, MoEConfig, RopeScaling
from gangpao.text.tokenizer import Tokenizer
from tests import seams
from tests.formats.gguf_maker import vocabulary
from tests.llama_oracle import LlamaOracle
from tests.model.test_transformer import build
from tests.model.tiny import tiny

VOCAB = 320
IDS = torch.randint(0, VOCAB - 2, (1, 40), generator=torch.Generator().manual_seed(2))
LIMIT = 1e-3
LONG = RopeScaling(
    rope_type="longrope", short_factor=tuple(1 + i / 8 for i in range(8)), long_factor=tuple(2 + i for i in range(8)),
    original_max_position_embeddings=256,
)  # fmt: skip
YARN = RopeScaling(
    rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=24.0, beta_slow=2.0
)  # fmt: skip
LLAMA3 = RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=64)
SCALED = {"scale_emb": 7.5, "scale_depth": 1.1, "dim_model_base": 16}
NEUTRAL = {"scale_emb": 1.0, "scale_depth": None, "dim_model_base": None}
# Its scales are those that llama.cpp takes for any MiniCPM3; widths are multiples of 16.
MLA = MLAConfig(q_lora_rank=24, kv_lora_rank=20, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)
CASES = [
    ("minicpm", {}),
    ("minicpm", {"tie_word_embeddings": False}),
    ("minicpm", {"num_key_value_heads": 4, "rope_scaling": LONG}),
    ("minicpm", NEUTRAL),
    ("minicpm", {"max_position_embeddings": 1024, "rope_scaling": LONG}),
    ("minicpm", {"rope_scaling": LONG.model_copy(update={"attention_factor": 1.3})}),
    ("minicpm", {"attention_bias": True}),
    ("llama", {}),
    ("llama", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    ("llama", SCALED),
    ("llama", {"attention_bias": True}),
    ("llama", {"qk_norm": True}),
    ("llama", {"rope_scaling": YARN}),
    ("llama", {"rope_scaling": YARN.model_copy(update={"attention_factor": 1.3})}),
    ("llama", {"rope_scaling": RopeScaling(rope_type="linear", factor=4.0)}),
    ("llama", {"rope_scaling": LLAMA3}),
    ("qwen2", {}),
    ("qwen2", {"rope_scaling": LLAMA3}),
    ("qwen2", {"rope_scaling": YARN}),
    ("qwen2", {"hidden_size": 96}),  # of a pruned model: llama.cpp reads it as a llama
    ("qwen3", {"hidden_size": 96}),
    ("qwen3", {"tie_word_embeddings": False}),
    ("moe", {}),
    ("moe", {"moe": MoEConfig(num_experts=3, num_experts_per_tok=3), "attention_bias": True}),
    ("llama", {"moe": MoEConfig(num_experts=17, num_experts_per_tok=1)}),
    ("nope", {}),
    ("window", {}),
    ("window", {"sliding_window": 300, "tie_word_embeddings": False}),
    ("mla", {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256, "mla": MLA, "head_dim": 32}),
    ("delta", {"layer_types": ("linear_attention",) * 3 + ("full_attention",)}),
    ("delta", {"layer_types": ("linear_attention", "full_attention") * 2, "tie_word_embeddings": False}),
]
NAMES = [f"{i}-{'-'.join([kind, *map(str, fields)])}" for i, (kind, fields) in enumerate(CASES)]


def truth(model):
    with torch.no_grad():
        return model.lm_head(model(IDS).hidden)[0, -1].log_softmax(-1).numpy()


def written(model, path, kind="F32"):
    return writer.write(path, model.config, weights.state(model), vocabulary(VOCAB), kind)


def ours(path):
    with GGUF.open(path) as gguf:
        engine = Engine.load(gguf)
        logits = engine.forward(IDS[0].tolist(), engine.new_cache(256)).astype(np.float64)
        del engine
    return logits - np.logaddexp.reduce(logits)


def distance(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize(("kind", "fields"), CASES, ids=NAMES)
def test_torch_engine_and_llama_cpp_agree(kind, fields, tmp_path):
    model = build(kind, **fields)
    expected = truth(model)
    assert expected.std() > 0.15, "the random model says nothing"
    path = written(model, tmp_path / "m.gguf")
    assert distance(ours(path), expected) < LIMIT
    with LlamaOracle(path, n_ctx=256, kv="F32") as oracle:
        assert distance(oracle.vector(IDS[0].tolist(), VOCAB), expected) < LIMIT


@pytest.mark.parametrize("rope", [YARN, LLAMA3], ids=["yarn", "llama3"])
def test_where_llama_cpp_differs_the_export_says_so(rope, tmp_path):
    model = build("qwen3", rope_scaling=rope)
    path = written(model, tmp_path / "m.gguf")
    assert distance(ours(path), truth(model)) < LIMIT
    assert len(differences(model.config)) == 1
    assert differences(build("qwen2", rope_scaling=rope).config) == []
    if rope is LLAMA3:
        with pytest.raises(RuntimeError), LlamaOracle(path, n_ctx=256):
            pass
        return
    with LlamaOracle(path, n_ctx=256) as oracle:
        assert distance(oracle.vector(IDS[0].tolist(), VOCAB), truth(model)) > 10 * LIMIT


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("qwen3", SCALED, "a norm on q and k together with MiniCPM's scales"),
        ("qwen3", {"attention_bias": True}, "a norm on q and k together with biases"),
        ("delta", {"attention_bias": True}, "biases on q, k and v together with Gated DeltaNet"),
        ("mla", {"qk_norm": True}, "a norm on q and k together with MiniCPM's scales together with latent attention"),
    ],
)
def test_what_no_architecture_has_is_refused(kind, fields, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        form_of(tiny(kind, **fields))


def test_the_head_is_what_the_weights_say(tmp_path):
    model = build("llama", tie_word_embeddings=False).float()
    tensors = weights.state(model)
    tied = model.config.model_copy(update={"tie_word_embeddings": True})
    path = writer.write(tmp_path / "own.gguf", tied, tensors, vocabulary(VOCAB), "F32")
    assert distance(ours(path), truth(model)) < LIMIT
    embedding = tensors["model.embed_tokens.weight"]
    path = writer.write(
        tmp_path / "tied.gguf", tied, tensors | {"lm_head.weight": embedding.clone()}, vocabulary(VOCAB), "F32"
    )
    with GGUF.open(path) as gguf:
        assert "output.weight" not in gguf.tensors
    del tensors["lm_head.weight"]
    with pytest.raises(ValueError, match=r"tie_word_embeddings is false.* and there is no lm_head.weight"):
        writer.write(tmp_path / "none.gguf", model.config, tensors, vocabulary(VOCAB))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda t: t.pop("model.norm.weight"), r"1 tensors are missing \(model.norm.weight\)"),
        (lambda t: t.update({"vpm.x": torch.zeros(2)}), r"1 tensors have no place \(vpm.x\)"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(3)}),
            r"model.norm.weight has shape \[3\], config.json says",
        ),
        (lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}), "holds int8, not floats"),
        (
            lambda t: t["model.layers.1.mlp.up_proj.weight"].data[2].fill_(float("nan")),
            r"tensor model.layers.1.mlp.up_proj.weight, to be written as Q8_0: row 2: nan is no number",
        ),
    ],
)
def test_a_wrong_checkpoint_is_refused_and_nothing_left(damage, says, tmp_path):
    model = build("llama").float()
    tensors = weights.state(model)
    damage(tensors)
    with pytest.raises(ValueError, match=says):
        writer.write(tmp_path / "m.gguf", model.config, tensors, vocabulary(VOCAB))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "limit"), [("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 3e-2), ("Q4_1", 0.35), ("Q4_0", 0.35)]
)
def test_smaller_types_stay_near(kind, limit, tmp_path):
    model = build("minicpm")
    path = written(model, tmp_path / "m.gguf", kind)
    with GGUF.open(path) as gguf:
        assert gguf.tensors["blk.0.attn_q.weight"].type == kind
        assert gguf.tensors["blk.0.attn_norm.weight"].type == "F32"
        assert gguf.metadata["minicpm.logit_scale"] == 4.0
    assert distance(ours(path), truth(model)) < limit


def test_rows_that_are_no_whole_blocks_become_f16(tmp_path):
    path = written(build("llama", intermediate_size=80), tmp_path / "m.gguf", "Q4_0")
    with GGUF.open(path) as gguf:
        assert gguf.tensors["blk.1.ffn_down.weight"].type == "F16"
        assert gguf.tensors["blk.1.ffn_up.weight"].type == "Q4_0"


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    model = build("llama")
    path = written(model, tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="exists already"):
        written(model, path)
    with pytest.raises(ValueError, match="choose one of F32"):
        written(model, tmp_path / "n.gguf", "IQ3_S")
    unruly = tiny("delta", layer_types=("full_attention", *("linear_attention",) * 3))
    with pytest.raises(ValueError, match="which layers attend by a number"):
        writer.write(tmp_path / "n.gguf", unruly, {}, vocabulary(VOCAB))
    with pytest.raises(ValueError, match="no place"):
        writer.write(tmp_path / "n.gguf", model.config, {"vpm.x": torch.zeros(2)}, vocabulary(VOCAB))
    with pytest.raises(ValueError, match="do not belong together"):
        writer.write(tmp_path / "n.gguf", model.config, weights.state(model), vocabulary(VOCAB + 1))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    seams.replace(monkeypatch, atomic, "os", fsync=full_disk)
    with pytest.raises(OSError, match="No space"):
        written(model, tmp_path / "n.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def hf_tokenizer(folder):
    """A byte-level tokenizer of 320 pieces as a Hugging Face folder."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    from gangpao.text.pretokenizers import by_name

    keys = vocabulary(VOCAB)
    pieces = {p: i for i, p in enumerate(keys["tokenizer.ggml.tokens"][: VOCAB - 2])}
    merges = [tuple(m.split(" ")) for m in keys["tokenizer.ggml.merges"]]
    library = Library(models.BPE(vocab=pieces, merges=merges))
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in by_name("qwen2").patterns]
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])
    library.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": False,
        "chat_template": "{{ messages[0].content }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_folder_becomes_a_file_that_speaks(tmp_path):
    model = build("minicpm").float()
    folder = weights.save(tmp_path / "hf", model.config, weights.state(model))
    hf_tokenizer(folder)
    seen = []
    path = writer.export(folder, tmp_path / "m.gguf", "F16", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(seen), len(seen))
    with GGUF.open(path) as gguf:
        assert gguf.metadata["tokenizer.ggml.pre"] == "qwen2"
        assert gguf.metadata["general.name"] == "hf"
        from_file = Tokenizer.from_gguf(gguf.metadata)
    from_folder = Tokenizer.from_dir(folder)
    text = "the rest of another tone: 12345 你好 it's <s> nothing</s>\n\n"
    assert from_file.chat_template == "{{ messages[0].content }}"
    for special in (False, True):
        assert from_file.encode(text, parse_special=special) == from_folder.encode(text, parse_special=special)
    assert (from_file.bos_id, from_file.eos_id, from_file.adds_bos) == (VOCAB - 2, VOCAB - 1, False)
    with LlamaOracle(path, n_ctx=64) as oracle:
        assert oracle.tokenize(text) == from_file.encode(text)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("Q6_K", 0.1), ("Q5_K", 0.2), ("Q5_1", 0.2), ("Q4_K", 0.4), ("Q3_K", 0.8), ("Q2_K", 2.0), ("TQ2_0", 9.0)],
)
def test_searched_types_are_written_and_proved(kind, limit, tmp_path):
    """The proof compares every weight with the checkpoint's, and the engine with the torch model, before the file appears."""
    model = build("llama", hidden_size=256, intermediate_size=512, head_dim=64, num_hidden_layers=1)
    path = written(model, tmp_path / "m.gguf", kind)
    with GGUF.open(path) as gguf:
        assert {info.type for info in gguf.tensors.values()} == {"F32", kind}
        assert gguf.metadata["general.file_type"] == WRITTEN[kind].file_type
    print(kind, distance(ours(path), truth(model)))
    assert distance(ours(path), truth(model)) < limit
