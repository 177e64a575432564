"""Merging onto Hugging Face folders: the bits of peft's merge_and_unload, and a tied head that is untied first."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gangpao.formats.adapters import Adapter, write_peft
from gangpao.tune.merge.check import MAX_DIFFERENCE
from gangpao.tune.merge.merge import Different, Options, merge
from tests.formats.adapters import models
from tests.text import hf_folder

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def folder_of(model: Any, path: Path, dtype: torch.dtype = torch.float32, **shards: Any) -> Path:
    """The model as a folder, with a tokenizer and what else belongs to it."""
    copy.deepcopy(model).to(dtype).save_pretrained(path, **shards)
    return hf_folder.save(
        path, hf_folder.byte_level(), generation={"eos_token_id": [1, 3]}, chat_template__jinja="{{ messages[0].content }}</s>"
    )  # fmt: skip


FORMS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}},
    "embedding and head": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)
def test_a_merge_has_the_bits_of_pefts(tmp_path: Path, settings: dict[str, Any], dtype: torch.dtype) -> None:
    base = models.tiny(initializer_range=0.05)
    models.save(models.with_peft(base, **settings), tmp_path / "adapter")
    folder = folder_of(base, tmp_path / "base", dtype, max_shard_size="60KB")
    found = merge(folder, [(tmp_path / "adapter", 1.0)], tmp_path / "merged")
    assert found is not None
    assert found.effect > 0.01
    assert found.share < (1e-3 if dtype == torch.bfloat16 else 1e-9)

    stored = copy.deepcopy(base).to(dtype)
    theirs = models.load(stored, tmp_path / "adapter").merge_and_unload().state_dict()
    ours: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "merged").glob("*.safetensors"):
        ours |= load_file(file)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == ours.keys() == theirs.keys()
    assert {name: t.dtype for name, t in ours.items()} == dict.fromkeys(ours, dtype)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    if (
        dtype == torch.bfloat16 and "target_modules" in settings
    ):  # there peft rounds the product first, and then the sum
        torch.testing.assert_close(ours[different.pop(0)], theirs["model.embed_tokens.weight"], atol=1e-3, rtol=2**-7)
    assert different == []
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "merged" / name).read_bytes() == (folder / name).read_bytes()


def test_dora_is_pefts_to_a_millionth(tmp_path: Path) -> None:
    base = models.tiny()
    models.save(models.with_peft(base, use_dora=True), tmp_path / "adapter")
    merge(folder_of(base, tmp_path / "base"), [(tmp_path / "adapter", 1.0)], tmp_path / "merged")
    theirs = models.load(base, tmp_path / "adapter").merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "merged" / "model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_tied_head_is_untied_first(tmp_path: Path, target: str) -> None:
    """peft's own merge changes embedding and head together there, which is another model than its adapter."""
    from transformers import LlamaForCausalLM

    base = models.tiny(tie_word_embeddings=True)
    adapter = models.random_adapter(base, (target, "q_proj"))
    if target == "lm_head":  # named_parameters has a tied weight once
        embedding = models.random_adapter(base, ("embed_tokens",)).parts["model.embed_tokens"]
        adapter = Adapter(adapter.parts | {"lm_head": embedding})
    write_peft(tmp_path / "adapter", adapter)
    expected = models.logits(models.merged_by_hand(base, adapter))
    merge(folder_of(base, tmp_path / "base"), [(tmp_path / "adapter", 1.0)], tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(models.logits(merged), expected, atol=1e-5, rtol=1e-5)


def test_several_adapters_with_a_strength_each_add_up(tmp_path: Path) -> None:
    base = models.tiny()
    one, two = models.random_adapter(base, ALL), models.random_adapter(base, ("q_proj", "lm_head"), seed=4)
    for name, adapter in (("one", one), ("two", two)):
        write_peft(tmp_path / name, adapter)
    out = tmp_path / "merged"
    merge(
        folder_of(base, tmp_path / "base"),
        [(tmp_path / "one", 0.5), (tmp_path / "two", -2.0)],
        out,
        Options(check=False),
    )
    q = "model.layers.1.self_attn.q_proj"
    expected = (
        base.get_parameter(f"{q}.weight").detach().numpy() + 0.5 * one.parts[q].delta() - 2 * two.parts[q].delta()
    )
    torch.testing.assert_close(
        load_file(out / "model.safetensors")[f"{q}.weight"], torch.from_numpy(expected), atol=1e-6, rtol=1e-6
    )


def test_what_began_as_pissa_is_merged_onto_the_original_base(tmp_path: Path) -> None:
    base = models.tiny()
    adapted = models.with_peft(base, init_lora_weights="pissa", target_modules=["q_proj", "v_proj"])
    models.save(adapted, tmp_path / "adapter")
    merge(folder_of(base, tmp_path / "base"), [(tmp_path / "adapter", 1.0)], tmp_path / "merged")
    theirs = adapted.merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "merged" / "model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    base = models.tiny()
    folder = folder_of(base, tmp_path / "base", torch.bfloat16)
    write_peft(tmp_path / "adapter", models.random_adapter(base, ("q_proj",)))
    write_peft(tmp_path / "wide", models.random_adapter(models.tiny(hidden_size=40, head_dim=8), ("q_proj",)))
    models.save(models.with_peft(base, use_dora=True), tmp_path / "dora")
    before = sorted(path.name for path in tmp_path.iterdir())
    good, out = (tmp_path / "adapter", 1.0), tmp_path / "merged"
    for adapters, options, words in (
        (
            [(tmp_path / "wide", 1.0)],
            Options(),
            "an adapter of another base: its model.layers.0.self_attn.q_proj.weight",
        ),
        ([(tmp_path / "dora", 0.5)], Options(), "magnitudes .DoRA. is merged alone and with scale 1"),
        ([(tmp_path / "dora", 1.0), good], Options(), "magnitudes .DoRA. is merged alone"),
        ([good], Options(kind="Q8_0"), "--type is for .gguf files"),
        ([good], Options(max_difference=-1), "--max-difference is -1"),
        ([(tmp_path / "nothing", 1.0)], Options(), "no such file"),
        ([], Options(), "no adapter to merge"),
    ):
        with pytest.raises(ValueError, match=words):
            merge(folder, adapters, out, options)
    with pytest.raises(ValueError, match="exists already"):
        merge(folder, [good], folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert MAX_DIFFERENCE < 1


def test_a_result_that_answers_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = models.tiny()
    folder = folder_of(base, tmp_path / "base")
    write_peft(tmp_path / "adapter", models.random_adapter(base, ALL))
    monkeypatch.setattr("gangpao.tune.merge.folder._rounded", lambda name, values, dtype: (values * 8).round() / 8)
    with pytest.raises(Different, match=r"(?s)was not written.*perplexity: base .*--max-difference 0"):
        merge(folder, [(tmp_path / "adapter", 1.0)], tmp_path / "merged", Options(max_difference=0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_base_of_bin_files_becomes_safetensors_and_another_base_is_noted(tmp_path: Path) -> None:
    base = models.tiny()
    folder = folder_of(base, tmp_path / "base")
    (folder / "model.safetensors").unlink()
    torch.save(base.state_dict(), folder / "pytorch_model.bin")
    adapter = replace(models.random_adapter(base, ("q_proj",)), base="my base", base_sha256="ab" * 32)
    write_peft(tmp_path / "adapter", adapter)
    notes: list[str] = []
    merge(folder, [(tmp_path / "adapter", 1.0)], tmp_path / "merged", on_note=notes.append)
    assert "was trained on my base with the sha256 abababababab, this base has" in notes[0]
    assert not (tmp_path / "merged" / "pytorch_model.bin").exists()
    found = load_file(tmp_path / "merged" / "model.safetensors")
    for name, p in models.merged_by_hand(base, adapter).named_parameters():
        torch.testing.assert_close(found[name], p.detach(), atol=1e-6, rtol=1e-6)
