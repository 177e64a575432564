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
