"""`gangpao serve`: models behind an HTTP API, until Ctrl-C.

Everything that can be wrong is found before a model is loaded: the address, the keys, the certificate, the names, what the
engine does not run. Models that are not installed are pulled first. Where the first model cannot be loaded after all, the
command ends and says why. SIGINT or SIGTERM stop accepting, let what was begun end (--grace seconds) and exit with 0; a second
signal ends at once.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer
import uvicorn

import gangpao
from gangpao import catalog
from gangpao.commands import options as opt
from gangpao.commands.model import find
from gangpao.commands.terminal import screen
from gangpao.commands.terminal.screen import Percent
from gangpao.engine.config import ModelConfig
from gangpao.engine.sample import MAX_STOP
from gangpao.engine.scheduler import DEFAULT_BATCH, DEFAULT_QUEUE
from gangpao.formats.gguf import GGUF
from gangpao.log import show_bytes
from gangpao.serve import app
from gangpao.serve.http import guard, tls
from gangpao.serve.models import DEFAULT_PROMPTS, DEFAULT_STOPS
from gangpao.serve.server import Server, Settings

Models = Annotated[
    list[str] | None,
    typer.Option("-m", "--model", help=f"{opt.MODEL.capitalize()}; repeatable, the first is loaded at start."),
]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; others than loopback need an API key.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
ApiKey = Annotated[list[str] | None, typer.Option("--api-key", help="A key that opens the API; repeatable.")]
ApiKeyFile = Annotated[Path | None, typer.Option("--api-key-file", help="A file with one key a line.")]
AllowHost = Annotated[
    list[str] | None, typer.Option("--allow-host", help="A host name under which this server is reached; repeatable.")
]
AllowOrigin = Annotated[
    list[str] | None, typer.Option("--allow-origin", help="A web page's origin that may call the API; repeatable.")
]
AllowImageHost = Annotated[
    list[str] | None, typer.Option("--allow-image-host", help="A host that images may be fetched from; repeatable.")
]
Tls = Annotated[bool, typer.Option("--tls", help="Speak TLS with a certificate made here, by an authority made here.")]
TlsCert = Annotated[Path | None, typer.Option("--tls-cert", help="Speak TLS with this certificate (PEM).")]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="The key of --tls-cert (PEM).")]
Batch = Annotated[int, typer.Option("--batch", min=1, max=256, help="Answers in progress at once, for each model.")]
Queue = Annotated[
    int, typer.Option("--queue", min=1, max=4096, help="Requests that may wait; more are told to come back.")
]
MaxStop = Annotated[int, typer.Option("--max-stop", min=1, max=MAX_STOP, help="Stop strings of one request at most.")]
MaxPrompts = Annotated[
    int, typer.Option("--max-prompts", min=1, max=2048, help="Prompts of one request to /v1/completions at most.")
]
Memory = Annotated[
    float | None, typer.Option("--memory", min=0.1, help="GB for all models together; what is free if not given.")
]
IdleUnload = Annotated[
    float | None,
    typer.Option("--idle-unload", min=0.01, help="Minutes without a request after which a model leaves memory."),
]
Grace = Annotated[
    float, typer.Option("--grace", min=1, max=3600, help="Seconds that answers may still take after Ctrl-C.")
]
LogRequests = Annotated[
    bool, typer.Option("--log-requests", help="A line for each request: path, status, seconds; never what was asked.")
]
Phone = Annotated[bool, typer.Option("--phone", help="Print a QR code of the page that runs the model in a phone.")]
EngineName = Annotated[Literal["native", "vllm"], typer.Option("--engine", help="vllm: hand over to vLLM on a GPU.")]
Extra = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL]...", help="The same as -m; after --, options for vLLM.", show_default=False),
]


# What also means something in front of vLLM, which has its own options for the rest, behind --.
_BOTH = frozenset({
    "extra", "model", "host", "port", "api_key", "api_key_file", "allow_host", "allow_origin", "use_tls", "tls_cert", "tls_key",
    "grace", "log_requests", "engine",
})  # fmt: skip


def serve(
    ctx: typer.Context,
    extra: Extra = None,
    model: Models = None,
    yes: opt.Yes = False,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    allow_host: AllowHost = None,
    allow_origin: AllowOrigin = None,
    allow_image_host: AllowImageHost = None,
    use_tls: Tls = False,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    batch: Batch = DEFAULT_BATCH,
    queue: Queue = DEFAULT_QUEUE,
    context: opt.Context = None,
    kv: opt.Kv = "f16",
    threads: opt.Threads = None,
    memory: Memory = None,
    idle_unload: IdleUnload = None,
    max_stop: MaxStop = DEFAULT_STOPS,
    max_prompts: MaxPrompts = DEFAULT_PROMPTS,
    cost_profile: opt.CostProfile = None,
    grace: Grace = app.GRACE_S,
    log_requests: LogRequests = False,
    phone: Phone = False,
    engine: EngineName = "native",
) -> None:
    """Serve models over an OpenAI-compatible HTTP API."""
    named, extra = split_extra(extra or [])
    model = [*(model or []), *named] or None
    keys = read_keys(api_key, api_key_file)
    guard.check_binding(host, keys)
    cert = certificate(host, allow_host, use_tls, tls_cert, tls_key)
    origins = tuple(o.rstrip("/") for o in allow_origin or ())
    _raise_files()
    if engine == "vllm":
        front = {"host": host, "port": port, "api_keys": keys, "allow_hosts": tuple(allow_host or ()), "grace_s": grace}
        front |= {"allow_origins": origins, "log_requests": log_requests}
        raise typer.Exit(_vllm(ctx, model, extra, cert, front))
    if extra:
        raise ValueError(f"{extra[0]!r:.60}: arguments after the options are for --engine vllm only")
    settings = Settings(
        find_models(model, yes=yes), host=host, port=port, api_keys=keys, allow_hosts=tuple(allow_host or ()),
        allow_origins=origins, allow_image_hosts=tuple(allow_image_host or ()),
        batch=batch, queue=queue, context=context, kv=kv, threads=threads, max_stop=max_stop, max_prompts=max_prompts,
        memory=None if memory is None else int(memory * 1e9),
        idle_unload_s=None if idle_unload is None else idle_unload * 60, cost_profile=cost_profile, tls=bool(cert),
        authority=cert.authority if cert else None, log_requests=log_requests,
    )  # fmt: skip
    _run(settings, cert, grace, phone)


def read_keys(given: list[str] | None, file: Path | None) -> tuple[str, ...]:
    """All API keys. Raises ValueError for an empty one, and for one that no HTTP header can carry."""
    keys = list(given or ())
    if file is not None:
        keys += [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not keys:
            raise ValueError(f"{file}: there is no key in it; write one a line")
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError("an API key is one word of printable ASCII characters")
    return tuple(keys)


def split_extra(words: list[str]) -> tuple[list[str], list[str]]:
    """The models among the words without an option, and the options for vLLM that come behind them."""
    at = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return words[:at], words[at:]


def find_models(names: list[str] | None, *, yes: bool = False) -> dict[str, Path]:
    """Public name -> file, pulled where it is missing. Without names: the best that is here and everything installed."""
    found: dict[str, Path] = {}
    asked: list[str | None] = list(names) if names else [None]
    for given in asked:
        name, path = find.find_model(given, yes=yes)
        if found.setdefault(name, path) != path:
            raise ValueError(f"{given}: another model is called {name} already; rename one of the files")
        ModelConfig.from_gguf(GGUF.open(path))  # what the engine does not run is told now, not to the first client
    if not names:
        found |= {name: path for name, path in find.usable().items() if name not in found}
    return found


def certificate(
    host: str, allowed: list[str] | None, make: bool, cert: Path | None, key: Path | None
) -> tls.Files | None:
    """What to speak TLS with, or None. Raises ValueError for half a pair."""
    if (cert is None) != (key is None):
        raise ValueError("--tls-cert and --tls-key belong together: give both, or --tls for a certificate made here")
    if cert is not None and key is not None:
        for path in (cert, key):
            path.open("rb").close()  # a missing file is told by its name
        return tls.Files(cert, key)
    if not make:
        return None
    bound = [] if host in ("0.0.0.0", "::") else [host.strip("[]")]
    return tls.local([*tls.addresses(), *bound, *(name.strip("[]").lower() for name in allowed or ())])


def _vllm(
    ctx: typer.Context, model: list[str] | None, extra: list[str], cert: tls.Files | None, front: dict[str, Any]
) -> int:
    from gangpao.serve.vllm import process

    ours = sorted(set(ctx.params) - _BOTH)
    given = [name for name in ours if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(
            f"{names}: for our own engine only; vLLM's options come behind --, for example: -- --max-model-len 4096"
        )
    if not model or len(model) != 1:
        raise ValueError("--engine vllm serves one model: -m FOLDER, an exported Hugging Face folder")
    return process.run(model[0], extra=extra, cert=cert, **front)


# --- running


def _run(settings: Settings, cert: tls.Files | None, grace: float, phone: bool) -> None:
    _start_log()
    server = Server(settings)
    bound = app.listen(settings)
    percent = Percent(f"loading {next(iter(settings.models))}")
    server.hub.on_progress = percent

    def ready() -> None:
        percent.clear()
        (loaded,) = server.hub.loaded().values()
        print(
            f"ready: {loaded.name}, context {loaded.engine.context}, up to {show_bytes(loaded.need)} of memory, "
            f"{settings.batch} answers at once; {screen.kernels_line()}",
            flush=True,
        )

    url = app.url_of(settings.host, bound, tls=settings.tls)
    print(start_line(settings, url, cert), flush=True)
    if phone:
        from gangpao.serve.pages import routes

        print(routes.phone_notice(url, server), flush=True)

    def failed(reason: str) -> None:
        percent.clear()
        failures.append(reason)
        runner.should_exit = True

    failures: list[str] = []
    made = app.make_app(server, on_ready=ready, on_failed=failed)
    runner = _Runner(app.uvicorn_config(made, grace_s=grace, cert=cert))
    try:
        asyncio.run(runner.serve(sockets=[bound]))
    finally:
        bound.close()
    if failures:
        raise ValueError(failures[0])
    print("stopped", file=sys.stderr, flush=True)


def start_line(settings: Settings, url: str, cert: tls.Files | None) -> str:
    """What is served where."""
    names = list(settings.models)
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    size = show_bytes(catalog.bytes_of(next(iter(settings.models.values()))))
    line = f"gangpao {gangpao.__version__}: {url}  (API: {url}/v1)  models: {shown}; loading {names[0]}, {size}"
    if settings.api_keys:
        line += f"; {len(settings.api_keys)} API key{'s' if len(settings.api_keys) > 1 else ''}"
    return "\n".join([line, *(tls.notice(cert, url) if cert else ())])


def _raise_files() -> None:
    """Allow as many open files as the system lets us: each connection is one, and shells start programs with few."""
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(ValueError, OSError):  # macOS says "unlimited" and means 10,240
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _start_log() -> None:
    """Our messages and uvicorn's warnings go to stderr, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    for name, level in (("gangpao.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


class _Runner(uvicorn.Server):
    """uvicorn with our manners: the first signal is a request to end and no failure, the second ends at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + number)
        self.should_exit = True
        os.write(2, b"\nstopping: answers in progress may end; once more to stop now\n")
