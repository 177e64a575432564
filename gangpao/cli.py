"""The `gangpao` command: subcommand -> "module:function", imported only when that subcommand runs.

`gangpao --help` prints from the table below and imports none of the modules, so it answers in under 0.3 s. A user's
mistake (ValueError, a missing file, a full disk, a wrong option) is one line, `error: ...`, and exit code 2; a word of
another tool (Ollama, llama.cpp) is answered with ours. A question that was answered with no is exit code 1; Ctrl-C is
130; a reader that closes the pipe early is nothing to report (141, as a shell says it). Anything else is our bug and
keeps its traceback.
"""

import codecs
import difflib
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

import gangpao

COMMANDS = {
    "chat": ("gangpao.commands.chat:chat", "Talk with a model in the terminal."),
    "run": ("gangpao.commands.run:run", "Answer one prompt: text, or one JSON object, on stdout."),
    "serve": ("gangpao.commands.serve:serve", "Serve models over an OpenAI-compatible HTTP API."),
    "watch": (
        "gangpao.commands.watch.watch:watch",
        "Tell what a camera, a video or a folder of pictures shows, and answer questions about it.",
    ),
    "pull": ("gangpao.commands.pull:pull", "Download a model of the catalog or of a hub, verified and resumable."),
    "list": ("gangpao.commands.list:list_", "Show the catalog, what is installed, and what runs."),
    "show": ("gangpao.commands.show:show", "Say what is known of a model: its file, its size, its source."),
    "ps": ("gangpao.commands.ps:ps", "Show which models a running server holds in memory."),
    "rm": ("gangpao.commands.rm:rm", "Delete an installed model."),
    "bench": ("gangpao.commands.bench:bench", "Measure prefill and decode speed against the memory's bandwidth."),
    "cost": ("gangpao.commands.cost:price", "Say what tokens cost on a machine, and which assumption moves that most."),
    "doctor": ("gangpao.commands.doctor:doctor", "Say what this machine can run, and how fast."),
    "eval": ("gangpao.commands.eval:app", "Measure a model: benchmarks, conversations, perplexity, speed and price."),
    "compare": (
        "gangpao.commands.compress.compare:compare",
        "Say what smaller models lost beside the first: texts, answers that end, speed, price.",
    ),
    "data": (
        "gangpao.data.command:app",
        "Training data: get text, build a corpus from a configuration, count it, read it.",
    ),
    "train": ("gangpao.train.command:app", "Train a model from a TOML file, or plot runs."),
    "tune": (
        "gangpao.commands.tune:app",
        "Teach a model your own rows: adapters on a GGUF file or a folder, on a CPU too.",
    ),
    "merge": (
        "gangpao.tune.merge.command:merge",
        "Merge adapters onto a base; the result appears only if it answers as the adapter does.",
    ),
    "sandbox": ("gangpao.sandbox.command:app", "Small experiments that decide a large run: sweeps, laws, a plan."),
    "forge": (
        "gangpao.forge.command:app",
        "Data, sandbox, training, tuning, compression, evaluation, export and a check in one line, resumable, reported.",
    ),
    "report": (
        "gangpao.forge.report.command:report",
        "Write one page of a run of `gangpao forge`, as HTML without a network and as Markdown.",
    ),
    "model": ("gangpao.model.command:app", "Look at presets and checkpoints: shapes, parameters, FLOPs, memory."),
    "export": ("gangpao.deploy.export:export", "Write a Hugging Face folder as GGUF, or folded into Llama's form."),
    "quantize": (
        "gangpao.commands.compress.quantize:quantize",
        "Write a smaller file of a model: any type or mixture of llama-quantize, with an importance matrix or without.",
    ),
    "compress": (
        "gangpao.commands.compress.compress:compress",
        "Prune, distil, train for few bits, cut into experts, quantize: the steps of a TOML file, resumable, each measured.",
    ),
    "imatrix": (
        "gangpao.commands.compress.imatrix:imatrix",
        "Collect an importance matrix: how much each column of a model's weights matters on texts or chats.",
    ),
}

# Those that say themselves what is kept when Ctrl-C stops them.
SAY_STOPPED = ("data", "pull", "sandbox")

