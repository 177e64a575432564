"""PEFT folders: what peft saves is read, and what we write is loaded by peft, with the same logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gangpao.formats.adapters import Adapter, read_adapter, write_peft
from tests.formats.adapters import models

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FORMS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 4, r"^model\.layers\.0\..*up_proj": 2}, "alpha_pattern": {"1.self_attn.v_proj": 3}},
    "rsLoRA with patterns": {"use_rslora": True, "rank_pattern": {"down_proj": 3}, "alpha_pattern": {"k_proj": 5.5}},
    "some layers": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "a regular expression": {"target_modules": r".*layers\.1\.mlp\.(gate|up)_proj"},
    "embedding and head": {"target_modules": ["v_proj", "embed_tokens", "lm_head"]},
    "a whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def base() -> Any:
    return models.tiny()


@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)
def test_what_peft_saves_is_read_and_what_we_write_is_loaded_by_peft(
    base: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    adapted = models.with_peft(base, **settings)
    if "modules_to_save" in settings:
        with torch.no_grad():
            adapted.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.1)
    adapter = read_adapter(models.save(adapted, tmp_path / "theirs"))
    adapter.check_base({name: tuple(p.shape) for name, p in base.named_parameters()})
    expected = models.logits(adapted)
    assert (expected - models.logits(base)).abs().max() > 0.1
    torch.testing.assert_close(models.logits(models.merged_by_hand(base, adapter)), expected, atol=1e-5, rtol=1e-5)

    write_peft(tmp_path / "ours", adapter)
    torch.testing.assert_close(models.logits(models.load(base, tmp_path / "ours")), expected, atol=1e-6, rtol=1e-6)
    again = read_adapter(tmp_path / "ours")
    assert {name: part.scale for name, part in again.parts.items()} == {n: p.scale for n, p in adapter.parts.items()}


def test_a_written_folder_says_what_it_is(base: Any, tmp_path: Path) -> None:
    adapter = models.random_adapter(base, ("q_proj", "v_proj", "down_proj"))
    write_peft(tmp_path, adapter, base="someone/model", extra={"chat_template.jinja": b"{{ messages }}"})
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == ("someone/model", "CAUSAL_LM")
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"]) == (4, pytest.approx(2.8))
    assert (tmp_path / "chat_template.jinja").read_bytes() == b"{{ messages }}"
    assert read_adapter(tmp_path).base == "someone/model"
    write_peft(tmp_path, Adapter({n: p for n, p in adapter.parts.items() if "layers.1" in n or "q_proj" in n}))
    assert (
        "model.layers.0.self_attn.q_proj"
        in json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    )
