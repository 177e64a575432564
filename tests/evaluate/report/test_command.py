"""What is typed: `gangpao eval report` and `gangpao eval compare`."""

import json
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from gangpao.evaluate.report import command
from tests.evaluate.report.makers import TASKS, a_run, copies


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    a_run(folder / "a", "smollm2-135m", 5, TASKS[:2], count=40)
    a_run(folder / "b", "large", 6, TASKS[:2], count=40)
    return folder


@pytest.fixture
def folders(template, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    return [str(path) for path in copies(template, tmp_path)]


def typed(*words):
    """Run a command line; what it returns, or raises."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command()(command.report)
    app.command()(command.compare)
    return get_command(app).main([str(word) for word in words], standalone_mode=False)


def test_a_report_says_where_it_is(folders, tmp_path, capsys):
    typed("report", *folders, "--out", tmp_path / "out", "--lang", "zh", "--published", "MiniCPM-2B", "--items", "1")
    names = capsys.readouterr().out.split()
    assert names == [str(tmp_path / "out" / f"report.zh.{kind}") for kind in ("html", "md")]
    text = (tmp_path / "out" / "report.zh.md").read_text(encoding="utf-8")
    assert text.startswith("# 评测")
    assert "MiniCPM-2B" in text
    assert "Mistral-7B" not in text


def test_without_a_choice_the_model_s_own_row_stands_beside_it(folders, tmp_path):
    typed("report", folders[0], "--out", tmp_path / "out", "--items", "0")
    text = (tmp_path / "out" / "report.en.md").read_text(encoding="utf-8")
    for name in ("SmolLM2-135M-Instruct", "MiniCPM-2B", "Mistral-7B", "Llama2-13B"):
        assert f"{name}<br>published" in text


def test_no_row_at_all(folders, tmp_path):
    typed("report", folders[0], "--out", tmp_path / "out", "--published", "none")
    text = (tmp_path / "out" / "report.en.md").read_text(encoding="utf-8")
    assert [name for name in ("MiniCPM", "Instruct", "<br>published") if name in text] == []


def test_lm_eval_s_files_are_written_and_stand_in_a_report(folders, tmp_path, capsys):
    typed("report", folders[1], "--lm-eval", tmp_path / "theirs")
    results, *samples = capsys.readouterr().out.split()
    assert json.loads(Path(results).read_text())["results"]["hellaswag"]["acc_norm,none"] == pytest.approx(19 / 40)
    assert [path.rpartition("/")[2].rpartition("_")[0] for path in samples] == ["samples_hellaswag", "samples_arc_easy"]
    typed("compare", folders[1], results)
    printed = capsys.readouterr().out
    assert "item by item on 40" in printed
    assert printed.count("+0.00") == 2


@pytest.mark.parametrize(("lang", "word"), [("en", "cannot tell"), ("zh", "无法判断")])
def test_two_runs_are_compared_on_the_terminal(folders, capsys, lang, word):
    assert not typed("compare", *folders, "--lang", lang)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[1].startswith("HellaSwag; acc_norm")
    assert word in printed
    assert "<br>" not in printed


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ((), "--out: name a folder"),
        (("--out", "x", "--lang", "fr"), "--lang 'fr'"),
        (("--out", "x", "--published", "nobody"), "--published 'nobody'"),
        (("--out", "x", "--cost", "free"), "cost profile 'free'"),
    ],
)
def test_a_wrong_option_is_named(folders, words, match):
    with pytest.raises(ValueError, match=match):
        typed("report", folders[0], *words)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no results\.json there"):
        typed("compare", tmp_path, tmp_path)


def test_every_option_is_explained():
    app = typer.Typer()
    app.command("report")(command.report)
    app.command("compare")(command.compare)
    group = get_command(app)
    silent = [p.name for one in ("report", "compare") for p in group.commands[one].params if not (p.help or "").strip()]
    assert silent == []
