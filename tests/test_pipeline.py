"""The lab and the device end to end, as a user types it: train from a TOML file, export, ask.

About 40 seconds on two cores: the data is made up, the model has 0.1 M parameters and learns to finish made-up sentences.
"""

import json
import math
from pathlib import Path

import pytest

from gangpao import cli

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab") / "tiny"
    assert cli.main(["train", str(CONFIGS / "train-tiny.toml"), "--out", str(folder)]) == 0
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_falls_again_in_the_decay(run):
    steps = [m for m in metrics(run) if "loss" in m]
    losses = {m["step"]: m["loss"] for m in steps}
    assert sorted(losses) == list(range(1, 241))
    mean = lambda a, b: sum(losses[i] for i in range(a, b)) / (b - a)  # noqa: E731
    assert losses[1] == pytest.approx(math.log(1024), rel=0.1)
    assert mean(180, 200) < 0.6 * mean(1, 11)
    stable = next(m for m in metrics(run) if m.get("heldout") and m["step"] == 200)["heldout"]
    end = next(m for m in metrics(run) if m.get("heldout") and m["step"] == 240)["heldout"]
    assert end["heldout"] < stable["heldout"]


def test_running_it_again_changes_nothing(run, capsys):
    before = {p: p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*")}
    assert cli.main(["train", str(CONFIGS / "train-tiny.toml"), "--out", str(run), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["done"] is True
    assert {p: p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*")} == before


def test_the_export_answers_on_the_device(run, tmp_path, capsys):
    target = tmp_path / "tiny.gguf"
    assert cli.main(["export", str(run / "export"), str(target), "--type", "Q8_0"]) == 0
    capsys.readouterr()
    arguments = ["run", "-m", str(target), "--json", "--temperature", "0", "--max-tokens", "12"]
    assert cli.main([*arguments, "--raw", "3 + 4 ="]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["completion_tokens"] > 0
    assert answer["text"].strip()


def test_the_export_is_the_same_function_in_torch_and_in_the_engine(run, tmp_path):
    import numpy as np
    import torch

    from gangpao.deploy import gguf as writer
    from gangpao.engine.transformer import Transformer as Engine
    from gangpao.formats.gguf import GGUF
    from gangpao.model import weights
    from gangpao.text.tokenizer import Tokenizer

    path = writer.export(run / "export", tmp_path / "f32.gguf", "F32")
    ids = Tokenizer.from_dir(run / "export").encode("the small fox and 小猫 met at 12 + 7 = 19")
    model = weights.load(run / "export", dtype=torch.float32)
    with torch.no_grad():
        expected = model.logits(model(torch.tensor([ids])).hidden)[0].numpy()
    with GGUF.open(path) as gguf:
        assert Tokenizer.from_gguf(gguf.metadata).encode("the small fox and 小猫 met at 12 + 7 = 19") == ids
        engine = Engine.load(gguf)
        found = engine.forward(ids, engine.new_cache(128), all_logits=True)
        del engine
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_runs_are_plotted(run, tmp_path, capsys):
    assert cli.main(["train", "plot", str(run), "--out", str(tmp_path / "plot")]) == 0
    assert {Path(line).suffix for line in capsys.readouterr().out.split()} == {".png", ".html"}
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_data_is_shown(run, capsys, tmp_path):
    assert cli.main(["data", "build", str(CONFIGS / "data-tiny.toml"), "--out", str(tmp_path / "data")]) == 0
    assert cli.main(["data", "stats", str(tmp_path / "data")]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("stories", "sums", "talks"))
