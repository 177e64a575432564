"""The examples of README and docs/serving, in both languages: programs run against a live server, commands are understood."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from gangpao import cli
from tests.child import environment

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("README.md", "README.zh.md", "docs/serving.md", "docs/serving.zh.md")
ADDRESS = "http://127.0.0.1:8000"


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def programs(language):
    seen = {}
    for page in PAGES:
        for i, block in enumerate(blocks(page, language)):
            seen.setdefault(block, f"{page}-{i}")
    return [pytest.param(block, id=name) for block, name in seen.items()]


def run(argv):
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, env=environment(NO_PROXY="127.0.0.1")
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("block", programs("python"))
def test_python_examples_run(block, live_server):
    assert ADDRESS in block
    code = block.replace(ADDRESS, live_server.base_url)
    out = run([sys.executable, "-W", "error::DeprecationWarning", "-c", code])
    if "json_schema" in block:
        assert out == "['city', 'people']\n"
    elif "tool_choice" in block:
        assert out == "weather\n"
    else:
        assert out.strip()
    if "include_usage" in block:
        assert re.search(r"\n\d+ tokens\n$", out)


@pytest.mark.parametrize("block", programs("sh"))
def test_curl_examples_run(block, live_server):
    for command in re.split(r"^(?=curl )", block, flags=re.MULTILINE):
        if not command.strip():
            continue
        argv = shlex.split(command.replace(ADDRESS, live_server.base_url))
        assert argv[0] == "curl"
        answer = json.loads(run([argv[0], "-sS", "--fail-with-body", *argv[1:]]))
        assert answer.keys() & {"choices", "tokens", "data", "status"}


def commands():
    lines = [line for page in PAGES for block in blocks(page, "console") for line in block.splitlines()]
    lines += [
        c for page in PAGES for c in re.findall(r"`(gangpao (?:serve|chat)[^`]*)`", (ROOT / page).read_text("utf-8"))
    ]
    return sorted({line for line in lines if line.startswith("gangpao ")})


@pytest.mark.parametrize("line", commands())
def test_commands_are_understood(line, capsys):
    words = shlex.split(line)[1:]
    if "--" in words:
        words = words[: words.index("--")]
    assert cli.main([words[0], "--help"]) == 0
    known = capsys.readouterr().out
    for word in words[1:]:
        if word.startswith("-"):
            assert re.search(rf"(^|\s|,){re.escape(word)}[\s,]", known), f"{word} of `{line}`"


def test_both_languages_have_the_same_sections_and_endpoints():
    english, chinese = ((ROOT / page).read_text(encoding="utf-8") for page in PAGES[2:])
    assert english.count("\n## ") == chinese.count("\n## ")
    for pattern in (r"`(?:GET|POST) (/[^`]*)`", r"^\| (\d{3}[^|]*) \|", r"(--[a-z-]+)"):
        mine, theirs = (
            {re.sub(r"[,、 ]", "", w) for w in re.findall(pattern, t, flags=re.MULTILINE)} for t in (english, chinese)
        )
        assert mine == theirs


def test_every_endpoint_of_the_table_exists(live_server):
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"`(GET|POST) (/[^`]+)`(?:, `(/[^`]+)`)?(?:, `(/[^`]+)`)?", text)
    assert len(rows) > 9
    with httpx2.Client(base_url=live_server.base_url, trust_env=False) as client:
        for method, *paths in rows:
            for path in filter(None, paths):
                answer = client.request(method, path, json={"nothing": 1} if method == "POST" else None)
                assert answer.status_code in (200, 400), f"{method} {path}: {answer.text}"
