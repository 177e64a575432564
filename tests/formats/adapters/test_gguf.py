"""GGUF adapters: llama.cpp with our file computes what torch does with the adapter's definition."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gangpao.deploy import gguf as exporter
from gangpao.formats.adapters import Adapter, Form, Part, read_adapter, write_gguf
from gangpao.formats.adapters.gguf import gguf_name, hf_name, shapes_of
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from gangpao.model.transformer import Transformer
from tests.formats import gguf_maker
from tests.formats.adapters.models import random_adapter
from tests.formats.gguf_maker import vocabulary
from tests.llama_oracle import LlamaBatch
from tests.model.test_transformer import build

VOCAB = 320
IDS = torch.randint(0, VOCAB - 2, (1, 24), generator=torch.Generator().manual_seed(2))
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FIXTURES = Path(__file__).parent.parent.parent / "fixtures" / "adapters"
LIMIT = 1e-4  # llama.cpp in float32 throughout


def model_of(kind: str, **fields: Any) -> Transformer:
    return build(kind, **fields).float()


def base_file(model: Transformer, path: Path) -> tuple[Path, Form]:
    exporter.write(path, model.config, weights.state(model), vocabulary(VOCAB), "F32", check=False)
    with GGUF.open(path) as gguf:
        return path, Form.of(gguf)


@torch.no_grad()
def logits(model: Transformer) -> np.ndarray:
    return model.logits(model(IDS).hidden)[0].numpy()


@torch.no_grad()
def merge(model: Transformer, adapter: Adapter, strength: float = 1.0) -> Transformer:
    """In place, by the definition."""
    for name, part in adapter.parts.items():
        weight = model.get_parameter(f"{name}.weight")
        weight.copy_(torch.from_numpy(replace(part, scale=part.scale * strength).applied(weight.numpy())))
    return model


def written(path: Path, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    gguf_maker.write_gguf(path, fields, {name: ("F32", x.shape, x.tobytes()) for name, x in tensors.items()})


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("llama", {}, ALL),
    ("llama", {"tie_word_embeddings": False}, (*ALL, "lm_head", "embed_tokens")),
    ("minicpm", {}, ALL),
    ("qwen2", {}, ALL),
    ("qwen3", {"tie_word_embeddings": False}, ("q_proj", "k_proj", "lm_head")),
]


@pytest.mark.parametrize(("kind", "fields", "targets"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_llama_cpp_with_our_adapter_is_torch_with_it(
    kind: str, fields: dict[str, Any], targets: tuple[str, ...], tmp_path: Path
) -> None:
    model = model_of(kind, **fields)
    path, form = base_file(model, tmp_path / "base.gguf")
    adapter = random_adapter(model, targets)
    with GGUF.open(path) as gguf:
        adapter.check_base(shapes_of(gguf))
    write_gguf(tmp_path / "adapter.gguf", adapter, form)
    plain = logits(model)
    expected = logits(merge(model, adapter))
    half = logits(merge(merge(model, adapter, -1), adapter, 0.5))
    assert far(plain, expected) > 0.1
    with LlamaBatch(path, exact=True) as llama:
        assert llama.use_adapters((tmp_path / "adapter.gguf", 1.0))
        assert far(llama.logits(IDS[0].tolist()), expected) < LIMIT
        assert llama.use_adapters((tmp_path / "adapter.gguf", 0.5))  # the user's scale comes on top
        assert far(llama.logits(IDS[0].tolist()), half) < LIMIT


def test_ranks_and_scales_of_their_own_come_out_as_they_are(tmp_path: Path) -> None:
    """What llama.cpp's converter loses: rsLoRA's root, and patterns of alpha and rank."""
    model = model_of("llama")
    path, form = base_file(model, tmp_path / "base.gguf")
    parts = dict(random_adapter(model, ("v_proj", "down_proj"), rank=8, scale=16 / math.sqrt(8)).parts)
    parts |= random_adapter(model, ("q_proj",), rank=3, scale=0.4).parts
    write_gguf(tmp_path / "adapter.gguf", adapter := Adapter(parts), form)
    expected = logits(merge(model, adapter))
    with LlamaBatch(path, exact=True) as llama:
        assert llama.use_adapters((tmp_path / "adapter.gguf", 1.0))
        assert far(llama.logits(IDS[0].tolist()), expected) < LIMIT


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    model = model_of("minicpm", tie_word_embeddings=False)
    form = Form("minicpm", 4, 2, False)
    adapter = replace(random_adapter(model, (*ALL, "embed_tokens")), base="someone/model", base_sha256="ab" * 32)
    write_gguf(tmp_path / "adapter.gguf", adapter, form)
    again = read_adapter(tmp_path / "adapter.gguf")
    assert (again.base, again.base_sha256, again.rank) == ("someone/model", "ab" * 32, 4)
    assert again.parts.keys() == adapter.parts.keys()
    for name, part in adapter.parts.items():
        other = again.parts[name]
        assert np.array_equal(other.a, part.a)
        assert np.array_equal(other.b, part.b)
        assert other.scale == pytest.approx(part.scale, rel=1e-6)


def test_a_file_of_llama_cpps_own_converter_is_the_folder_that_it_was_made_of() -> None:
    peft = read_adapter(FIXTURES / "peft")
    with pytest.raises(ValueError, match="heads of its base; give the base"):
        read_adapter(FIXTURES / "llama_cpp.gguf")
    ours = read_adapter(FIXTURES / "llama_cpp.gguf", form=Form("llama", 4, 2, False))
    assert ours.parts.keys() == peft.parts.keys()
    for name, part in peft.parts.items():
        assert np.array_equal(ours.parts[name].a, part.a), name
        assert np.array_equal(ours.parts[name].b, part.b), name
        assert ours.parts[name].scale == part.scale == 1.5


def test_what_gguf_cannot_say_is_refused_with_what_to_do(tmp_path: Path) -> None:
    model = model_of("llama")
    plain = random_adapter(model, ("q_proj",))
    head = Adapter(random_adapter(model, ("embed_tokens",)).parts)
    dora = Adapter({n: replace(p, magnitude=np.ones(len(p.b), np.float32)) for n, p in plain.parts.items()})
    experts = Adapter({"model.layers.0.mlp.experts.0.w1": next(iter(plain.parts.values()))})
    tied, path = Form("llama", 4, 2, True), tmp_path / "x.gguf"
    for adapter, words in (
        (dora, "DoRA.*gangpao merge"),
        (head, "one tensor as embedding and head.*gangpao merge"),
        (Adapter({"lm_head": head.parts["model.embed_tokens"]}), "one tensor as embedding and head"),
        (replace(plain, whole={"lm_head.weight": np.ones((4, 4), np.float32)}), "lm_head.weight is trained as a whole"),
        (experts, "has no name in a GGUF file"),
    ):
        with pytest.raises(ValueError, match=words):
            write_gguf(path, adapter, tied)
    with pytest.raises(ValueError, match=r"another base: 64 rows .* 5 heads"):
        write_gguf(path, plain, Form("llama", 5, 5, True))
    assert not path.exists()


def test_an_adapter_of_another_base_is_told_by_its_first_tensor(tmp_path: Path) -> None:
    model = model_of("llama")
    path, form = base_file(model, tmp_path / "base.gguf")
    adapter = Adapter(
        {"model.layers.1.mlp.up_proj": Part(np.ones((2, 64), np.float32), np.ones((97, 2), np.float32), 1.0)}
    )
    with (
        GGUF.open(path) as gguf,
        pytest.raises(ValueError, match=r"another base: its .*1.mlp.up_proj.weight is \[97, 64\]"),
    ):
        adapter.check_base(shapes_of(gguf))
    with GGUF.open(path) as gguf, pytest.raises(ValueError, match=r"it changes model.layers.7.mlp.up_proj.weight"):
        Adapter({"model.layers.7.mlp.up_proj": adapter.parts["model.layers.1.mlp.up_proj"]}).check_base(shapes_of(gguf))
    write_gguf(tmp_path / "a.gguf", random_adapter(model, ("q_proj",)), form)
    with pytest.raises(ValueError, match=r"it is for llama, and the base is qwen2"):
        read_adapter(tmp_path / "a.gguf", form=Form("qwen2", 4, 2, True))
    with pytest.raises(ValueError, match=r"no adapter: general.type"):
        read_adapter(path)


def test_names_go_both_ways() -> None:
    for name in (
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.12.self_attn.q_proj.bias",
    ):
        assert hf_name(gguf_name(name) or "") == name
    assert [hf_name(n) for n in ("blk.x.attn_q.weight", "rope_freqs.weight", "blk.0.ffn_up_exps.weight")] == [None] * 3
    assert gguf_name("model.layers.0.mlp.experts.0.w1.weight") is None


def test_damaged_and_hostile_files_are_errors_and_nothing_else(tmp_path: Path) -> None:
    whole = (FIXTURES / "llama_cpp.gguf").read_bytes()
    path, form = tmp_path / "x.gguf", Form("llama", 4, 2, False)
    for size in range(0, len(whole) - 32, 61):  # what is cut off at the end may be padding
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"x\.gguf"):
            read_adapter(path, form=form)
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, 1600, 3):  # in the header
            data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            read_adapter(path, form=form)
        except ValueError:
            continue


def test_pairs_that_are_none_are_told(tmp_path: Path) -> None:
    ones = np.ones((2, 8), np.float32)
    fields = {
        "general.architecture": "qwen2",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 2.0,
    }
    path = tmp_path / "x.gguf"
    for tensors, more, words in (
        ({"blk.0.attn_v.weight.lora_a": ones}, {}, "has a lora_a only"),
        ({"blk.0.attn_v.weight.lora_b": ones}, {}, "no pair of lora_a and lora_b"),
        ({"blk.0.attn_v.weight.lora_a": ones, "blk.0.attn_v.weight.lora_b": ones}, {}, "no low-rank pair"),
        ({"blk.0.ffn_up_exps.weight.lora_a": ones}, {}, "has no place in a model that we compute"),
        ({"blk.0.attn_v.weight.lora_a": ones * np.nan, "blk.0.attn_v.weight.lora_b": ones.T}, {}, "no finite number"),
        ({"blk.0.attn_v.weight.lora_a": ones, "blk.0.attn_v.weight.lora_b": ones.T}, {"adapter.lora.alpha": "2"}, "a str"),
        ({"blk.0.attn_v.weight.lora_a": ones}, {"adapter.lora.alpha": float("inf")}, "lora.alpha is inf"),
        ({"x.weight": ones}, {"adapter.alora.invocation_tokens": [1, 2]}, "aLoRA"),
        ({}, {}, "no adapter in it"),
    ):  # fmt: skip
        written(path, fields | more, tensors)
        with pytest.raises(ValueError, match=words):
            read_adapter(path)
    norm = {"blk.0.attn_norm.weight": ones[0], "blk.0.attn_v.weight.lora_a": ones, "blk.0.attn_v.weight.lora_b": ones.T}
    written(path, fields | {"adapter.lora.alpha": 0.0}, norm)
    adapter = read_adapter(path)
    assert list(adapter.whole) == ["model.layers.0.input_layernorm.weight"]
    assert adapter.parts["model.layers.0.self_attn.v_proj"].scale == 1.0  # as llama.cpp takes an alpha of 0