# Commands of other tools -> what to type here.
ELSEWHERE = {
    "ls": "gangpao list", "models": "gangpao list", "search": "gangpao list", "download": "gangpao pull NAME",
    "get": "gangpao pull NAME", "install": "gangpao pull NAME", "remove": "gangpao rm NAME", "delete": "gangpao rm NAME",
    "stop": "Ctrl-C in the terminal of `gangpao serve`, or its option --idle-unload MINUTES",
    "cp": "a second name is an entry of your own catalog.toml", "create": "gangpao export DIR FILE.gguf",
    "push": "files are published with the hub's own tools", "generate": 'gangpao run NAME "prompt"',
    "server": "gangpao serve NAME", "start": "gangpao serve NAME", "inspect": "gangpao show NAME", "info": "gangpao show NAME",
    "version": "gangpao --version", "help": "gangpao --help",
}  # fmt: skip
# Options of other tools -> ours.
ELSEWHERE_OPTIONS = {
    "-p": 'the prompt is the last argument: gangpao run NAME "prompt"', "--prompt": 'gangpao run NAME "prompt"',
    "-n": "--max-tokens", "--n-predict": "--max-tokens", "-c": "--context", "--ctx-size": "--context", "--num-ctx": "--context",
    "-t": "--threads", "-hf": "the repository is the model's name: hf.co/owner/repo:Q4_K_M", "-hfr": "hf.co/owner/repo",
    "--hf-repo": "the repository is the model's name: hf.co/owner/repo:Q4_K_M", "--temp": "--temperature", "-s": "--seed",
    "--repeat-penalty": "--repetition-penalty", "-sys": "--system", "--system-prompt": "--system", "-ctk": "--kv int8",
    "--cache-type-k": "--kv int8", "-ngl": "there is no GPU in our engine: leave it out", "--gpu-layers": "leave it out",
    "-i": "gangpao chat NAME", "-cnv": "gangpao chat NAME", "--verbose": "the figures come by themselves; --json has all",
    "--format": "--json", "--keepalive": "gangpao serve --idle-unload MINUTES", "-np": "--batch", "--parallel": "--batch",
}  # fmt: skip

# What the extra `lab` brings; the device half does without.
LAB_PACKAGES = ("torch", "safetensors", "matplotlib", "pyarrow", "zstandard", "optuna")
# The same of the extra `eval`.
EVALUATION_PACKAGES = ("lm_eval", "datasets")

# What typer raises for a wrong option, by a path that is the same in all its versions.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class LazyGroup(TyperGroup):
    """A command group over COMMANDS; get_command imports the one asked for. (Any: typer's types have moved.)"""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        target, line = COMMANDS[cmd_name]
        module, name = target.split(":")
        found = getattr(importlib.import_module(module), name)
        if isinstance(found, typer.Typer):
            return get_command(found)
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        app.command(cmd_name, help=line)(found)
        return get_command(app)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise ValueError(f"No such command {args[0]!r:.60}.{_instead(args[0])} `gangpao --help` lists all")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: Any) -> Any:
        # Here, because typer's own main would turn these into its messages and codes.
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whatever is still buffered would raise again when Python flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except KeyboardInterrupt:
            if ctx.invoked_subcommand not in SAY_STOPPED:
                print("\n" * sys.stderr.isatty() + "stopped", file=sys.stderr)
            return 130


app = typer.Typer(cls=LazyGroup, rich_markup_mode=None, add_completion=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"gangpao {gangpao.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Small language models on your own machine: pull, chat, measure, and see what it costs."""


def _instead(word: str) -> str:
    """What to type instead of a command that there is not, where we have an idea."""
    if word in ELSEWHERE:
        return f" Here it is: {ELSEWHERE[word]}."
    near = difflib.get_close_matches(word, COMMANDS, n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _option_instead(args: Sequence[str], error: Exception) -> str:
    """Our option for one of another tool, where the error is about one."""
    wrong = getattr(error, "option_name", None)
    given = [a.partition("=")[0] for a in args]
    found = [ELSEWHERE_OPTIONS[a] for a in given if a in ELSEWHERE_OPTIONS and wrong and a.startswith(wrong)]
    return f". Here it is: {found[0]}" if found else ""


def _open_closed_streams() -> None:
    """A stream that the shell closed (>&-) is None and its descriptor free for the next file: both go to the null device."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # the order of the descriptors 0, 1, 2
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _json_escape(error: UnicodeError) -> tuple[str, int]:
    r"""An error handler of codecs: what an encoding lacks as JSON escapes (\uXXXX), since JSON has it in strings only."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (sys.argv without argv) and return its exit code."""
    _open_closed_streams()
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if len(args) == 1 and COMMANDS.get(args[0], ("",))[0].endswith(":app"):
        args.append("--help")  # a group without a command, as `gangpao` alone
    if args[-1] == "-h":
        args[-1] = "--help"
    codecs.register_error("json", _json_escape)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:  # a terminal in an old encoding shows "?" instead of ending the answer with an error
            reconfigure(errors="json" if stream is sys.stdout and "--json" in args else "replace")
    try:
        code = get_command(app).main(args, prog_name="gangpao", standalone_mode=False)
    except _UsageError as error:
        message = str(getattr(error, "format_message", error.__str__)())
        return _fail(message + _option_instead(args, error), error)
    except (ValueError, OSError) as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name in EVALUATION_PACKAGES:
            return _fail(f"this command needs {error.name}: pip install 'gangpao[eval]'")
        if error.name in LAB_PACKAGES:
            return _fail(f"this command belongs to the lab and needs {error.name}: pip install 'gangpao[lab]'")
        from gangpao.optional import PACKAGES, missing

        if error.name not in PACKAGES:
            raise
        return _fail(missing(error.name, "this command"))
    except MemoryError:
        return _fail("out of memory: take a smaller context or model; `gangpao doctor` shows what fits")
    return code if isinstance(code, int) else 0


def _fail(message: str, usage: Exception | None = None) -> int:
    context = getattr(usage, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context else ""
    line = f"error: {' '.join(message.split())}{hint}"
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        line = f"\x1b[31m{line}\x1b[0m"
    print(line, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
