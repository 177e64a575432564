"""A run or a Hugging Face folder as MODEL: exported on first use, run without torch, and what cannot be run says why."""

import json
import subprocess
import sys

import pytest

from gangpao import cli
from gangpao.commands import serve
from gangpao.commands.model import loading
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from tests.child import environment
from tests.deploy.test_gguf import hf_tokenizer
from tests.model.test_transformer import build

ASK = ["--json", "--temperature", "0", "--max-tokens", "3", "--raw", "hi"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that ended."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    model = build("llama").float()
    hf_tokenizer(weights.save(out / "export", model.config, weights.state(model)))
    (out / "checkpoints" / "step-00000012").mkdir(parents=True)
    (out / "run.json").write_text("{}")
    return out


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path / "home"))


def test_a_run_and_its_export_answer_and_are_exported_once(run, capsys):
    assert cli.main(["run", "-m", str(run / "export"), *ASK]) == 0
    first = capsys.readouterr()
    assert "a Hugging Face folder" in first.err
    assert "exporting it to the cache" in first.err
    assert cli.main(["run", "-m", str(run), *ASK]) == 0
    again = capsys.readouterr()
    assert again.err == ""
    assert json.loads(again.out)["text"] == json.loads(first.out)["text"]
    assert json.loads(again.out)["model"] == "tiny"
    assert list(serve.find_models([str(run)])[0]) == ["tiny"]


def test_a_folder_needs_no_separator_in_its_name(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    name, path = loading.find_model("tiny")
    assert name == "tiny"
    with GGUF.open(path) as file:
        assert "blk.0.attn_q.weight" in file.tensors


def without_torch(model):
    code = (
        "import sys\nfor name in ('torch', 'safetensors', 'transformers'): sys.modules[name] = None\n"
        f"from gangpao import cli\nsys.exit(cli.main(['run', '-m', {str(model)!r}, *{ASK!r}]))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)


def test_the_device_runs_what_is_exported_and_names_the_lab_for_what_is_not(run):
    refused = without_torch(run)
    assert refused.returncode == 2
    assert "pip install 'gangpao[lab]'" in refused.stderr
    assert "Traceback" not in refused.stderr
    loading.find_model(str(run))
    done = without_torch(run)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["completion_tokens"] >= 1


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("tiny/checkpoints/step-00000012", "a part of a run; what can be asked is its export: -m .*tiny"),
        ("tiny/export/model.safetensors", "weights without their configuration; give the folder: -m .*tiny/export"),
        ("", "a folder that is no model: a run has run.json"),
    ],
)
def test_other_folders_say_what_to_give(run, inside, message):
    with pytest.raises(ValueError, match=message):
        loading.find_model(str(run.parent / inside))


def test_an_unfinished_run_and_a_folder_of_files_say_what_to_do(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no export/ yet.*go on with `gangpao train CONFIG --out .*run`"):
        loading.find_model(str(tmp_path / "run"))
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ValueError, match=r"give one of them: -m .*b\.gguf"):
        loading.find_model(str(tmp_path))


def test_what_cannot_be_exported_says_why_and_what_may_serve_it(tmp_path):
    model = build("llama").float()
    weights.save(tmp_path / "m", model.config, weights.state(model))
    with pytest.raises(ValueError, match=r"cannot become .*tokenizer.*gangpao serve --engine vllm -m"):
        loading.find_model(str(tmp_path / "m"))
