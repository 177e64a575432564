"""serve --engine vllm against a stand-in process (fake_vllm.py). What vLLM computes cannot be tested without a GPU; this is
about everything around it: checks, the command line, readiness, the guard in front, streams, and how it ends."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import openai
import pytest

from gangpao.serve.http.access import Access, Listen
from gangpao.serve.http.errors import ApiError
from gangpao.serve.vllm import process, proxy
from tests.child import environment

STAND_IN = Path(__file__).with_name("fake_vllm.py")
RUN = """
import sys
from gangpao import cli
from gangpao.serve.vllm import process
process.STOP_S = 1.0
own = sys.argv[2].split()
command = ["serve", "--engine", "vllm", "-m", sys.argv[1], "--port", "0", "--allow-host", "front.example", *own]
sys.exit(cli.main([*command, "--", *sys.argv[3:]]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("hf") / "our-model")


def checkpoint(path, **config):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    (path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (path / "tokenizer.json").write_text("{}")
    return path


class Served:
    """Our command over the stand-in: its URL, what the stand-in saw, and what was printed."""

    def __init__(self, tmp_path, folder, *extra, mode="", keys=(), own=""):
        self.log = tmp_path / "seen.jsonl"
        program = tmp_path / "bin" / "vllm"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\n" + STAND_IN.read_text())
        program.chmod(0o755)
        env = environment(
            PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}", FAKE_VLLM=mode, FAKE_VLLM_LOG=str(self.log)
        )
        self.err = tmp_path / "err"
        with self.err.open("wb") as err:
            self.child = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    RUN,
                    str(folder),
                    " ".join([own, *(f"--api-key {key}" for key in keys)]),
                    *extra,
                ],
                stderr=err,
                env=env,
                start_new_session=True,
            )
        self.url = self.until(r"https?://[\d.:]+(?=/v1)")
        self.key = next(iter(keys), "")

    def printed(self):
        return self.err.read_text(errors="replace")

    def until(self, pattern, timeout=20.0):
        end = time.monotonic() + timeout
        while not (found := re.search(pattern, self.printed())):
            assert self.child.poll() is None or re.search(pattern, self.printed()), self.printed()
            assert time.monotonic() < end, self.printed()
            time.sleep(0.02)
        return found[0]

    def seen(self, name, timeout=5.0):
        """Everything the stand-in noted under a name, waited for."""
        end = time.monotonic() + timeout
        while True:
            rows = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
            if (found := [row[name] for row in rows if name in row]) or time.monotonic() > end:
                return found
            time.sleep(0.02)

    def get(self, path, **headers):
        return httpx2.get(self.url + path, headers=headers, trust_env=False)

    def wait(self, timeout=15.0):
        return self.child.wait(timeout)

    def close(self):
        if self.child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.terminate()
                self.child.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


@pytest.fixture
def start(tmp_path, folder):
    made = []

    def make(*extra, **options):
        made.append(Served(tmp_path, folder, *extra, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory, folder):
    """One that is ready, with two keys and options passed through, for the tests that only ask."""
    options = ["--tensor-parallel-size", "2", "-pp", "3", "--max-model-len=4096", "--gpu-memory-utilization", "0.8"]
    one = Served(tmp_path_factory.mktemp("served"), folder, *options, keys=("secret", "other"))
    one.until("vLLM is ready")
    yield one
    one.close()


def client(served, key=None):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key or served.key, max_retries=0)


# --- before anything is started


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: (p / "config.json").unlink(), "no readable config.json"),
        (lambda p: (p / "config.json").write_text("[" * 100_000), "no readable config.json"),
        (lambda p: (p / "config.json").write_text("{}"), "names no architectures"),
        (lambda p: (p / "config.json").write_text('{"architectures":["A"],"auto_map":{}}'), "auto_map"),
        (lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"), "can hold code"),
        (lambda p: (p / "tokenizer.json").unlink(), "needs the tokenizer"),
    ],
)
def test_what_is_not_a_checkpoint_is_refused(tmp_path, spoil, said):
    path = checkpoint(tmp_path / "m")
    assert process.check_folder(str(path)) == path
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "export").symlink_to(path)
    assert process.check_folder(str(tmp_path / "run")) == tmp_path / "run" / "export"
    spoil(path)
    with pytest.raises(ValueError, match=said):
        process.check_folder(str(path))


