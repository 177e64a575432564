"""The process that renders foreign chat templates: jinja2's immutable sandbox behind operating-system limits.

Run as a script by sandbox_parent.py, never imported by the rest of the program; it imports nothing of ours. A request
is one JSON line {"source", "context"}, the answer one line {"text"} or {"error"}. The sandbox keeps a template from
reaching Python objects; it does not bound time or memory, so the kernel does: each request has CPU_S seconds of
processor time (a profiling timer whose signal kills the process), the process has MEMORY_BYTES of address space, and
once warmed up it can open no file or socket, write no file and start no process. A template that still broke out would find
an empty environment and nothing to reach.
"""

import contextlib
import datetime
import functools
import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

CPU_S = 0.5
MEMORY_BYTES = 256 << 20
OUTPUT_BYTES = 1_000_000
_ERROR_CHARS = 500

Compile = Callable[[str], Any]


def environment() -> Any:
    """jinja2's sandbox with what templates written for Hugging Face's transformers expect."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what a model is trained on; here it is only its content."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: object) -> None:
        raise jinja2.TemplateError(str(message)[:_ERROR_CHARS])

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
        kept = {k: v for k, v in options.items() if k in ("separators", "sort_keys")}
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **kept)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    del env.globals["lipsum"]
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


def render(compiled: Compile, source: str, context: dict[str, Any]) -> str:
    """The template's text; ValueError when it is longer than OUTPUT_BYTES."""
    parts: list[str] = []
    size = 0
    for part in compiled(source).generate(**context):
        size += len(part)
        if size > OUTPUT_BYTES:
            break
        parts.append(part)
    text = "".join(parts)
    if size > OUTPUT_BYTES or len(text.encode()) > OUTPUT_BYTES:
        raise ValueError(f"more than {OUTPUT_BYTES} bytes of output")
    return text


def answer(compiled: Compile, line: bytes) -> dict[str, str]:
    """One request under the processor-time limit."""
    request = json.loads(line)
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        return {"text": render(compiled, request["source"], request["context"])}
    except Exception as error:  # whatever a template provokes is its own error, and is reported
        return {"error": f"{type(error).__name__}: {str(error)[:_ERROR_CHARS]}"}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def address_space() -> int:
    """Bytes of addresses that this process has; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def lock_down() -> None:
    """Take away what rendering does not need. A limit that a system does not have is skipped; the others hold.

    Android's allocator reserves gigabytes of addresses when it starts, and would get nothing more below a limit that it is above
    already: there the limit is what is reserved and MEMORY_BYTES, and that of data holds the rest.
    """
    reserved = address_space()
    space = MEMORY_BYTES if reserved < MEMORY_BYTES else reserved + MEMORY_BYTES
    limits = {
        "RLIMIT_AS": space,
        "RLIMIT_DATA": MEMORY_BYTES,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,
        "RLIMIT_NOFILE": 0,
    }
    for name, value in limits.items():
        if hasattr(resource, name):
            with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
                resource.setrlimit(getattr(resource, name), (value, value))


def main(folders: list[str]) -> None:
    """Answer requests until stdin ends. `folders` are where jinja2 and markupsafe lie."""
    sys.path.extend(folders)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    compiled: Compile = functools.lru_cache(4)(environment().from_string)  # the same few templates over and over
    # Once through everything that imports a module or opens a file when first used, before files can no longer be opened.
    warm_up = (
        "{% for x in [1] %}{{ x | tojson }}{{ strftime_now('%d %b %Y') }}{% endfor %}{{ 'é' | upper }}",
        "{{ 1/0 }}",
        "{%",
    )
    for source in warm_up:
        answer(compiled, json.dumps({"source": source, "context": {}}).encode())
    lock_down()
    out = sys.stdout.buffer
    out.write(b"{}\n")
    out.flush()
    for line in sys.stdin.buffer:
        out.write(json.dumps(answer(compiled, line)).encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
