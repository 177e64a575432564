"""`gangpao serve --engine vllm`: vLLM on a GPU, behind the same command, address, keys and health checks as our own engine.

`vllm serve` is started as a child on an exported Hugging Face folder, on a loopback port of its own and with a random key,
and our guard and proxy stand in front: the same host names, API keys on every route (vLLM's own key guards /v1 only), limits
and errors, whichever engine answers. That costs one hop over loopback, some tenths of a millisecond. What follows -- goes to
vLLM as it is: --tensor-parallel-size, --pipeline-parallel-size and everything else that it knows; only what decides who may
reach it, or lets a checkpoint run code, is refused.

A child that ends ends us, with its code and its last lines: restarting is the business of who runs us (systemd,
Kubernetes), which knows when to stop. What it gives up: it cannot be tried where there is no GPU; the tests use a stand-in
that speaks vLLM's command line and API (tests/serve/vllm/fake_vllm.py).
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn

from gangpao.serve import app
from gangpao.serve.api.dialects import FORMS
from gangpao.serve.http import guard, tls
from gangpao.serve.http.metrics import Metrics
from gangpao.serve.pages import routes
from gangpao.serve.server import Settings
from gangpao.serve.vllm import proxy

# What this command decides (left), and why it may not be passed (right).
REFUSED = {
    "--host": "give --host before --",
    "--port": "give --port before --",
    "--uds": "vLLM listens on a loopback port of its own",
    "--api-key": "give --api-key before --",
    "--ssl-keyfile": "give --tls before --",
    "--ssl-certfile": "give --tls before --",
    "--root-path": "the proxy in front knows no other paths",
    "--trust-remote-code": "a checkpoint's own code is never run here; start vLLM yourself if you trust it",
    "--model": "give the folder with -m",
    "--config": "give its options themselves, so that they can be looked at",
}
STOP_S = 30.0
POLL_S = 0.25
TAIL = 8192
LINES = 12


def run(
    model: str,
    *,
    host: str,
    port: int,
    api_keys: Sequence[str],
    extra: Sequence[str],
    allow_hosts: Sequence[str] = (),
    allow_origins: Sequence[str] = (),
    grace_s: float = app.GRACE_S,
    log_requests: bool = False,
    cert: tls.Files | None = None,
) -> int:
    """Serve the folder `model` until a signal, or until vLLM ends; the exit code.

    cert: what to speak TLS with. Raises ValueError saying what to do, before anything is started.
    """
    guard.check_binding(host, api_keys)
    folder = check_folder(model)
    check_extra(extra)
    program = find_program()
    bound = app.listen(Settings({folder.name: folder}, host=host, port=port, api_keys=tuple(api_keys)))
    child = Child(command(program, folder, free_port(), extra))
    backend = proxy.Backend(child.url, child.key, lambda: child.ready)
    rules = guard.Rules(
        hosts=guard.hosts_of(host, allow_hosts),
        keys=tuple(api_keys),
        origins=frozenset(allow_origins),
        any_address=host in ("0.0.0.0", "::"),
        tls=bool(cert),
        log_requests=log_requests,
        public=frozenset({"/health", "/ca.crt"}),
    )
    front = proxy.application(backend, routes.authority_route(cert.authority if cert else None))
    runner = _Runner(app.uvicorn_config(guard.Guard(front, rules, Metrics(), FORMS), grace_s=grace_s, cert=cert))
    where = app.url_of(host, bound, tls=bool(cert))
    for line in (
        f"{where}/v1 answers from {folder.name} when vLLM has loaded it",
        *(tls.notice(cert, where) if cert else ()),
    ):
        say(line)
    try:
        return asyncio.run(_serve(child, backend, runner, bound))
    finally:
        bound.close()


def check_folder(model: str) -> Path:
    """The folder, when it is a checkpoint that vLLM can load without running its code or unpickling anything."""
    folder = Path(model).expanduser().resolve()
    if folder.suffix == ".gguf":
        raise ValueError(
            f"{model}: vLLM takes a Hugging Face folder, not a GGUF file (which `gangpao serve -m` serves)"
        )
    if not folder.is_dir():
        raise ValueError(f"{model}: there is no such folder; `gangpao train` leaves one in RUN/export")
    if not (folder / "config.json").is_file() and (folder / "export").is_dir():
        folder = folder / "export"  # a run of `gangpao train` was given
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{model}: no readable config.json: not a Hugging Face checkpoint") from None
    if not isinstance(config, dict) or not config.get("architectures"):
        raise ValueError(f"{model}: config.json names no architectures: not a Hugging Face checkpoint")
    if "auto_map" in config:
        raise ValueError(f"{model}: config.json wants to run code of its own (auto_map); it is not run here")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{model}: no .safetensors file in it; other forms of weights can hold code and are not loaded"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ValueError(f"{model}: no tokenizer.json or tokenizer.model in it: vLLM needs the tokenizer")
    return folder


def check_extra(extra: Sequence[str]) -> None:
    """Raises ValueError for an option that this command decides itself."""
    for argument in extra:
        name = argument.partition("=")[0].replace("_", "-")
        for refused, why in REFUSED.items():
            # vLLM's parser takes every beginning of a name that is not ambiguous.
            if name == refused or (len(name) > 2 and name.startswith("--") and refused.startswith(name)):
                raise ValueError(f"{argument!r:.80} after --: {why}")


def find_program() -> str:
    """The vllm program of this environment, else of PATH. Raises ValueError where there is none."""
    here = Path(sys.executable).with_name("vllm")
    found = str(here) if os.access(here, os.X_OK) else shutil.which("vllm")
    if found is None:
        raise ValueError(
            "--engine vllm needs the program vllm: pip install 'gangpao[vllm]' on a Linux machine with a GPU "
            "(without one, `gangpao serve` with a .gguf file runs on the processor)"
        )
    return found


def command(program: str, folder: Path, port: int, extra: Sequence[str]) -> list[str]:
    """vLLM's command line. The weights are only ever read as safetensors, the one form without code in it."""
    given = {argument.partition("=")[0] for argument in extra}
    defaults = {"--served-model-name": folder.name, "--load-format": "safetensors"}
    added = [part for name, value in defaults.items() if name not in given for part in (name, value)]
    return [program, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), *added, *extra]