def test_other_things_than_folders(tmp_path):
    with pytest.raises(ValueError, match="not a GGUF file"):
        process.check_folder("model.gguf")
    with pytest.raises(ValueError, match="no such folder"):
        process.check_folder(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    "option", [*process.REFUSED, "--host=0.0.0.0", "--trust_remote_code", "--trust", "--api", "--conf", "--ud", "--ho"]
)
def test_options_that_decide_who_comes_in_are_refused(option):
    with pytest.raises(ValueError, match="after --:"):
        process.check_extra(["--dtype", "auto", option, "x"])
    process.check_extra(["--config-format", "hf", "-tp", "2", "--model-impl", "vllm", "--max-model-len", "9", "{}"])


def test_without_the_program_it_says_how_to_get_it(folder, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ValueError, match=r"pip install 'gangpao\[vllm\]' on a Linux machine with a GPU"):
        process.run(str(folder), Listen(port=0), Access())
    with pytest.raises(ValueError, match="needs a key"):
        process.run(str(folder), Listen(host="0.0.0.0", port=0), Access())


def test_the_command_line(tmp_path):
    argv = process.command("/bin/vllm", tmp_path / "m", 7, ["-tp", "2"])
    assert argv == [
        "/bin/vllm", "serve", str(tmp_path / "m"), "--host", "127.0.0.1", "--port", "7",
        "--served-model-name", "m", "--load-format", "safetensors", "-tp", "2",
    ]  # fmt: skip
    argv = process.command("v", tmp_path, 7, ["--served-model-name=x", "--load-format", "dummy"])
    assert argv[-3:] == ["--served-model-name=x", "--load-format", "dummy"]
    assert "safetensors" not in argv


# --- what runs


def test_the_child_gets_our_options_and_a_key_of_its_own(served, folder):
    (argv,) = served.seen("argv")
    port = argv[argv.index("--port") + 1]
    assert argv[:4] == ["serve", str(folder), "--host", "127.0.0.1"]
    assert argv[-7:] == [
        "--tensor-parallel-size",
        "2",
        "-pp",
        "3",
        "--max-model-len=4096",
        "--gpu-memory-utilization",
        "0.8",
    ]
    assert served.seen("offline") == ["1"]
    assert "secret" not in json.dumps(argv)
    # Whoever is on this machine cannot go around the guard.
    assert httpx2.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).status_code == 401
    assert "a stand-in" in served.printed()  # its output is ours


def test_the_openai_client_goes_through(served, folder):
    with client(served) as api:
        assert [m.id for m in api.models.list()] == [folder.name]
        messages = [{"role": "user", "content": "hi"}]
        done = api.chat.completions.create(model=folder.name, messages=messages)
        assert done.choices[0].message.content == "from vllm"
        stream = api.chat.completions.create(model=folder.name, messages=messages, max_tokens=5, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        assert text == "word0 word1 word2 word3 word4 "
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            api.chat.completions.create(model="other", messages=messages)
    with client(served, "other") as api:
        assert len(list(api.models.list())) == 1
    headers = served.seen("headers")[-1]
    assert headers["authorization"] not in ("Bearer secret", "Bearer other")
    assert headers["host"].startswith("127.0.0.1:")


def test_every_route_wants_a_key_but_health(served):
    for path in ("/v1/models", "/metrics", "/version", "/sleep", "/"):
        assert served.get(path).status_code == 401
    assert served.get("/health").json() == {"status": "ok"}
    assert served.get("/v1/models", Authorization="Bearer wrong").status_code == 401
    found = served.get("/metrics", Authorization="Bearer secret")
    assert found.text == "vllm:num_requests_running 0.0\n"
    assert found.headers["content-type"] == "text/plain; version=0.0.4"
    assert served.get("/v1/models", Host="evil.example").status_code == 403
    assert served.get("/health", Host="evil.example").status_code == 403
    assert served.get("/health", Host="front.example").status_code == 200


def test_tls_brings_its_authority_along(start, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    one = start(own="--tls", keys=("secret",))
    assert one.url.startswith("https://")
    one.until(rf"installs {one.url}/ca.crt trusts this server without a warning; compare first: SHA-256 [\dA-F:]+")
    one.until("vLLM is ready")
    # Before there is any trust, and without a key.
    found = httpx2.get(f"{one.url}/ca.crt", verify=False, trust_env=False)
    assert found.headers["content-type"] == "application/x-x509-ca-cert"
    context = ssl.create_default_context(cadata=found.text)
    assert httpx2.get(f"{one.url}/health", verify=context, trust_env=False).json() == {"status": "ok"}


@pytest.mark.parametrize(
    "path", ["/sleep", "/v1/../sleep", "/v1/%2e%2e/sleep", "/v1//../sleep", "/v1", "/docs", "/v1/models/a%20b"]
)
def test_paths_outside_the_api_do_not_pass(served, path):
    before = len(served.seen("path"))
    host, _, port = served.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 5) as raw:  # as it is: a client library would tidy it up
        raw.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer secret\r\nConnection: close\r\n\r\n".encode()
        )
        status = raw.makefile("rb").readline()
    assert status.split()[1] == b"404"
    assert len(served.seen("path")) == before


