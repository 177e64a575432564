"""docs/own-model.md: its commands are those of the program, in both languages the same; a slow test runs all of them."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gangpao.cli import COMMANDS
from gangpao.forge.config import load_forge_config

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "docs" / name for name in ("own-model.md", "own-model.zh.md")]


def commands(page):
    """Lines of the shell blocks of a page, as words."""
    blocks = page.read_text(encoding="utf-8").split("```sh\n")[1:]
    return [shlex.split(line) for block in blocks for line in block.partition("```")[0].splitlines() if line.strip()]


def test_both_pages_have_the_same_commands():
    first, second = map(commands, PAGES)
    assert first == second
    assert len(first) == 5
    assert all(words[0] == "gangpao" for words in first)


def test_the_page_names_every_stage_of_its_line():
    stages = load_forge_config(ROOT / "configs" / "forge-quick.toml").stages()
    for page in PAGES:
        rows = [
            line.split("|")[1].strip()
            for line in page.read_text(encoding="utf-8").splitlines()
            if line.startswith("| ")
        ]
        assert rows[1:] == stages


def test_the_answers_that_our_own_model_learns_name_commands_that_exist():
    rows = (ROOT / "configs" / "nano-talks.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [[turn["content"] for turn in json.loads(row)["messages"]] for row in rows]
    questions, answers = [question for question, _ in turns], " ".join(answer for _, answer in turns)
    assert len(set(questions)) == len(questions)
    named = re.findall(r"gangpao ([a-z]+) (?:-m|--|[A-Zq]|configs/)", answers)
    assert len(set(named)) >= 8
    assert {verb for verb in named if verb not in COMMANDS} == set()
    assert {file for file in re.findall(r"configs/[\w.-]+", answers) if not (ROOT / file).is_file()} == set()


@pytest.mark.slow
def test_every_command_of_the_page_does_what_it_says(tmp_path):
    """A quarter of an hour on two cores."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for words in commands(PAGES[0]):
        call = [sys.executable, "-P", "-c", "import sys; from gangpao.cli import main; sys.exit(main())", *words[1:]]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-2000:]}"
    assert (tmp_path / "runs" / "quick" / "export" / "quick.gguf").is_file()
    for name in ("report.en.html", "report.zh.html", "report.en.md", "report.zh.md"):
        assert (tmp_path / "runs" / "quick" / name).stat().st_size > 1000
