"""The command line as a whole: help without imports, exit codes, and `run` in a pipe, over the fake model."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import typer

from gangpao import cli
from tests.child import ROOT, environment

DRIVER = ROOT / "tests" / "commands" / "fake_cli.py"
FIELDS = {
    "text", "model", "finish_reason", "prompt_tokens", "completion_tokens", "ttft_s", "prefill_tps", "decode_tps",
    "yuan", "seed", "drafted", "accepted",
}  # fmt: skip


def gangpao(*args, stdin=None, replies=("hello",), program=DRIVER, **kw):
    env = environment(FAKE_REPLIES=json.dumps(replies))
    return subprocess.run(
        [sys.executable, str(program), *args], input=stdin, capture_output=True, env=env, timeout=60, **kw
    )


def test_help_is_fast_and_imports_no_command():
    code = (
        "import sys; from gangpao import cli; code = cli.main(['--help']);"
        "heavy = {'numpy', 'pydantic', 'rich', 'jinja2', 'tokenizers', 'torch', 'gangpao.engine', 'gangpao.serve'};"
        "print(sorted(heavy & set(sys.modules))); sys.exit(code)"
    )
    times = []
    for _ in range(5):
        start = time.perf_counter()
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
        times.append(time.perf_counter() - start)
        assert out.returncode == 0
        assert out.stdout.endswith("[]\n")
    assert all(name in out.stdout for name in cli.COMMANDS)
    assert min(times) < 0.5


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself_in_the_words_of_the_table(name, capsys):
    assert cli.main([name, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert cli.COMMANDS[name][1] in out
    function = getattr(
        __import__(cli.COMMANDS[name][0].split(":")[0], fromlist=["x"]), cli.COMMANDS[name][0].split(":")[1]
    )
    if isinstance(function, typer.Typer):  # a group of commands
        function = function.registered_callback.callback
    assert function.__doc__.splitlines()[0] == cli.COMMANDS[name][1]


@pytest.mark.parametrize(("missing", "code"), [("torch", 2), ("gangpao_surely_absent", None)])
def test_a_missing_lab_package_is_said_how_to_get(missing, code, monkeypatch, capsys):
    def absent(name):
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    monkeypatch.setattr(cli.importlib, "import_module", absent)
    if code is None:
        with pytest.raises(ModuleNotFoundError):
            cli.main(["export", "a", "b"])
        return
    assert cli.main(["export", "a", "b"]) == code
    assert "pip install 'gangpao[lab]'" in capsys.readouterr().err


def test_version_and_bare_command(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"gangpao \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert cli.main([]) == 0
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nope"], "No such command 'nope'"),
        (["--nope"], "No such option"),
        (["run", "--temperature", "9", "hi"], "--temperature"),
        (["run", "--temperature", "nan", "hi"], "--temperature"),
        (["run", "--top-k", "x", "hi"], "--top-k"),
        (["run", "--max-tokens", "0", "hi"], "--max-tokens"),
        (["run", "--kv", "f8", "hi"], "--kv"),
        (["run", "--stop", "", "hi"], "a stop string must have"),
        (["run", "--logit-bias", "x", "hi"], "write ID=BIAS"),
        (["run", ""], "the prompt is empty"),
        (["run", "-m", "/no/such/model.gguf", "hi"], "/no/such/model.gguf"),
        (["run", "-m", "no-such-model", "hi"], "no-such-model"),
        (["run", "hi", "--cost-profile", "no-such-machine"], "no-such-machine"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(args, message, capsys):
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: .*\n", err)
    assert message in err


@pytest.mark.parametrize("name", ["train", "sandbox", "data", "model"])
def test_a_bare_group_prints_its_help(name, capsys):
    assert cli.main([name]) == 0
    out, err = capsys.readouterr()
    assert f"Usage: gangpao {name}" in out
    assert "Commands:" in out
    assert err == ""
    assert cli.main([name, "-h"]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lst"], "No such command 'lst'. Did you mean list or cost?"),
        (["srve"], "Did you mean serve"),
        (["ls"], "Here it is: gangpao list."),
        (["stop", "x"], "--idle-unload"),
        (["sandbox", "plann"], "Did you mean 'plan'?"),
        (["run", "-p", "hi"], 'gangpao run NAME "prompt"'),
        (["run", "-hf", "a/b", "hi"], "hf.co/owner/repo:Q4_K_M"),
        (["run", "--n-predict=4", "hi"], "Here it is: --max-tokens"),
        (["run", "--temprature", "1"], "--temperature"),
    ],
)
def test_words_of_other_tools_and_slips_are_answered_with_ours(args, message, capsys):
    assert cli.main(args) == 2
    assert message in capsys.readouterr().err


def test_what_is_said_to_be_typed_here_exists():
    said = [text for table in (cli.ELSEWHERE, cli.ELSEWHERE_OPTIONS) for text in table.values()]
    commands = {word for text in said for word in re.findall(r"gangpao ([a-z]+)", text)}
    assert commands <= set(cli.COMMANDS)
    assert not set(cli.ELSEWHERE) & set(cli.COMMANDS)
    options = {word for text in said for word in re.findall(r"--[a-z-]+", text)} - {"--version", "--help"}
    helps = "".join(gangpao(name, "--help").stdout.decode() for name in ("run", "serve"))
    assert {option for option in options if option not in helps} == set()


@pytest.mark.parametrize(
    ("command", "closed"),
    [("run hi", ">&-"), ("run --json hi", "2>&-"), ("chat", "<&-"), ("list", ">&- 2>&- <&-")],
)
def test_closed_streams_are_no_bug(command, closed):
    env = environment(FAKE_REPLIES='["hello"]')
    done = subprocess.run(
        ["sh", "-c", f'"$1" "$2" {command} {closed}', "sh", sys.executable, str(DRIVER)],
        capture_output=True, env=env, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    if closed == "<&-":
        assert done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "utf-8"])
def test_json_says_the_same_in_every_encoding(encoding):
    env = environment(FAKE_REPLIES='["山 🏔️ é"]', PYTHONIOENCODING=encoding)
    out = subprocess.run([sys.executable, str(DRIVER), "run", "--json", "hi"], capture_output=True, env=env, timeout=60)
    assert json.loads(out.stdout.decode(encoding))["text"] == "山 🏔️ é"


def test_run_prints_the_answer_only():
    out = gangpao("run", "hi", replies=["山东 🏔️ ok"])
    assert (out.returncode, out.stdout.decode(), out.stderr) == (0, "山东 🏔️ ok\n", b"")


def test_run_json_is_one_object():
    out = gangpao("run", "--json", "--seed", "7", "-m", "some", "hi", replies=["你好"])
    assert out.returncode == 0
    answer = json.loads(out.stdout)
    assert out.stdout.count(b"\n") == 1
    assert set(answer) == FIELDS
    assert answer["text"] == "你好"
    assert answer["model"] == "some"
    assert answer["seed"] == 7
    assert answer["finish_reason"] == "stop"
    assert answer["completion_tokens"] == 6
    assert answer["yuan"] > 0


def test_run_json_logprobs_and_limits():
    out = gangpao("run", "--json", "--logprobs", "2", "--max-tokens", "3", "hi", replies=["abcdef"])
    answer = json.loads(out.stdout)
    assert answer["text"] == "abc"
    assert answer["finish_reason"] == "length"
    assert [t["token"] for t in answer["logprobs"]] == ["a", "b", "c"]
    assert all(len(t["top"]) == 2 and t["logprob"] <= 0 for t in answer["logprobs"])


@pytest.mark.parametrize("args", [["run"], ["run", "-"]])
def test_run_reads_a_piped_prompt(args):
    out = gangpao(*args, "--stop", "END", stdin="你好".encode(), replies=["yes END no"])
    assert out.stdout == b"yes \n"


@pytest.mark.parametrize(("stdin", "message"), [(b"\xff\xfe bad", b"not UTF-8"), (b"", b"empty"), (b"  \n", b"empty")])
def test_run_refuses_what_is_no_text(stdin, message):
    out = gangpao("run", stdin=stdin)
    assert out.returncode == 2
    assert message in out.stderr
    assert b"Traceback" not in out.stderr


def test_run_raw_uses_no_template():
    assert json.loads(gangpao("run", "--json", "--raw", "--max-tokens", "1", "hello").stdout)["prompt_tokens"] == 5
    assert json.loads(gangpao("run", "--json", "hello").stdout)["prompt_tokens"] == 9


def test_a_closed_pipe_is_quiet():
    env = environment(FAKE_REPLIES=json.dumps(["x" * 400]), FAKE_DELAY="0.01")
    child = subprocess.Popen(
        [sys.executable, str(DRIVER), "run", "hi"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )
    child.stdout.read(3)
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait(timeout=20) == 141
    child.stderr.close()


def test_ctrl_c_is_130_and_keeps_what_was_printed():
    env = environment(FAKE_REPLIES=json.dumps(["y" * 400]), FAKE_DELAY="0.01")
    child = subprocess.Popen(
        [sys.executable, str(DRIVER), "run", "hi"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )
    start = child.stdout.read(3)
    child.send_signal(signal.SIGINT)
    rest, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert set(start + rest) <= set(b"y\n")
    assert err == b"stopped\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    from gangpao.commands import run

    def broken(_):
        raise AssertionError("ours")

    monkeypatch.setattr(run, "read_prompt", broken)
    with pytest.raises(AssertionError, match="ours"):
        cli.main(["run", "hi"])


def test_old_terminals_get_question_marks():
    out = gangpao("run", "hi", replies=["a山"], program=DRIVER)
    assert out.returncode == 0
    env = environment(FAKE_REPLIES='["a山"]', PYTHONIOENCODING="ascii")
    out = subprocess.run([sys.executable, str(DRIVER), "run", "hi"], capture_output=True, env=env, timeout=60)
    assert (out.returncode, out.stdout) == (0, b"a?\n")
