"""docs/own-model.md: its commands are those of the program, in both languages the same; a slow test runs all of them, a fast one in
test_forge.py all of them in miniature."""

import json
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from gangpao.cli import COMMANDS
from gangpao.forge.config import load_forge_config
from tests.child import environment

GANGPAO = [sys.executable, "-P", "-c", "import sys; from gangpao.cli import main; sys.exit(main())"]
ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "docs" / name for name in ("own-model.md", "own-model.zh.md")]


def commands(page):
    """Lines of the shell blocks of a page, as words."""
    blocks = page.read_text(encoding="utf-8").split("```sh\n")[1:]
    return [shlex.split(line) for block in blocks for line in block.partition("```")[0].splitlines() if line.strip()]


def answers_a_phone(words, cwd, config):
    """`gangpao serve ... --phone` on a free port: the page comes over TLS, and the model of the page is the file that was made."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    said = cwd / "serve.log"
    with said.open("w") as log:
        server = subprocess.Popen(
            [*GANGPAO, *words[1:], "--port", str(port)], cwd=cwd, env=environment(XDG_CONFIG_HOME=str(config)),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while "ready: " not in (text := said.read_text(encoding="utf-8")):
            assert server.poll() is None, text
            assert time.monotonic() < until, text
            time.sleep(0.05)
        assert f":{port}/phone" in text
        anyone = ssl.create_default_context()  # the authority was made by the server just now
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        with urlopen(f"https://127.0.0.1:{port}/phone", context=anyone, timeout=20) as page:
            assert b"<!doctype html>" in page.read(100)
        asked = Request(f"https://127.0.0.1:{port}/v1/models", headers={"Authorization": "Bearer SECRET"})
        with urlopen(asked, context=anyone, timeout=20) as models:
            assert [one["id"] for one in json.load(models)["data"]] == [Path(words[3]).stem]
    finally:
        server.terminate()
        server.wait()


def test_both_pages_have_the_same_commands():
    first, second = map(commands, PAGES)
    assert first == second
    assert len(first) == 6
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
        if words[1] == "serve":
            answers_a_phone(words, tmp_path, tmp_path / "config")
            continue
        done = subprocess.run([*GANGPAO, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-2000:]}"
    assert (tmp_path / "runs" / "quick" / "export" / "quick.gguf").is_file()
    for name in ("report.en.html", "report.zh.html", "report.en.md", "report.zh.md"):
        assert (tmp_path / "runs" / "quick" / name).stat().st_size > 1000
