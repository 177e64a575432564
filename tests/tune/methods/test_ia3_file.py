"""IA3 as a PEFT folder: peft loads it with our logits, and a merge is peft's."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from gangpao.tune.merge.merge import merge
from gangpao.tune.methods import MethodConfig
from gangpao.tune.methods.ia3_file import write_ia3
from tests.tune.merge.test_folder import folder_of
from tests.tune.methods.peers import IDS, models, pair, same

THEIRS = peft.IA3Config(
    task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
)


@pytest.mark.filterwarnings("ignore")
def test_peft_loads_what_we_write_and_a_merge_is_pefts(tmp_path: Path) -> None:
    applied, _ = pair(MethodConfig(kind="ia3"), theirs=THEIRS)
    (tmp_path / "adapter").mkdir()
    write_ia3(tmp_path / "adapter", applied.modules, "base", "", {"note.txt": b"x"})
    _, plain = models()
    folder = folder_of(plain, tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    with torch.no_grad():
        same(loaded(IDS).logits, applied.model.logits(applied.model(IDS).hidden))
    found = merge(folder, [(tmp_path / "adapter", 1.0)], tmp_path / "merged")
    assert found is not None
    assert found.kept < 1e-9 < found.effect
    theirs = loaded.merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "merged" / "model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=1e-6)


def test_factors_of_another_base_are_refused(tmp_path: Path) -> None:
    applied, _ = pair(MethodConfig(kind="ia3"), theirs=THEIRS)
    (tmp_path / "adapter").mkdir()
    write_ia3(tmp_path / "adapter", applied.modules, "base", "", {})
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["feedforward_modules"]) == ("IA3", ["down_proj"])
    _, other = models(intermediate_size=160)
    with pytest.raises(ValueError, match="an adapter of another base"):
        merge(folder_of(other, tmp_path / "base"), [(tmp_path / "adapter", 1.0)], tmp_path / "merged")
