"""`gangpao eval perplexity` as it is typed."""

import json

import pytest
import typer
from typer.testing import CliRunner

from gangpao import cli
from gangpao.engine.generate import Engine
from gangpao.evaluate.perplexity.command import perplexity
from gangpao.evaluate.results import RunResult, read_run
from gangpao.formats.adapters import write_peft
from tests.engine.adapters import random_adapter

app = typer.Typer(rich_markup_mode=None, add_completion=False)
app.command()(perplexity)


def run(*args, fails=""):
    done = CliRunner().invoke(app, [str(a) for a in args])
    if fails:
        assert isinstance(done.exception, ValueError | SystemExit), done.output
        assert fails in str(done.exception) + done.output + done.stderr
        return ""
    assert done.exception is None, done.exception
    return done.stdout


def test_a_table_and_one_json_object(model_file, river, tmp_path):
    said = run("-m", model_file, river, "--context", 24, "--threads", 1, "--out", tmp_path / "out")
    lines = said.splitlines()
    result = RunResult.model_validate(json.loads(lines[-1]))
    assert lines[0] == "tiny on river: 118 tokens in 9 of 9 windows"
    assert lines[1] == "windows: strided, 24 ids, stride 12, BOS none"
    assert lines[2].split()[:2] == ["perplexity", f"{result.tasks[0].value:.6g}"]
    assert f"written: {tmp_path / 'out'}" in lines
    assert read_run(tmp_path / "out") == result
    assert (result.model.kind, len(result.model.sha256), result.model.architecture) == ("gguf", 64, "llama")


def test_saved_log_probabilities_stand_for_text_and_base(model_file, river, tmp_path):
    saved = tmp_path / "x.kld"
    run("-m", model_file, river, "--context", 16, "--llama-cpp", "--save", saved)
    alone = json.loads(run("-m", model_file, "--against", saved).splitlines()[-1])
    beside = json.loads(run("-m", model_file, river, "--against", saved, "--context", 16).splitlines()[-1])
    model = json.loads(
        run("-m", model_file, river, "--context", 16, "--llama-cpp", "--against", model_file).splitlines()[-1]
    )
    for found in (alone, beside, model):
        metrics = {task["metric"]: task["value"] for task in found["tasks"]}
        assert abs(metrics["kl_divergence"]) < 1e-4
        assert metrics["same_top"] == 1.0


def test_without_options_a_model_s_own_limit(model_file, river):
    said = run("-m", model_file, river, river, "--threads", 1)
    assert said.splitlines()[1] == "windows: strided, 512 ids, stride 256, BOS none"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "no TEXT"),
        (["TEXT", "--llama-cpp", "--stride", "3"], "--llama-cpp has no stride"),
        (["TEXT", "--context", "8", "--stride", "8"], "stride: 8; give 1 to 7"),
        (["--against", "missing.kld"], "missing.kld: there is no such file of log-probabilities"),
        (["--against", "missing.kld", "--stride", "3"], "--stride: the windows of a saved file"),
        (["TEXT", "--cost", "nobody"], "cost profile 'nobody'"),
    ],
)
def test_mistakes_are_answered(model_file, river, options, says):
    run("-m", model_file, *[river if option == "TEXT" else option for option in options], fails=says)


def test_it_is_a_command_of_gangpao_eval(model_file, river, capsys):
    assert cli.main(["eval", "perplexity", "-m", str(model_file), str(river), "--context", "24"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["suite"] == "perplexity"


def test_a_server_is_refused_with_what_to_give_instead(river):
    run("-m", "http://127.0.0.1:1/v1", river, fails="perplexity takes no server")


def test_an_adapter_is_measured_beside_its_base(model_file, river, tmp_path):
    """Its own probabilities, how far they are from the base's, and at scale 0 those of the base to the bit."""
    engine = Engine.load(model_file, context=512, num_threads=1)
    write_peft(tmp_path / "a", random_adapter(engine.model.config, 3))
    words = ("-m", model_file, river, "--context", 24, "--threads", 1, "--against", model_file, "--out")

    def values(name, *adapter):
        found = json.loads(run(*words, tmp_path / name, *adapter).splitlines()[-1])
        return {task["metric"]: task["value"] for task in found["tasks"]}, found["settings"]

    base, plain = values("base")
    tuned, told = values("tuned", "--adapter", tmp_path / "a")
    nothing, _ = values("nothing", "--adapter", f"{tmp_path / 'a'}:0")
    assert nothing == base
    assert abs(tuned["perplexity"] / base["perplexity"] - 1) > 0.01
    assert tuned["kl_divergence"] > 0.01 > abs(base["kl_divergence"])
    assert [one["scale"] for one in told["adapters"].values()] == [1.0]
    assert "adapters" not in plain
    run("-m", model_file, river, "--adapter", f"{tmp_path / 'a'}:0,5", fails="is no scale")
