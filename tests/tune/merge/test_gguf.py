"""Merging onto GGUF files: our merged file in llama.cpp = the adapter beside the base = torch; what is written says what it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from gangpao.deploy import gguf as exporter
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.formats.adapters import Adapter, Form, write_gguf, write_peft
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from gangpao.tune.merge.command import merge as command
from gangpao.tune.merge.merge import Different, Options, merge
from tests.formats.adapters.models import random_adapter
from tests.formats.adapters.test_gguf import ALL, IDS, far, logits
from tests.formats.adapters.test_gguf import merge as merged_in_place
from tests.formats.gguf_maker import random_model, vocabulary
from tests.llama_oracle import LlamaBatch
from tests.model.test_transformer import build

VOCAB = 320
PROMPT = IDS[0, :8].tolist()
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def base_file(kind: str, path: Path, stored: str = "F32", **fields: Any) -> Any:
    model = build(kind, **fields).float()
    tokenizer = vocabulary(VOCAB) | {"tokenizer.chat_template": TEMPLATE}
    exporter.write(path, model.config, weights.state(model), tokenizer, stored, check=False)
    return model


@pytest.mark.parametrize(
    ("kind", "tied", "targets"),
    [("llama", True, ALL), ("minicpm", True, (*ALL, "embed_tokens")), ("qwen2", False, ("q_proj", "lm_head"))],
)
def test_llama_cpp_with_the_merged_file_is_torch_with_the_adapter(
    tmp_path: Path, kind: str, tied: bool, targets: tuple[str, ...]
) -> None:
    model = base_file(kind, tmp_path / "base.gguf", tie_word_embeddings=tied)
    adapter = random_adapter(model, targets)
    write_peft(tmp_path / "adapter", adapter)
    found = merge(tmp_path / "base.gguf", [(tmp_path / "adapter", 1.0)], tmp_path / "merged.gguf")
    assert found is not None
    assert found.share < 1e-6
    if tied and "embed_tokens" in targets:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    expected = logits(merged_in_place(model, adapter))
    with LlamaBatch(tmp_path / "merged.gguf", exact=True) as llama:
        assert far(llama.logits(IDS[0].tolist()), expected) < 1e-4


def test_metadata_go_over_and_the_name_is_its_own(tmp_path: Path) -> None:
    base = random_model(tmp_path / "base.gguf", "llama", kind="Q4_0", extra={"tokenizer.chat_template": TEMPLATE})
    with GGUF.open(base) as gguf:
        before, tensors = dict(gguf.metadata), {name: bytes(gguf.raw(name)) for name in gguf.tensors}
        form = Form.of(gguf)
        shape = gguf.info("blk.0.attn_q.weight").shape
    rng = np.random.default_rng(0)
    adapter = Adapter({"model.layers.0.self_attn.q_proj": part_of(rng, shape)})
    write_gguf(tmp_path / "adapter.gguf", adapter, form)
    notes: list[str] = []
    merge(base, [(tmp_path / "adapter.gguf", 1.0)], tmp_path / "mine.gguf", Options("Q8_0"), on_note=notes.append)
    assert "1 tensors Q4_0 -> Q8_0" in notes[0]
    assert "bytes became" in notes[0]
    with GGUF.open(tmp_path / "mine.gguf") as gguf:
        assert gguf.metadata["general.name"] == "mine"
        same = {key: value for key, value in gguf.metadata.items() if key not in ("general.name", "general.file_type")}
        assert same.keys() == before.keys() - {"general.name", "general.file_type"}
        for key, value in same.items():
            assert np.array_equal(value, before[key]), key
        changed = [name for name in gguf.tensors if bytes(gguf.raw(name)) != tensors[name]]
        assert changed == ["blk.0.attn_q.weight"]
        assert gguf.info(changed[0]).type == "Q8_0"


def part_of(rng: np.random.Generator, shape: tuple[int, ...], size: float = 0.3) -> Any:
    from gangpao.formats.adapters import Part

    a, b = (rng.normal(0, size, s).astype(np.float32) for s in ((4, shape[1]), (shape[0], 4)))
    return Part(a, b, 1.0)


def test_searched_types_become_q8_0_and_the_rest_is_left_alone(tmp_path: Path) -> None:
    base = random_model(
        tmp_path / "base.gguf", "llama", kind=["Q4_K", "Q6_K", "Q5_0"], hidden_size=256, intermediate_size=512
    )
    with GGUF.open(base) as gguf:
        types = {name: info.type for name, info in gguf.tensors.items()}
        shapes = {name: info.shape for name, info in gguf.tensors.items()}
    rng = np.random.default_rng(0)
    adapter = Adapter({"model.layers.0.mlp.down_proj": part_of(rng, shapes["blk.0.ffn_down.weight"], 0.1)})
    write_peft(tmp_path / "adapter", adapter)
    notes: list[str] = []
    merge(base, [(tmp_path / "adapter", 1.0)], tmp_path / "merged.gguf", Options(check=False), on_note=notes.append)
    assert f"1 tensors {types['blk.0.ffn_down.weight']} -> Q8_0" in notes[0]
    with GGUF.open(tmp_path / "merged.gguf") as gguf:
        assert {n: i.type for n, i in gguf.tensors.items()} == types | {"blk.0.ffn_down.weight": "Q8_0"}


def test_a_type_that_swallows_the_adapter_is_refused_with_exit_code_1(tmp_path: Path) -> None:
    """In Q4_0 what an adapter adds is smaller than a step, and what is quantized again is mostly the base."""
    model = base_file("llama", tmp_path / "base.gguf", "Q4_0")
    write_peft(tmp_path / "adapter", random_adapter(model, ALL, scale=0.05))
    app = typer.Typer()
    app.command()(command)
    given = [str(tmp_path / "base.gguf"), "--adapter", f"{tmp_path / 'adapter'}:0.5"]
    done = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "merged.gguf")])
    assert done.exit_code == 1, done.output
    assert "refused" in done.output
    assert "--type Q8_0" in done.output
    assert not (tmp_path / "merged.gguf").exists()
    done = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "merged.gguf"), "--type", "f16"])
    assert done.exit_code == 0, done.output
    assert "perplexity: base" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base.gguf", "merged.gguf"]


def test_a_weak_adapter_that_is_lost_is_refused_too_and_one_without_effect_is_noted(tmp_path: Path) -> None:
    model = base_file("llama", tmp_path / "base.gguf", "Q4_0")
    write_peft(tmp_path / "adapter", random_adapter(model, ALL, scale=0.05))
    with pytest.raises(Different, match="--type Q8_0") as refused:
        merge(tmp_path / "base.gguf", [(tmp_path / "adapter", 0.02)], tmp_path / "merged.gguf")
    assert 1e-7 < refused.value.comparison.kept < 1e-4
    notes: list[str] = []
    merge(tmp_path / "base.gguf", [(tmp_path / "adapter", 0.0)], tmp_path / "same.gguf", on_note=notes.append)
    assert "too little to judge" in notes[-1]


def test_a_scale_that_is_none_is_named_before_anything_is_read(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    (tmp_path / "r").mkdir()
    for scale, words in (
        ("nan", "the scale 'nan' must be"),
        ("inf", "the scale 'inf' must be"),
        ("0,5", "'0,5' is no scale"),
        ("abc", "is there, and 'abc'"),
    ):
        done = CliRunner().invoke(
            app, [str(tmp_path), "--adapter", f"{tmp_path / 'r'}:{scale}", "--out", str(tmp_path / "o")]
        )
        assert done.exit_code, scale
        assert words in str(done.exception)


def test_a_merged_model_ends_its_turns_as_its_base_does(tmp_path: Path) -> None:
    model = base_file("llama", tmp_path / "first.gguf", tie_word_embeddings=False)
    write_peft(tmp_path / "adapter", random_adapter(model, ALL))
    merge(tmp_path / "first.gguf", [(tmp_path / "adapter", 1.0)], tmp_path / "one.gguf", Options(check=False))
    params = SamplingParams(temperature=0.0, max_tokens=40)
    said = [i for piece in Engine.load(tmp_path / "one.gguf").generate(PROMPT, params) for i in piece.ids]
    end = said[5]
    assert len(said) == 40
    path = tmp_path / "base.gguf"
    tokenizer = vocabulary(VOCAB) | {"tokenizer.chat_template": TEMPLATE, "tokenizer.ggml.eos_token_id": end}
    exporter.write(path, model.config, weights.state(model), tokenizer, "F32", check=False)
    merge(path, [(tmp_path / "adapter", 1.0)], tmp_path / "two.gguf")
    engine = Engine.load(tmp_path / "two.gguf")
    assert engine.tokenizer.chat_template == TEMPLATE
    answer = engine.generate(PROMPT, params)
    assert [i for piece in answer for i in piece.ids] == said[: said.index(end)]
    assert answer.finish_reason == "stop"
