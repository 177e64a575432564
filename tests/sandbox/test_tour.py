"""The commands at the beginning of docs/sandbox.md, as a newcomer types them: from nothing to a plan that can be trained."""

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
    assert [shlex.split(line)[1] for line in commands("sandbox.md")] == ["check", "lr", "scaling", "plan", "report"]


@pytest.mark.slow
def test_the_tour_ends_with_a_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    begin = time.monotonic()
    for line in commands("sandbox.md"):
        assert cli.main(shlex.split(line)) == 0, capsys.readouterr().err[-2000:]
    print(capsys.readouterr().out)
    print(f"the tour took {(time.monotonic() - begin) / 60:.1f} min")
    assert load_train_config(tmp_path / "runs" / "plan.toml").stages
    assert list((tmp_path / "runs" / "sandbox").rglob("*.html"))