def test_a_stream_comes_as_it_is_made_and_a_hang_up_stops_it(served, folder):
    body = {"model": folder.name, "stream": True, "max_tokens": 100_000, "messages": []}
    start = time.monotonic()
    with httpx2.stream(
        "POST", f"{served.url}/v1/chat/completions", json=body, headers={"x-api-key": "secret"}, trust_env=False
    ) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["x-request-id"]
        first = next(response.iter_bytes())
        assert b"word0" in first
        assert time.monotonic() - start < 5
    assert served.seen("aborted") == [True]


def test_a_stream_that_breaks_behind_ends_with_an_error(served, folder):
    body = {"model": folder.name, "stream": True, "max_tokens": 9, "messages": []}
    with client(served) as api, pytest.raises(openai.APIError, match="broke off"):
        list(api.chat.completions.create(**body, extra_body={"die_at": 1}))


def test_while_it_loads_requests_are_told_when_to_come_back(start):
    one = start(mode="slow")
    one.seen("argv")
    health = one.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "loading"})
    models = one.get("/v1/models")
    assert (models.status_code, models.json()["error"]["code"]) == (503, "loading")
    assert models.headers["retry-after"] == "5"
    one.until("vLLM is ready")
    assert one.get("/v1/models").status_code == 200


# --- how it ends


def test_a_child_that_fails_ends_us_with_its_code_and_last_lines(start):
    one = start(mode="die")
    assert one.wait() == 3
    text = one.printed()
    assert "error: vLLM ended with code 3; its last lines:" in text
    assert text.rstrip().endswith("  RuntimeError: no GPU was found")
    assert "Traceback" in text


def test_an_option_it_does_not_know_is_its_own_error(start):
    one = start("--no-such-option")
    assert one.wait() == 2
    assert "unrecognized arguments: --no-such-option" in one.printed()


def test_a_child_that_is_killed_ends_us(start, folder):
    one = start(mode="crash")
    one.until("vLLM is ready")
    body = {"model": folder.name, "messages": []}
    answer = httpx2.post(f"{one.url}/v1/chat/completions", json=body, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "bad_gateway")
    assert one.wait() == 128 + signal.SIGKILL


def test_sigterm_lets_an_answer_end_and_then_stops_the_child(start, folder):
    one = start()
    one.until("vLLM is ready")
    body = {"model": folder.name, "stream": True, "max_tokens": 20, "messages": []}
    with httpx2.stream("POST", f"{one.url}/v1/chat/completions", json=body, trust_env=False) as response:
        chunks = response.iter_bytes()
        next(chunks)
        one.child.send_signal(signal.SIGTERM)
        assert b"[DONE]" in b"".join(chunks)
    assert one.wait() == 0
    assert one.seen("terminated") == [True]
    assert one.seen("finished") == [20]


def test_ctrl_c_while_loading_and_a_child_that_does_not_listen(start):
    one = start(mode="stubborn")
    (pid,) = one.seen("pid")
    one.until("a stand-in")
    one.child.send_signal(signal.SIGINT)
    assert one.wait() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_dead_backend_is_a_502():
    async def ask():
        backend = proxy.Backend("http://127.0.0.1:1", "k", lambda: True)
        assert not await backend.healthy()
        scope = {
            "method": "GET",
            "path": "/v1/models",
            "raw_path": b"/v1/models",
            "query_string": b"a=1",
            "headers": [],
        }
        request = backend.request(scope, b"")
        assert str(request.url) == "http://127.0.0.1:1/v1/models?a=1"
        with pytest.raises(ApiError, match="does not answer") as error:
            async with backend.answer(request):
                pass
        await backend.close()
        return error.value.status

    assert asyncio.run(ask()) == 502
