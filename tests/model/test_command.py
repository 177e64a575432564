"""`gangpao model show` of whatever one has at hand: a preset, a folder, a run with and without its export."""

import json

import pytest
import torch

from gangpao import cli
from gangpao.model import command, weights
from gangpao.model.config import PRESETS
from tests.model.tiny import tiny


def test_runs_and_their_parts_have_the_shape_of_the_run(tmp_path, capsys):
    config = tiny("minicpm")
    step = tmp_path / "run" / "checkpoints" / "step-00000005"
    step.mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"model": config.model_dump(mode="json", exclude_none=True)}))
    assert command.find(str(tmp_path / "run")) == command.find(str(step)) == config
    weights.save(tmp_path / "run" / "export", config, {"lm_head.weight": torch.zeros(1)})
    assert command.find(str(tmp_path / "run")).hidden_size == command.find(str(tmp_path / "run" / "export")).hidden_size
    assert cli.main(["model", "show", str(tmp_path / "run")]) == 0
    assert f"hidden_size              {config.hidden_size}" in capsys.readouterr().out
    assert command.find("minicpm-9m") == PRESETS["minicpm-9m"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.gguf", r"gangpao chat -m .*x\.gguf"),
        ("minicpm-9", "neither a preset .* did you mean minicpm-9m"),
        ("", "a folder without config.json: give a Hugging Face folder or a run"),
        ("bad", r"run\.json: it does not say what the model is"),
    ],
)
def test_what_has_no_shape_says_what_to_type(tmp_path, name, message):
    (tmp_path / "x.gguf").touch()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        command.find(name if name == "minicpm-9" else str(tmp_path / name))


def test_a_model_that_sees_is_shown_whole(tmp_path, capsys):
    """MiniCPM-V 2.0 from its config.json alone: the exact count of both halves, and what a picture takes."""
    data = {
        "model_type": "minicpmv", "architectures": ["MiniCPMV"], "hidden_size": 2304, "intermediate_size": 5760,
        "num_attention_heads": 36, "num_key_value_heads": 36, "num_hidden_layers": 40, "vocab_size": 122753, "scale_emb": 12,
        "scale_depth": 1.4, "dim_model_base": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "query_num": 64,
        "drop_vision_last_layer": True, "image_size": 448, "slice_mode": True, "max_slice_nums": 9, "scale_resolution": 448,
        "vision_encoder": "vit_so400m_patch14_siglip_384.webli", "patch_size": 14, "max_position_embeddings": 4096,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert cli.main(["model", "show", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sight"]["parameters"]["total"] + facts["parameters"]["total"] == 3_434_965_792
    assert facts["sight"]["pictures"]["1344 x 1344"]["rows"] == 640
    assert facts["remarks"] == []
    assert cli.main(["model", "show", str(tmp_path / "config.json")]) == 0
    said = capsys.readouterr().out
    assert "3,434,965,792" in said
    assert "10 pieces" in said
