"""A line from made-up text to a file that a server answers with; the page of it; the drills that it must survive."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest

from gangpao import catalog, cli
from gangpao.config import to_toml
from gangpao.forge import status
from gangpao.forge.report.blocks import blocks, read_line
from gangpao.forge.report.words import names
from tests.forge import full_disk
from tests.forge.small import CONFIGS, small_line
from tests.forge.test_tutorial import PAGES, answers_a_phone, commands

STAGES = ["data", "train", "tune-sft", "export", "check"]
KILLS = 30
DONE_AGAIN = ("sandbox", "plan", "train", "tune-sft", "tune-preference", "compress", "export")


def write(folder, table):
    path = folder / "line.toml"
    path.write_text(to_toml(table), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forge")
    assert cli.main(["forge", str(write(folder, small_line())), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_every_stage_is_done_and_says_what_came(run):
    found = status.standings(run)[1]
    assert [(one.name, one.state) for one in found] == [(name, "done") for name in STAGES]
    assert all(one.said and one.seconds > 0 for one in found)


def test_the_tutorial_in_miniature(run, capsys):
    """Every command of docs/own-model.md, with the small line in the place of its own."""
    here = {"configs/forge-quick.toml": run.parent / "line.toml", "runs/quick": run}
    here["runs/quick/export/quick.gguf"] = run / "export" / "small.gguf"
    verbs = []
    for _, *words in commands(PAGES[0]):
        words = [str(here.get(word, word)) for word in words]
        verbs.append(words[0])
        if words[0] == "serve":
            answers_a_phone(["gangpao", *words], run.parent, run.parent / "config")
        else:
            assert cli.main(words) == 0, words
            assert capsys.readouterr().out.strip(), words
    assert verbs == ["forge", "forge", "report", "report", "run", "serve"]


def test_the_server_answers_as_the_engine_does(run):
    checked = json.loads((run / "state" / "check.json").read_text(encoding="utf-8"))["facts"]["checked"]
    assert checked["asked"] == 12  # two prompts, as text and as question, whole, streamed and at once
    assert checked["differing"] == []


def test_the_same_call_does_nothing_and_leaves_the_file(run, capsys):
    file = run / "export" / "small.gguf"
    before = file.stat().st_mtime_ns, file.read_bytes()
    assert cli.main(["forge", str(run.parent / "line.toml"), "--out", str(run), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err.count("nothing changed") == len(STAGES) - 1
    assert sorted(json.loads(said.out)) == sorted(STAGES)
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before


def test_commands_are_those_that_a_person_types(run):
    for name in ("data", "train", "tune-sft", "export", "check"):
        for command in json.loads((run / "state" / f"{name}.json").read_text(encoding="utf-8"))["commands"]:
            assert command.startswith("gangpao ")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_has_every_figure_of_the_stages(run, language, capsys):
    assert cli.main(["report", str(run), "--lang", language]) == 0
    page, text = (run / f"report.{language}.{kind}" for kind in ("html", "md"))
    assert capsys.readouterr().out.split() == [str(page), str(text)]
    markdown = text.read_text(encoding="utf-8")
    heldout = json.loads((run / "state" / "train.json").read_text(encoding="utf-8"))["facts"]["trained"]["heldout"]
    assert f"{heldout['heldout_bpb']:.4f}" in markdown
    assert 'src="data:image/png;base64,' in page.read_text(encoding="utf-8")
    assert (run / "report" / f"curves.{language}.png").is_file()


def test_both_languages_have_the_same_blocks(run):
    line = read_line(run)
    english, chinese = blocks(line, "en"), blocks(line, "zh")
    assert [type(one) for one in english] == [type(one) for one in chinese]
    assert all(en and zh for en, zh in names().values())


def test_a_folder_without_a_line_is_said(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "no line was begun here" in capsys.readouterr().err
    assert cli.main(["forge", "status", str(tmp_path)]) == 2


def test_slurm_jobs_wait_for_one_another(tmp_path, capsys):
    table = small_line()
    table["train"]["slurm"] = ["--gres=gpu:1"]
    assert cli.main(["forge", "slurm", str(write(tmp_path, table)), "--out", str(tmp_path / "run")]) == 0
    script = capsys.readouterr().out
    jobs = [line for line in script.splitlines() if line.startswith("job=")]
    assert len(jobs) == len(STAGES)
    assert "--dependency" not in jobs[0]
    assert all('--dependency="afterok:${job%%;*}"' in job for job in jobs[1:])
    assert "--gres=gpu:1" in jobs[1]
    assert "--until train" in jobs[1]
    # A federation of clusters says "NUMBER;CLUSTER" for a job.
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text('#!/bin/sh\necho "$@" >> "$0.log"\necho "$(wc -l < "$0.log");here"\n', encoding="utf-8")
    sbatch.chmod(0o755)
    path = f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh"], input=script, text=True, check=True, capture_output=True, env={**os.environ, "PATH": path})
    asked = sbatch.with_name("sbatch.log").read_text(encoding="utf-8").splitlines()
    assert [f"--dependency=afterok:{number} " in line for number, line in enumerate(asked)] == [
        False,
        True,
        True,
        True,
        True,
    ]


def test_the_shipped_line_is_read():
    from gangpao.forge.config import load_forge_config

    config = load_forge_config(CONFIGS / "forge-quick.toml")
    assert config.stages() == [
        "data", "sandbox", "plan", "train", "tune-sft", "tune-preference", "compress", "evaluate", "export", "check",
    ]  # fmt: skip


_SERVED = """
import sys
from gangpao.commands.watch.child import served
with served(sys.argv[1]) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_the_server_of_a_check_ends_with_the_check_that_was_killed():
    words = [sys.executable, "-P", "-c", _SERVED, str(catalog.BUNDLED / catalog.entry("gangpao-nano").file)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        url = urlsplit(process.stdout.readline().strip())
        socket.create_connection((url.hostname, url.port)).close()
        process.kill()
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            socket.create_connection((url.hostname, url.port)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.1)
    pytest.fail(f"the server at {url.geturl()} is still there")


@pytest.mark.slow
def test_killed_at_any_moment_the_file_has_the_same_bytes(tmp_path):
    line = write(tmp_path, small_line(whole=True))
    command = [
        sys.executable,
        "-P",
        "-c",
        "import sys; from gangpao.cli import main; sys.exit(main())",
        "forge",
        str(line),
        "--out",
    ]

    def forged(out):
        return subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    begun = time.monotonic()
    with forged(tmp_path / "calm") as calm:
        said = calm.communicate()[1]
    assert calm.returncode == 0, said
    usual = time.monotonic() - begun
    draw = random.Random(0)
    kills = 0
    while True:
        with forged(tmp_path / "killed") as process:
            try:
                said = process.communicate(timeout=draw.uniform(0.1, 0.3 * usual) if kills < KILLS else None)[1]
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                kills += 1
                continue
        assert process.returncode == 0, said
        if kills >= KILLS:
            break
        for name in DONE_AGAIN:  # it was done before all kills: begin again
            (tmp_path / "killed" / "state" / f"{name}.json").unlink()
            shutil.rmtree(tmp_path / "killed" / name)
    made = [(tmp_path / name / "export" / "small.gguf").read_bytes() for name in ("calm", "killed")]
    assert made[0] == made[1]


@pytest.mark.slow
@pytest.mark.skipif(not full_disk.can_mount(), reason="a disk of its own needs user namespaces of Linux")
def test_a_disk_that_is_full_at_every_stage_stops_the_line_and_loses_nothing(tmp_path):
    """A quarter of an hour on two cores: each stage with nothing left, little, and more, then with room."""
    line = write(tmp_path, small_line(whole=True))
    assert cli.main(["forge", str(line), "--out", str(tmp_path / "calm")]) == 0
    (tmp_path / "disk").mkdir()
    told = full_disk.drill(line, tmp_path / "disk", tmp_path / "small.gguf")
    print("\n".join(f"{stage}, {left:,} bytes left: {code} {said[:200]}" for stage, left, code, said in told))
    stages = list(dict.fromkeys(stage for stage, *_ in told))
    assert stages == [one.name for one in status.standings(tmp_path / "calm")[1]]
    for stage in stages:
        codes = [code for one, _, code, _ in told if one == stage]
        assert codes[0] == 2
        assert codes[-1] == 0
    assert all("Traceback" not in said for *_, said in told)
    assert all("full" in said or "No space left" in said for *_, code, said in told if code)
    assert (tmp_path / "small.gguf").read_bytes() == (tmp_path / "calm" / "export" / "small.gguf").read_bytes()
