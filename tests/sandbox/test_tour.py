"""The commands at the beginning of docs/sandbox.md, as a newcomer types them: from nothing to a planned run that was predicted."""

import json
import re
import shlex
import time
from pathlib import Path

import pytest

from gangpao import cli
from gangpao.train.config import load_train_config

ROOT = Path(__file__).resolve().parents[2]


def commands(page):
    """The first indented block."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^    gangpao (.*)$", text.split("\n\n", 3)[2], re.MULTILINE)


def test_both_languages_show_the_same_tour():
    assert commands("sandbox.md") == commands("sandbox.zh.md")
    steps = [shlex.split(line) for line in commands("sandbox.md")]
    assert [words[1] if words[0] == "sandbox" else words[0] for words in steps] == [
        "check", "lr", "scaling", "plan", "train", "compare", "report",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_tour_ends_with_what_was_predicted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    begin = time.monotonic()
    for line in commands("sandbox.md"):
        assert cli.main(shlex.split(line)) == 0, capsys.readouterr().err[-2000:]
    print(capsys.readouterr().out)
    print(f"the tour took {(time.monotonic() - begin) / 60:.1f} min")
    box = tmp_path / "runs" / "sandbox"
    assert load_train_config(tmp_path / "runs" / "plan.toml").stages
    assert list(box.rglob("*.html"))
    (runs,) = (json.loads(path.read_text()) for path in box.glob("plans/*/runs.json"))
    assert [(run["inside"], run["before"], run["wide"]) for run in runs] == [(True, True, False)]
    assert "inside the interval" in (box / "report.en.md").read_text()
