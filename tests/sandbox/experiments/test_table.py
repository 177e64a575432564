"""The table of experiments: one file and one row are a whole experiment, and every row is whole."""

import importlib
import json
import sys

import pytest
from pydantic import Field

from gangpao import cli
from gangpao.sandbox import command
from gangpao.sandbox.bilingual import Text, same
from gangpao.sandbox.experiments import EXPERIMENTS, Row
from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.config import config_type
from gangpao.sandbox.experiments.outcome import Outcome
from gangpao.sandbox.experiments.text.page import Words
from gangpao.sandbox.laws.verdict import BELOW_ZERO, Verdict
from gangpao.sandbox.trials.config import ExperimentTable, SandboxConfig
from gangpao.sandbox.trials.queue import write_config
from tests.sandbox.experiments.test_search import written


class ShorterConfig(ExperimentTable):
    """An invented experiment: is one row of tokens enough?"""

    tokens: tuple[int, ...] = Field(default=(256, 512))


def run(lab, submit):
    """The loss of the last less that of the first."""
    results = submit([lab.spec(tokens=n) for n in lab.config.table(ShorterConfig).tokens])
    return outcome_of(lab, results)


def outcome_of(lab, results):
    change = results[-1].bpb - results[0].bpb
    return Outcome(
        name="shorter",
        verdicts=[Verdict("helps", change, (change, change), BELOW_ZERO)],
        facts={"conditions": conditions(lab), "change": change, "bpb": [r.bpb for r in results]},
        results=results,
    )


def asked(verdict):
    return {"helps": Text("Does more help?", "更多是否有用？")}[verdict["asks"]]


def words(facts):
    change = f"{facts['change']:.4f}"
    return Words(
        title=Text("Fewer tokens", "更少的 token"),
        columns={"bpb": same("bpb")},
        rows=[{"bpb": bpb} for bpb in facts["bpb"]],
        said=Text(f"It changes by {change}.", f"相差 {change}。"),
        draw=lambda figure, language: figure.subplots().plot(facts["bpb"]),
    )


@pytest.fixture
def shorter(monkeypatch):
    """The experiment's file is this one; the rest is its row."""
    row = Row(__name__, "ShorterConfig", __name__, "Are fewer tokens enough?")
    monkeypatch.setitem(EXPERIMENTS, "shorter", row)
    monkeypatch.setattr(command.app, "registered_commands", list(command.app.registered_commands))
    command.add(command.app, "shorter", row)


def test_one_file_and_one_row_are_an_experiment(shorter, config, tmp_path, workers_here, monkeypatch, capsys):
    monkeypatch.setattr("gangpao.sandbox.trials.queue.ensure", written)
    whole = config_type().model_validate(
        {**config.model_dump(), "workers": 1, "shorter": {"tokens": [512, 1024, 2048]}}
    )
    file = write_config(whole, tmp_path).rename(tmp_path / "box.json")
    monkeypatch.setattr(
        "gangpao.sandbox.experiments.config.load_sandbox_config",
        lambda path, over: config_type().model_validate_json(path.read_text()),
    )
    assert cli.main(["sandbox", "--help"]) == 0
    assert "Are fewer tokens enough?" in capsys.readouterr().out
    box = tmp_path / "box"
    line = ["sandbox", "shorter", str(file), "--out", str(box)]
    assert cli.main([*line, "--estimate"]) == 0
    assert capsys.readouterr().out.startswith("shorter: 3 trials, 0 known; 3 to train")
    assert cli.main(line) == 0
    assert "Does more help?" in capsys.readouterr().out
    assert json.loads((box / "shorter" / "outcome.json").read_text())["trials"] == 3
    assert cli.main(["sandbox", "report", "--out", str(box), "--lang", "zh"]) == 0
    page = (box / "report.zh.md").read_text()
    assert "更少的 token" in page
    assert "更多是否有用？" in page


def test_a_configuration_says_what_is_wrong_with_an_invented_table(shorter):
    with pytest.raises(ValueError, match="shorter"):
        config_type().model_validate({"data": "x", "shorter": {"token": 3}})
    with pytest.raises(LookupError, match="no ShorterConfig"):
        SandboxConfig(data="x").table(ShorterConfig)


def test_every_row_is_whole():
    for name, row in EXPERIMENTS.items():
        module = row.load()
        assert issubclass(getattr(module, row.table), ExperimentTable), name
        assert callable(module.outcome_of if row.search else module.run), name
        assert type(getattr(config_type()(data="x"), name)) is getattr(module, row.table)
        text = importlib.import_module(row.text)
        assert callable(text.words), name
        assert callable(text.asked), name


def test_help_needs_no_torch(monkeypatch, capsys):
    for name in ("torch", "optuna", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["sandbox", "--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.split("Commands:")[1].splitlines() if line.strip()]
    assert listed[: len(EXPERIMENTS)] == list(EXPERIMENTS)
