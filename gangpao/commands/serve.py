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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
import uvicorn

import gangpao
from gangpao import catalog
from gangpao.commands import options as opt
from gangpao.commands.model import find
from gangpao.commands.model.adapters import served
from gangpao.commands.model.draft import AUTO, draft_of
from gangpao.commands.model.sight import sight_of
from gangpao.commands.terminal import screen
from gangpao.commands.terminal.screen import Percent
from gangpao.engine import adapters
from gangpao.engine.config import ModelConfig
from gangpao.engine.generate import Engine
from gangpao.engine.speculate.loading import open_draft
from gangpao.engine.thinking.options import Thinking
from gangpao.formats.gguf import GGUF
from gangpao.options import Fields, command_of, flag_of, option
from gangpao.serve import app
from gangpao.serve.http import tls
from gangpao.serve.http.access import Access, Listen, check_binding
from gangpao.serve.models import AdapterFile, Limits
from gangpao.serve.server import Server, Settings
from gangpao.text.tokenizer import Tokenizer
from gangpao.units import show_bytes

Models = Annotated[
    list[str] | None,
    typer.Option("-m", "--model", help=f"{opt.MODEL}; repeatable, the first is loaded at start."),
]
Adapter = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", metavar="NAME=PATH[:SCALE]",
        help="A LoRA adapter (PEFT folder or GGUF file) of the first model, served as model NAME; repeatable, all share that base.",
    ),
]  # fmt: skip
Grace = Annotated[
    float, typer.Option("--grace", min=1, max=3600, help="Seconds that answers may still take after Ctrl-C.")
]
Alias = Annotated[
    list[str] | None,
    typer.Option(
        "--alias", metavar="NAME=MODEL",
        help="Another name for a model that is served; '*' is every name that nobody has, and the first model. Repeatable.",
    ),
]  # fmt: skip
ShortPaths = Annotated[
    bool, typer.Option("--short-paths", help="Answer under /chat/completions and the like, without /v1, too.")
]
Phone = Annotated[bool, typer.Option("--phone", help="Print a QR code of the page that runs the model in a phone.")]
EngineName = Annotated[Literal["native", "vllm"], typer.Option("--engine", help="vllm: hand over to vLLM on a GPU.")]
Extra = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL]...", help="The same as -m; after --, options for vLLM.", show_default=False),
]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What to speak TLS with."""

    tls: bool = option(False, "Speak TLS with a certificate made here, by an authority made here.")
    tls_cert: Path | None = option(None, "Speak TLS with this certificate (PEM).")
    tls_key: Path | None = option(None, "The key of --tls-cert (PEM).")


_LIMITS = (
    "batch",
    "queue",
    "context",
    "kv",
    "sparse",
    "draft",
    "threads",
    "memory",
    "packed_cache",
    "idle_unload_s",
    "max_stop",
    "max_prompts",
    "context_shift",
    "prefix_cache",
    "prefix_cache_bytes",
)  # in the order of the help


@command_of(after={"log_requests": "short_paths", "max_body": "log_requests"})
def serve(
    ctx: typer.Context,
    extra: Extra = None,
    model: Models = None,
    adapter: Adapter = None,
    mmproj: opt.Mmproj = None,
    yes: opt.Yes = False,
    *,
    listen: Listen,
    access: Access,
    tls_files: Certificate,
    limits: Annotated[Limits, Fields(Limits, _LIMITS)],
    thinking: Thinking,
    cost_profile: opt.CostProfile = None,
    grace: Grace = app.GRACE_S,
    alias: Alias = None,
    short_paths: ShortPaths = False,
    phone: Phone = False,
    engine: EngineName = "native",
) -> None:
    """Serve models over an OpenAI-compatible HTTP API."""
    named, extra = split_extra(extra or [])
    model = [*(model or []), *named] or None
    check_binding(listen, access)
    cert = certificate(listen.host, access.allow_hosts, tls_files)
    listen = replace(listen, tls=cert is not None, authority=cert.authority if cert else None)
    _raise_files()
    if engine == "vllm":
        _check_vllm(ctx, model)
        from gangpao.serve.vllm import process

        raise typer.Exit(process.run((model or [""])[0], listen, access, extra, grace_s=grace, cert=cert))
    if extra:
        raise ValueError(f"{extra[0]!r:.60}: arguments after the options are for --engine vllm only")
    models, opened = find_models(model, yes=yes)
    on_base = read_adapters(adapter, models, opened)
    settings = Settings(
        models, aliases=read_aliases(alias, [*models, *on_base]), adapters=on_base, sights=find_sights(models, mmproj),
        drafts=find_drafts(models, limits.draft, opened, yes=yes), short_paths=short_paths, thinking=thinking,
        **vars(listen), **vars(access), **vars(limits), cost_profile=cost_profile,
    )  # fmt: skip
    _run(Server(settings, opened), cert, grace, phone)


def read_adapters(
    given: list[str] | None, models: Mapping[str, Path], opened: Mapping[str, GGUF]
) -> dict[str, AdapterFile]:
    """--adapter NAME=PATH[:SCALE]. Raises ValueError for what cannot be served on the first model, before that is loaded."""
    base = next(iter(models))
    found = served(given, base, models)
    for name, one in found.items():
        gguf = opened[base]
        config = ModelConfig.from_gguf(gguf)
        try:
            adapters.check(adapters.read(one.path, gguf, config), config)
        except ValueError as error:
            raise ValueError(f"--adapter {name}: {error}") from None
    return found


def find_sights(models: Mapping[str, Path], given: str | None) -> dict[str, Path]:
    """What models see with: --mmproj for the first, and what lies beside the others. Raises ValueError for a file that is none."""
    first = next(iter(models))
    found = {name: sight_of(path, name, given if name == first else None) for name, path in models.items()}
    if given is not None and (named := found[first]) is not None:
        with GGUF.open(named) as gguf:
            if gguf.get_str("general.architecture") != "clip":
                raise ValueError(f"--mmproj {given}: this is a model, not an mmproj file (an encoder of pictures)")
    return {name: path for name, path in found.items() if path is not None}


def find_drafts(
    models: Mapping[str, Path], given: str | None, opened: Mapping[str, GGUF], *, yes: bool = False
) -> dict[str, Path]:
    """What drafts: --draft for the first model, or for all what the catalog names. Raises ValueError for one that cannot draft for
    the first, before anything is loaded."""
    first = next(iter(models))
    if given is None or given.lower() == AUTO:
        found = {name: draft_of(name, given) for name in models}
        return {name: path for name, path in found.items() if path is not None}
    path = draft_of(first, given, yes=yes)
    if path is None:
        return {}
    large = opened[first]
    open_draft(path, Tokenizer.from_gguf(large.metadata), ModelConfig.from_gguf(large))
    return {first: path}


def read_aliases(given: list[str] | None, models: Collection[str]) -> dict[str, str]:
    """--alias NAME=MODEL, or a NAME alone for the first model. Raises ValueError for a model that is not served."""
    found: dict[str, str] = {}
    for one in given or ():
        name, _, model = one.partition("=")
        model = model or next(iter(models))
        if not name or name in models or name in found:
            raise ValueError(f"--alias {one}: a new name has to stand before the =")
        if model not in models:
            raise ValueError(f"--alias {one}: {model} is not served here; there are {', '.join(list(models)[:10])}")
        found[name] = model
    return found


def split_extra(words: list[str]) -> tuple[list[str], list[str]]:
    """The models among the words without an option, and the options for vLLM that come behind them."""
    at = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return words[:at], words[at:]


def find_models(names: list[str] | None, *, yes: bool = False) -> tuple[dict[str, Path], dict[str, GGUF]]:
    """Public name -> file, pulled where it is missing, and those of the files that were opened to look at them. Without names:
    the best that is here and everything installed."""
    found: dict[str, Path] = {}
    opened: dict[str, GGUF] = {}
    asked: list[str | None] = list(names) if names else [None]
    for given in asked:
        name, path = find.find_model(given, yes=yes)
        if found.setdefault(name, path) != path:
            raise ValueError(f"{given}: another model is called {name} already; rename one of the files")
        if name not in opened:
            opened[name] = GGUF.open(path)
            ModelConfig.from_gguf(opened[name])  # what the engine does not run is told now, not to the first client
    if not names:
        found |= {name: path for name, path in find.usable().items() if name not in found}
    return found, opened


def certificate(host: str, allowed: Sequence[str], given: Certificate) -> tls.Files | None:
    """What to speak TLS with, or None. Raises ValueError for half a pair."""
    cert, key = given.tls_cert, given.tls_key
    if (cert is None) != (key is None):
        raise ValueError("--tls-cert and --tls-key belong together: give both, or --tls for a certificate made here")
    if cert is not None and key is not None:
        for path in (cert, key):
            path.open("rb").close()  # a missing file is told by its name
        return tls.Files(cert, key)
    if not given.tls:
        return None
    bound = [] if host in ("0.0.0.0", "::") else [host.strip("[]")]
    return tls.local([*tls.addresses(), *bound, *(name.strip("[]").lower() for name in allowed)])


def _check_vllm(ctx: typer.Context, model: list[str] | None) -> None:
    """Raises ValueError for options of our own engine: vLLM has its own for the same things, behind --."""
    ours: dict[str, type] = {**dict.fromkeys(_LIMITS, Limits), "allow_image_hosts": Access}
    ours |= dict.fromkeys(Fields(Thinking).chosen(), Thinking)
    flags = {name: flag_of(record, name) for name, record in ours.items()}
    flags |= {
        "adapter": "--adapter",
        "mmproj": "--mmproj",
        "cost_profile": "--cost-profile",
        "phone": "--phone",
        "yes": "--yes",
        "alias": "--alias",
        "short_paths": "--short-paths",
    }
    given = [name for name in flags if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        raise ValueError(
            f"{', '.join(sorted(flags[name] for name in given))}: for our own engine only; vLLM's options come behind --, for "
            "example: -- --max-model-len 4096"
        )
    if not model or len(model) != 1:
        raise ValueError("--engine vllm serves one model: -m FOLDER, an exported Hugging Face folder")


# --- running


def _run(server: Server, cert: tls.Files | None, grace: float, phone: bool) -> None:
    _start_log()
    settings = server.settings
    bound = app.listen(settings, settings)
    percent = Percent(f"loading {next(iter(settings.models))}")
    server.models.on_progress = percent

    def ready() -> None:
        percent.clear()
        (loaded,) = server.models.loaded().values()
        print(
            f"ready: {loaded.name}, context {loaded.engine.context}, up to {show_bytes(loaded.need)} of memory, "
            f"{_sees(loaded.engine)}"
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


def _sees(engine: Engine) -> str:
    """What it sees with, for a line of text."""
    return (
        f"sees ({engine.seeing.sight.vision.name}, {show_bytes(engine.seeing.sight.nbytes)}), " if engine.seeing else ""
    )


def start_line(settings: Settings, url: str, cert: tls.Files | None) -> str:
    """What is served where."""
    names = [*settings.models, *settings.adapters]
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
