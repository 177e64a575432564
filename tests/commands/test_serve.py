"""`gangpao serve` as a process: what it prints, how it ends, what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

from gangpao import cli
from gangpao.commands import serve


class Process:
    """The command in a process of its own; leave it with a signal."""

    def __init__(self, *args):
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gangpao.cli", "serve", "--port", "0", "--threads", "1", *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.first = self.process.stdout.readline()
        found = re.search(r"(https?://\S+?:\d+) ", self.first)
        assert found, self.first + self.process.stderr.read()
        self.url = found[1]
        self.ready = self.process.stdout.readline()

    def end(self, *signals):
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.3)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_answers_end_and_exits_with_0(tiny_path, number):
    server = Process("-m", str(tiny_path), "--batch", "2")
    assert "models: tiny; loading tiny, 368 kB" in server.first
    assert server.ready.startswith("ready: tiny, context 512, up to ")
    assert server.ready.count("2 answers at once") == 1
    answer = {}

    def ask():
        body = {
            "prompt": "x",
            "max_tokens": 400,
            "n": 2,
            "logit_bias": {"256": -100, "258": -100},
            "surprise\n\x1b[31m": 1,
        }
        answer["got"] = httpx2.post(f"{server.url}/v1/completions", json=body, timeout=30, trust_env=False)

    thread = threading.Thread(target=ask)
    thread.start()
    while (
        'requests_running{model_name="tiny",engine="0"} 2'
        not in httpx2.get(f"{server.url}/metrics", trust_env=False).text
    ):
        time.sleep(0.01)
    code, err = server.end(number)
    thread.join()
    assert code == 0, err
    assert answer["got"].json()["usage"]["completion_tokens"] == 800
    assert "stopping" in err
    assert "\x1b" not in err
    assert "Traceback" not in err


def test_a_second_signal_ends_at_once(tiny_path):
    server = Process("-m", str(tiny_path))
    body = {"prompt": "x", "max_tokens": 500, "n": 16, "logit_bias": {"256": -100, "258": -100}, "stream": True}
    with (
        httpx2.Client(timeout=30, trust_env=False) as client,
        client.stream("POST", f"{server.url}/v1/completions", json=body) as response,
    ):
        assert response.status_code == 200
        os.kill(server.process.pid, signal.SIGINT)
        os.kill(server.process.pid, signal.SIGTERM)
        code = server.process.wait(10)
    server.process.communicate()
    assert code in (130, 143)


def test_keys_from_a_file_and_from_the_line(tiny_path, tmp_path, capsys):
    keys = tmp_path / "keys"
    keys.write_text("one\n\n two \n")
    server = Process("-m", str(tiny_path), "--api-key-file", str(keys), "--api-key", "three")
    try:
        assert "3 API keys" in server.first
        for key, status in (("one", 200), ("two", 200), ("three", 200), ("four", 401)):
            headers = {"authorization": f"Bearer {key}"}
            assert httpx2.get(f"{server.url}/v1/models", headers=headers, trust_env=False).status_code == status
    finally:
        assert server.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--host", "0.0.0.0"], "needs a key"), (["--api-key", "a b"], "one word"), (["--api-key", ""], "one word"),
        (["--tls-cert", "x"], "belong together"), (["-m", "no-such-model"], "no such model"), (["--batch", "0"], "batch"),
        (["--api-key-file", "/nowhere/k"], "/nowhere/k"), (["--", "--extra"], "for --engine vllm only"),
            (["no-such-model"], "no such model"), (["--context", "1"], "context"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_loaded(capsys, args, words, tiny_path):
    assert cli.main(["serve", *([] if "-m" in args else ["-m", str(tiny_path)]), *args]) == 2
    assert words in capsys.readouterr().err


def test_a_model_that_the_engine_does_not_run_is_refused_before_the_start(tiny_path, tmp_path, capsys):
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_path.read_bytes().replace(b"llama", b"gemma"))
    assert cli.main(["serve", "-m", str(tiny_path), "-m", str(other)]) == 2
    assert "other.gguf: architecture 'gemma' is not supported; this engine runs" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "chat"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("minicpm3-4b", "our engine does not run this model"),
        ("minicpm-2b-sft-bf16", "`-m minicpm-2b-sft-bf16` exports it on first use"),
    ],
)
def test_a_catalog_model_that_the_engine_does_not_run_is_not_pulled(
    tmp_path, monkeypatch, capsys, command, name, words
):
    monkeypatch.setenv("GANGPAO_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "gangpao").mkdir()
    (tmp_path / "gangpao" / "catalog.toml").write_text("[models.minicpm3-4b]\nengine = false\n")
    assert cli.main([command, "-m", name]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {name}: ")
    assert words in err
    assert not list(tmp_path.rglob("*.gguf*"))


def ends(*args):
    """The code and the errors of a command that ends by itself."""
    line = [sys.executable, "-P", "-m", "gangpao.cli", "serve", "--port", "0", *args]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert "ready" not in done.stdout
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_the_command_ends_where_its_first_model_cannot_be_loaded(tiny_path, tmp_path):
    path = tmp_path / "dumb.gguf"
    path.write_bytes(tiny_path.read_bytes().replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.nekots"))
    code, err = ends("-m", str(path))
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert "tokenizer.ggml.tokens" in err.splitlines()[-1]


def test_the_command_ends_where_memory_is_short(model_path):
    code, err = ends("-m", str(model_path("smollm2-135m")), "--memory", "0.1")
    assert code == 2
    assert re.search(
        r"\nerror: smollm2-135m needs \S+ MB of memory and 100 MB are free for it; take a smaller", "\n" + err
    )


def test_options_of_our_engine_mean_nothing_to_vllm(capsys):
    assert cli.main(["serve", "--engine", "vllm", "-m", "x", "--kv", "int8", "--batch", "4", "--phone"]) == 2
    assert "--batch, --kv, --phone: for our own engine only; vLLM's options come behind --" in capsys.readouterr().err


def test_a_line_for_each_request_and_nothing_of_what_was_asked(tiny_path):
    server = Process("-m", str(tiny_path), "--log-requests")
    with httpx2.Client(trust_env=False, timeout=30) as client:
        body = {"prompt": "secret", "max_tokens": 1}
        client.post(f"{server.url}/v1/completions", json=body, headers={"x-request-id": "mine"}).raise_for_status()
        client.get(f"{server.url}/nope%0aforged%1b[31m?q=secret")
    code, err = server.end(signal.SIGTERM)
    assert code == 0
    assert re.search(r" INFO POST /v1/completions 200, \d+\.\d{3} s \(mine\)\n", err)
    assert re.search(r" INFO GET /nope%0aforged%1b(\[|%5B)31m 404, 0\.\d{3} s", err)
    assert "secret" not in err


def test_two_files_of_one_name_are_refused(tiny_path, tmp_path, capsys):
    other = tmp_path / "tiny.gguf"
    other.write_bytes(tiny_path.read_bytes())
    assert cli.main(["serve", "-m", str(tiny_path), "-m", str(other)]) == 2
    assert "rename one" in capsys.readouterr().err


def test_the_description_is_openapi(tiny_server, wire):
    document = json.loads(wire.get(f"{tiny_server.base_url}/openapi.json").text)
    assert document["openapi"] == "3.1.0"
    assert {"/v1/chat/completions", "/v1/embeddings", "/health"} <= set(document["paths"])
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description"), name


def test_aliases_are_new_names_of_what_is_served():
    models = {"a": Path("a.gguf"), "b": Path("b.gguf")}
    assert serve.read_aliases(["x=b", "*", "y/z="], models) == {"x": "b", "*": "a", "y/z": "a"}
    assert serve.read_aliases(None, models) == {}
    for wrong in ("a=b", "=a", "x=c", ""):
        with pytest.raises(ValueError, match=f"--alias {wrong}"):
            serve.read_aliases([wrong], models)
    with pytest.raises(ValueError, match="a new name"):
        serve.read_aliases(["x=a", "x=b"], models)
