"""The commands, through the command line library, on a corpus that is built once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gangpao.data.build import build, load_data_config, open_built
from gangpao.data.command import app, table
from gangpao.text.tokenizer import Tokenizer

TINY = Path(__file__).resolve().parents[2] / "configs" / "data-tiny.toml"
SMALL = ["sources.stories.documents=200", "sources.sums.documents=100", "sources.talks.documents=100"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    path = tmp_path_factory.mktemp("show") / "out"
    build(load_data_config(TINY, [*SMALL, "tokenizer.train.vocab_size=500"]), path)
    return path


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.stdout if not code else done.exception


def test_build_prints_what_stats_prints(out):
    options = [word for change in [*SMALL, "tokenizer.train.vocab_size=500"] for word in ("--set", change)]
    built = run("build", TINY, "--out", out, *options)
    assert built == run("stats", out, "--verify")
    for word in ("stories", "talks (chat)", "stage decay", "40.00%", "bytes/token"):
        assert word in built
    facts = json.loads(run("stats", out, "--json"))
    assert facts == json.loads(run("build", TINY, "-o", out, "--json", *options))
    assert facts["stages"]["decay"]["talks"]["share"] == 0.4
    assert facts["fingerprint"] == open_built(out).fingerprint


def test_show_document_and_row(out):
    found = json.loads(run("show", out, "stories", "-n", 3, "--json"))
    shards = open_built(out).train["stories"]
    assert found["ids"] == shards.document(3).tolist()
    assert run("show", out, "stories", "-n", 3).strip() == found["text"]
    assert found["text"].startswith("<s>")
    assert found["text"].endswith("</s>")
    talk = run("show", out, "talks", "--heldout")
    assert talk.count("»") == talk.count("«") == talk.count("<|im_start|>assistant")
    assert "<|im_end|>«" in talk
    row = json.loads(run("show", out, "decay", "--row", "-n", 2, "--seq-len", 100, "--json"))
    assert len(row["ids"]) == 100
    text = row["text"].split("\n", 1)[1].replace("\n--- border ---\n", "")
    assert text == Tokenizer.from_dir(open_built(out).tokenizer_dir).decode(row["ids"], keep_special=True)
    for arguments, said in (
        (("show", out, "nobody"), "there are stories, sums, talks"),
        (("show", out, "stories", "-n", 10**6), "the last is --number"),
        (("show", out, "nostage", "--row"), "it has stable, decay, sft"),
        (("stats", out / "nothing"), "gangpao data build"),
    ):
        assert said in str(run(*arguments, code=1))


def test_columns_line_up_with_chinese_in_them():
    assert table([["名", "12", "x"], ["abc", "3", "y"]]) == ["名   12  x", "abc   3  y"]


def test_plot(out, tmp_path):
    pytest.importorskip("matplotlib")
    run("stats", out, "--plot", tmp_path / "mix.png")
    data = (tmp_path / "mix.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


def test_a_missing_matplotlib_is_named(out, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in str(run("stats", out, "--plot", tmp_path / "mix.png", code=1))


def test_importing_the_room_loads_nothing_heavy():
    code = (
        "import sys, gangpao.data.command, gangpao.data.cleaning.cluster\n"
        "heavy = {'torch', 'pyarrow', 'matplotlib', 'zstandard', 'datatrove', 'huggingface_hub', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_without_a_command_there_is_help_and_no_error():
    assert "Usage" in run()
    assert "fetch" in run()


INTERRUPTED = """
import os, signal, sys
from gangpao import cli
from gangpao.data import build
build._POOL_BYTES = 0
build.machine.logical_cores = lambda: 2
if sys.argv[1] == "alone":
    build._Build._train_tokenizer = lambda *_: os.kill(os.getpid(), signal.SIGINT)
else:
    build.as_completed = lambda _: os.killpg(0, signal.SIGINT)
sys.exit(cli.main(["data", "build", sys.argv[2], "--out", sys.argv[3], *sys.argv[4:]]))
"""


@pytest.mark.parametrize("where", ["alone", "with workers"])
def test_ctrl_c_says_in_one_line_what_is_kept(tmp_path, where):
    out = tmp_path / "out"
    words = [word for change in SMALL for word in ("--set", change)]
    command = [sys.executable, "-c", INTERRUPTED, where, str(TINY), str(out), *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, start_new_session=True)
    assert done.returncode == 130, done.stderr
    last = f"stopped; the finished steps are kept in {out}, and the same command goes on from there"
    assert done.stderr.splitlines()[-1] == last
    assert "Traceback" not in done.stderr
    assert "stories" in run("build", TINY, "--out", out, *words)


def test_workers_do_not_run_the_command_again(tmp_path):
    """Some installers write a script that runs whenever it is imported, which is what a new worker would do."""
    script, ran = tmp_path / "gangpao", tmp_path / "ran"
    script.write_text(
        f"import sys\nwrite = open({str(ran)!r}, 'a', buffering=1).write\nwrite('main ')\n"
        "from gangpao.cli import main\nfrom gangpao.data import build\n"
        "build._POOL_BYTES, build.machine.logical_cores = 0, lambda: 2\nreal = build._Build._prepare_in_processes\n"
        "build._Build._prepare_in_processes = lambda *args: (write('workers'), real(*args))\nsys.exit(main())\n"
    )
    words = [word for change in SMALL for word in ("--set", change)]
    command = [sys.executable, str(script), "data", "build", str(TINY), "--out", str(tmp_path / "out"), *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert ran.read_text() == "main workers"


def test_a_folder_with_other_things_in_it_keeps_them(tmp_path):
    mine = [tmp_path / "out" / name / "keep.txt" for name in ("work/notes", "shards/mine", "tokenizer-x")]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    run("build", TINY, "--out", tmp_path / "out", *[word for change in SMALL for word in ("--set", change)])
    assert all(path.is_file() for path in mine)
