"""PEFT folders: what peft saves is read, and what we write is loaded by peft, with the same logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gangpao.formats.adapters import Adapter, read_adapter, write_peft
from tests.formats.adapters import models

peft = pytest.importorskip("peft")
FIXTURE = Path(__file__).parent.parent.parent / "fixtures" / "adapters" / "peft"
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


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_began_by_changing_the_base_becomes_the_difference_from_it(base: Any, tmp_path: Path, start: str) -> None:
    adapted = models.with_peft(base, init_lora_weights=start, target_modules=["q_proj", "down_proj"])
    folder = models.save(adapted, tmp_path / start)
    with pytest.raises(
        ValueError, match=r"(q_proj|down_proj).*path_initial_model_for_weight_conversion.*gangpao merge"
    ):
        read_adapter(folder)
    adapter = read_adapter(folder, weight_of=lambda name: base.get_parameter(f"{name}.weight").detach().numpy())
    assert {part.rank for part in adapter.parts.values()} == {16}
    expected = models.logits(adapted)
    torch.testing.assert_close(models.logits(models.merged_by_hand(base, adapter)), expected, atol=1e-4, rtol=1e-4)
    write_peft(tmp_path / "plain", adapter)
    torch.testing.assert_close(models.logits(models.load(base, tmp_path / "plain")), expected, atol=1e-4, rtol=1e-4)


def test_trained_biases_take_the_place_of_the_bases(tmp_path: Path) -> None:
    base = models.tiny(attention_bias=True)
    adapted = models.with_peft(base, bias="lora_only", target_modules=["q_proj"])
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "q_proj" in name and name.endswith("bias"):
                p.add_(0.5)
    adapter = read_adapter(models.save(adapted, tmp_path / "theirs"))
    assert sorted(adapter.whole) == [f"model.layers.{i}.self_attn.q_proj.bias" for i in range(models.LAYERS)]
    expected = models.logits(adapted)
    torch.testing.assert_close(models.logits(models.merged_by_hand(base, adapter)), expected, atol=1e-5, rtol=1e-5)
    write_peft(tmp_path / "ours", adapter)
    torch.testing.assert_close(models.logits(models.load(base, tmp_path / "ours")), expected, atol=1e-5, rtol=1e-5)


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    ({"lora_bias": True}, "lora_bias is set .a bias behind B"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is set"),
    ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens is set"),
    ({"layer_replication": [[0, 1]]}, "layer_replication is set"),
    ({"new_kind_of_scale": 2.0}, "'new_kind_of_scale' is not known here and could change the numbers"),
    ({"init_lora_weights": "loftq"}, "changed the base"),
    ({"init_lora_weights": ["pissa"]}, "changed the base"),
    ({"r": 0}, "r is 0, not a rank"),
    ({"r": 3}, "has rank 2, and adapter_config.json says 3"),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ({"lora_alpha": True}, "lora_alpha is True"),
    ({"use_dora": True}, "has no magnitude, and use_dora is true"),
    ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
    ({"rank_pattern": ["x"]}, "rank_pattern is no object"),
    ({"alpha_pattern": {"(a+)+$": 1}}, "could take for ever"),
    ({"alpha_pattern": {".*.*.*.*.*q": 1}}, "could take for ever"),
    ({"alpha_pattern": {"(": 1}}, "has a pattern that is none"),
]


@pytest.mark.parametrize(("change", "words"), CONFIGS, ids=[f"{i}-{next(iter(c))}" for i, (c, _) in enumerate(CONFIGS)])
def test_what_would_change_the_result_is_refused_by_its_name(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    folder = copy_of_fixture(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=words) as error:
        read_adapter(folder)
    assert str(folder) in str(error.value)


def copy_of_fixture(folder: Path) -> Path:
    for path in FIXTURE.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_unknown_keys_that_are_not_set_and_descriptions_pass(tmp_path: Path) -> None:
    folder = copy_of_fixture(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"next_year": None, "unsloth_fixed": True}))
    assert len(read_adapter(folder).parts) == 4


def test_a_pickled_file_is_refused_with_how_to_convert_it(tmp_path: Path) -> None:
    folder = copy_of_fixture(tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="load the adapter with peft and save it again"):
        read_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ValueError, match=r"there is no adapter_model.safetensors"):
        read_adapter(folder)
    with pytest.raises(ValueError, match="no such file"):
        read_adapter(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no adapter"):
        read_adapter(tmp_path.parent)