def free_port() -> int:
    """A loopback port that nobody uses now. Whoever takes it in between gets no key; vLLM then says that it is taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Child:
    """The vLLM process: its output goes to our stderr, and its end is noticed."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self.url = f"http://127.0.0.1:{argv[argv.index('--port') + 1]}"
        self.key = secrets.token_hex(24)
        self.ready = False
        self._tail = b""
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it. Raises OSError when the program cannot be run."""
        self._process = await asyncio.create_subprocess_exec(
            *self.argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, start_new_session=True, env=self._environment(),
        )  # fmt: skip

    async def wait(self) -> int:
        """Pass its output on until its end; the exit code as a shell says it (128 + signal)."""
        assert self._process is not None
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(1 << 16):
            sys.stderr.buffer.write(chunk)
            sys.stderr.buffer.flush()
            self._tail = (self._tail + chunk)[-TAIL:]
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    def _environment(self) -> dict[str, str]:
        """The key goes through the environment, which other users cannot read; the folder is here, so nothing is looked up."""
        defaults = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
        return defaults | dict(os.environ) | {"VLLM_API_KEY": self.key}

    def last_lines(self) -> str:
        """The end of its output."""
        lines = self._tail.decode("utf-8", "replace").splitlines()
        return "\n".join(f"  {line}" for line in [line for line in lines if line.strip()][-LINES:])

    async def stop(self) -> None:
        """Ask it to end, and after STOP_S seconds end it with all its workers."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # workers of a leader that died
        await process.wait()


class _Runner(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:  # _serve has its own
        yield


async def _serve(child: Child, backend: proxy.Backend, runner: _Runner, bound: socket.socket) -> int:
    def stop() -> None:
        runner.force_exit = runner.should_exit  # a second signal does not wait for answers
        runner.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    await child.start()
    ended = asyncio.create_task(child.wait())
    watching = asyncio.create_task(_watch(child, backend))
    serving = asyncio.create_task(runner.serve(sockets=[bound]))
    try:
        await asyncio.wait({ended, serving}, return_when=asyncio.FIRST_COMPLETED)
        died = ended.done()
        child.ready = child.ready and not died
        runner.should_exit = True
        await serving
    finally:
        watching.cancel()
        await child.stop()
    code = await ended
    if not died:
        return 0
    say(f"error: vLLM ended with code {code}; its last lines:\n{child.last_lines()}")
    return code or 1


async def _watch(child: Child, backend: proxy.Backend) -> None:
    """Note when vLLM says for the first time that it is healthy."""
    while not await backend.healthy():
        await asyncio.sleep(POLL_S)
    child.ready = True
    say("vLLM is ready")


def say(text: str) -> None:
    """A line for the person at the terminal or in the log."""
    print(text, file=sys.stderr, flush=True)
