"""The command line, in miniature: the quick sandbox from nothing to a plan and a page, as docs/sandbox.md tells it."""

import json
import tomllib
from pathlib import Path

import pytest

from gangpao import cli
from gangpao.sandbox import command
from gangpao.sandbox.experiments.config import load_sandbox_config
from gangpao.sandbox.experiments.text.page import page_of
from gangpao.sandbox.trials.queue import workers_of
from gangpao.train.config import load_train_config
from tests.train.conftest import CONFIGS, SMALL

QUICK = CONFIGS / "sandbox-quick.toml"
DOCS = CONFIGS.parent / "docs"


@pytest.fixture(scope="module")
def box(tmp_path_factory, data_dir):
    """The folder of a sandbox in which lr and scaling have run, and the options that made it small."""
    out = tmp_path_factory.mktemp("quick") / "sandbox"
    settings = [
        f'data_dir="{data_dir}"', f"data_set={json.dumps(SMALL)}", "heldout_tokens=2000", "common.tokens=8000",
        "lr.widths=[32, 48]", "scaling.seeds=[0]",
        "lr.rates=[0.005, 0.01, 0.02]", 'lr.rules=["minicpm"]', "common.batch_tokens=256", "seq_len=32",
        "scaling.sizes=[{width=16, layers=1}, {width=32, layers=1}, {width=48, layers=2}]", "scaling.tokens=[4096, 8192, 16384]",
    ]  # fmt: skip
    options = [word for setting in settings for word in ("--set", setting)]
    for name in ("lr", "scaling"):
        assert cli.main(["sandbox", name, str(QUICK), "--out", str(out), *options]) == 0
    return out, options


def test_trials_know_how_many_shared_the_machine(box):
    """Workers are pinned to cores of their own, and yuan and the speed of the machine follow from their number."""
    found = [json.loads(path.read_text())["workers"] for path in (box[0] / "trials").glob("*/result.json")]
    assert set(found) == {float(workers_of(load_sandbox_config(QUICK)))}


def test_every_experiment_leaves_a_table_a_plot_and_a_verdict(box):
    out, _ = box
    for name in ("lr", "scaling"):
        outcome = json.loads((out / name / "outcome.json").read_text())
        assert outcome["trials"] > 0
        assert outcome["seconds"] >= outcome["busy"] > 0
        for language in ("en", "zh"):
            assert page_of(outcome).words.said.of(language) in (out / name / f"report.{language}.md").read_text()
            assert (out / name / f"plot.{language}.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((out / "trials").iterdir())) >= 6 + 3 + 9


def test_the_same_command_again_trains_nothing(box, capsys):
    out, options = box
    before = {p: p.stat().st_mtime_ns for p in (out / "trials").rglob("*")}
    assert cli.main(["sandbox", "lr", str(QUICK), "--out", str(out), *options, "--lang", "zh"]) == 0
    assert {p: p.stat().st_mtime_ns for p in (out / "trials").rglob("*")} == before
    assert "学习率" in capsys.readouterr().out


def test_a_plan_that_training_takes(box, tmp_path, capsys):
    out, options = box
    target = tmp_path / "plan.toml"
    arguments = [
        "sandbox",
        "plan",
        str(QUICK),
        "--out",
        str(out),
        *options,
        "--budget",
        "2e11 flops",
        "--toml",
        str(target),
    ]
    code = cli.main([*arguments, "--json", "--force"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert json.loads(said.out.splitlines()[0])
    config = load_train_config(target)
    assert config.stages
    assert tomllib.loads(target.read_text())
    assert cli.main([*arguments[:-4], "--budget", "1e24 flops"]) == 2
    assert "sandbox scaling" in capsys.readouterr().err


def test_the_page_holds_everything_and_needs_no_network(box, capsys):
    out, _ = box
    assert cli.main(["sandbox", "report", "--out", str(out), "--lang", "zh"]) == 0
    page, text = (Path(line) for line in capsys.readouterr().out.split())
    body = page.read_text()
    assert body.count("<img") == 2
    assert "http" not in body.replace("http-equiv", "")
    assert "<script" not in body
    assert text.read_text().count("![") == 2


def test_the_check_passes_the_right_rule_and_not_the_wrong_one(tmp_path, capsys):
    small = ["--widths", "64,128,256", "--seeds", "1", "--out", str(tmp_path)]
    assert cli.main(["sandbox", "check", "minicpm", *small]) == 0
    assert cli.main(["sandbox", "check", "standard", *small]) == 1
    assert (tmp_path / "check-standard.png").stat().st_size > 1000
    capsys.readouterr()
    assert cli.main(["sandbox", "check", "magic"]) == 2
    assert "minicpm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lr", str(QUICK), "--out", "x", "--lang", "fr"], "en or zh"),
        (["check", "minicpm", "--widths", "64,a"], "whole numbers with commas"),
        (["report", "--out", "nowhere"], "no experiment has finished here yet"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sandbox", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_says_in_one_line_what_is_kept(monkeypatch, tmp_path, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_experiment", stop)
    assert cli.main(["sandbox", "lr", str(QUICK), "--out", str(tmp_path / "box")]) == 130
    kept = f"finished trials are kept in {tmp_path / 'box'}, and the same command goes on from there"
    assert capsys.readouterr().err == f"stopped; {kept}\n"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("sandbox-*.toml")), ids=lambda p: p.name)
def test_shipped_sandboxes_are_whole(path):
    config = load_sandbox_config(path)
    assert Path(config.data).is_file()


def test_the_documents_agree():
    """The two languages have the same commands, tables and headings, and name every experiment."""
    en, zh = ((DOCS / name).read_text(encoding="utf-8") for name in ("sandbox.md", "sandbox.zh.md"))
    for start in ("    ", "| `", "## "):
        count = [[line for line in text.splitlines() if line.startswith(start)] for text in (en, zh)]
        assert len(count[0]) == len(count[1]), start
    commands = [[line.strip() for line in text.splitlines() if line.startswith("    gangpao")] for text in (en, zh)]
    assert commands[0] == commands[1]
