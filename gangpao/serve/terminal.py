"""`gangpao chat`: a conversation in the terminal.

A loop of three steps: read a question (line editing and history from readline), stream the answer, print one dim line
of figures. Lines that begin with / are commands, one method each. Ctrl-C ends the answer and keeps what was said; at
the prompt it has to come twice. Without a terminal on stdin one built-in question is answered instead, so that
`make chat </dev/null` proves that everything works.

Who answers is a Talk: an engine in this process (Local), or with --connect any server that speaks OpenAI's API
(connect.py). The loop is the same.

What it gives up: no full-screen interface, so the terminal's own scrollback, copy and search keep working.
"""

import atexit
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from gangpao import catalog
from gangpao.engine.sample import SamplingParams
from gangpao.serve import loading
from gangpao.serve import options as opt
from gangpao.serve.conversation import Conversation, Run, Talk
from gangpao.serve.find import one_of

DEMO = "请把这句话翻译成法语：今天的 weather 真不错，我们一起去 hiking 吧！"
HISTORY_LINES = 1000

HELP = """\
/help          this list
/reset         forget the conversation (the system message stays)
/system TEXT   set who the model is to be; without TEXT, show it
/stats         model, context, tokens, speed and cost so far
/save FILE     write the conversation: Markdown, or JSON for a name in .json
/quit          leave (Ctrl-D does too)
A line ending in \\ goes on in the next one; \"\"\" begins and ends a block of lines.
Begin with a space to say something that starts with /. Ctrl-C ends an answer."""


Connect = Annotated[
    str | None,
    typer.Option(
        "--connect", metavar="URL", help="Talk with a server that speaks OpenAI's API; --model is its name there."
    ),
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", help="The server's API key; OPENAI_API_KEY of the environment if not given.")
]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="Certificate (PEM) to trust: the server's own, or its authority's."),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Do not check the server's certificate.")]
# Options that belong to a model in this process, and those that belong to a server.
LOCAL_ONLY = ("threads", "context", "kv", "cost_profile", "yes")
REMOTE_ONLY = ("api_key", "ca", "insecure")


def chat(
    ctx: typer.Context,
    named: opt.Named = None,
    model: opt.Model = None,
    yes: opt.Yes = False,
    system: opt.System = "",
    max_tokens: opt.MaxTokens = opt.DEFAULT.max_tokens,
    temperature: opt.Temperature = opt.DEFAULT.temperature,
    top_k: opt.TopK = opt.DEFAULT.top_k,
    top_p: opt.TopP = opt.DEFAULT.top_p,
    min_p: opt.MinP = opt.DEFAULT.min_p,
    repetition_penalty: opt.RepetitionPenalty = opt.DEFAULT.repetition_penalty,
    seed: opt.Seed = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    kv: opt.Kv = "f16",
    cost_profile: opt.CostProfile = None,
    connect: Connect = None,
    api_key: ApiKey = None,
    ca: Ca = None,
    insecure: Insecure = False,
) -> None:
    """Talk with a model in the terminal."""
    given = _given(ctx)
    check_sides(given)
    model = one_of(named, model)
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        seed=seed, max_tokens=max_tokens,
    )  # fmt: skip
    if connect is not None:
        from gangpao.serve import connect as remote

        asked = {f.name: getattr(params, f.name) for f in fields(params) if f.name in given}
        with closing(
            remote.connect(connect, model, asked, system=system, api_key=api_key, ca=ca, insecure=insecure)
        ) as talk:
            converse(talk)
    else:
        meter = loading.Meter(cost_profile)
        engine = loading.load_engine(model, context=context, kv_dtype=kv, num_threads=threads, yes=yes)
        known = catalog.load().models.get(engine.name)
        converse(Local(engine, params, meter=meter, system=system), known.question if known else "")


def converse(talk: Talk, question: str = "") -> None:
    """Answer what is typed, or without a terminal one question: this one, else the built-in one."""
    question = question or DEMO
    session = Chat(talk)
    if sys.stdin.isatty():
        session.loop()
        return
    print("stdin is not a terminal, so here is one built-in question (`gangpao run -` answers a piped one).")
    print(f"> {question}")
    if not session.answer(question):
        raise typer.Exit(2)


def _given(ctx: Any) -> set[str]:
    """The options on the command line. (Any: typer's context has moved between its versions.)"""
    return {name for name in ctx.params if ctx.get_parameter_source(name).name == "COMMANDLINE"}


def check_sides(given: set[str]) -> None:
    """Raises ValueError for options of a model here together with --connect, or of a server without it."""
    wrong = given & set(LOCAL_ONLY if "connect" in given else REMOTE_ONLY)
    if wrong:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(wrong))
        why = "a model in this process, not a server's" if "connect" in given else "a server: give --connect URL, too"
        raise ValueError(f"{names}: only for {why}")


@dataclass(slots=True, kw_only=True)
class Local(Conversation):
    """A conversation with an engine of this process, and what its answers cost here."""

    meter: loading.Meter

    def greeting(self) -> str:
        """Who answers, in one line."""
        return f"{self.engine.name}, context {self.engine.context} tokens"

    def figures(self, run: Run) -> str:
        """What the answer took, in one line."""
        return self.meter.line(run)

    def facts(self) -> list[tuple[str, str]]:
        """The model, its kernels, and how full its context is."""
        engine = self.engine
        return [
            ("model", f"{engine.name} ({engine.model.config.architecture}), {loading.kernels_line()}"),
            ("context", f"{self.cached_tokens} of {engine.context} tokens, KV {engine.kv_dtype}"),
        ]

    def costs(self, seconds: float) -> list[tuple[str, str]]:
        """Memory in use, and the price of `seconds` of this machine."""
        return [
            ("memory", f"{loading.rss_mb():.0f} MB"),
            ("cost", f"{loading.show_yuan(self.meter.yuan(seconds))} ({self.meter.name})"),
        ]


class Chat:
    """One conversation with its totals. Prints to stdout."""

    def __init__(self, conversation: Talk) -> None:
        self.conversation = conversation
        self.answers = 0
        self.tokens = 0
        self.seconds = 0.0
        self.decode_steps = 0
        self.decode_s = 0.0

    def loop(self) -> None:
        """Read and answer until the user leaves."""
        prompt = _line_editor()
        print(loading.dim(f"{self.conversation.greeting()}. /help lists commands."))
        interrupted = False
        while True:
            try:
                text = read_question(prompt)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                if interrupted:
                    return
                interrupted = True
                print(loading.dim("Ctrl-C again (or Ctrl-D) leaves."))
                continue
            interrupted = False
            if re.match(r"/\w*(\s|$)", text):
                if not self.command(text.strip()):
                    return
            elif text.strip():
                self.answer(text.strip())

    def answer(self, text: str) -> bool:
        """Stream the answer to one question; Ctrl-C ends it and keeps what was said. False after an error, which is shown."""
        try:
            run = self.conversation.ask(text, _prefill_progress if sys.stdout.isatty() else None)
        except ValueError as error:
            print(f"error: {error}")
            return False
        except KeyboardInterrupt:
            print()
            return True
        if self.conversation.dropped:
            print(loading.dim(f"(dropped the {self.conversation.dropped} oldest messages: the context is full)"))
        stopped, failure = False, ""
        try:
            for piece in run:
                loading.show(piece.text)
        except KeyboardInterrupt:
            stopped = True
        except ValueError as error:
            failure = str(error)
        finally:
            self.conversation.keep(run)
        print("" if run.text.endswith("\n") else "\n", end="")
        self._count(run)
        print(loading.dim(self.conversation.figures(run) + (" · stopped" if stopped else "")))
        if failure:
            print(f"error: {failure}")
        return not failure

    def _count(self, run: Run) -> None:
        self.answers += 1
        self.tokens += run.stats.completion_tokens
        self.seconds += run.stats.seconds
        self.decode_steps += run.stats.decode_steps
        self.decode_s += run.stats.decode_s

    def command(self, line: str) -> bool:
        """Run one / command; False when the user wants to leave."""
        name, _, rest = line[1:].partition(" ")
        if name in ("quit", "exit", "q"):
            return False
        actions: dict[str, Callable[[str], str]] = {
            "help": lambda _: HELP,
            "reset": self._reset,
            "system": self._system,
            "stats": self._stats,
            "save": self._save,
        }
        action = actions.get(name)
        try:
            print(action(rest.strip()) if action else f"there is no command /{name}; /help lists them")
        except (ValueError, OSError) as error:
            print(f"error: {error}")
        return True

    def _reset(self, _: str) -> str:
        self.conversation.reset()
        return "forgotten; the next question starts a new conversation"

    def _system(self, text: str) -> str:
        if not text:
            return self.conversation.system or "no system message; /system TEXT sets one"
        self.conversation.system = text
        return "system message set for the next question"

    def _stats(self, _: str) -> str:
        speed = self.decode_steps / self.decode_s if self.decode_s else 0.0
        rows = [
            *self.conversation.facts(),
            ("answers", f"{self.answers}, {self.tokens} tokens, {speed:.1f} tok/s"),
            *self.conversation.costs(self.seconds),
        ]
        return "\n".join(f"{name:8} {value}" for name, value in rows)

    def _save(self, name: str) -> str:
        if not name:
            raise ValueError("say where: /save FILE")
        path = Path(name).expanduser()
        messages = self.conversation.messages
        if path.suffix == ".json":
            text = json.dumps({"messages": messages}, ensure_ascii=False, indent=1) + "\n"
        else:
            text = "".join(f"## {m['role']}\n\n{m['content']}\n\n" for m in messages)
        try:
            with path.open("x", encoding="utf-8") as out:
                out.write(text)
        except FileExistsError:
            raise ValueError(f"{path} exists already; choose another name or delete it first") from None
        return f"saved {len(messages)} messages to {path}"


def read_question(prompt: str, read: Callable[[str], str] = input) -> str:
    r"""One question: a line, lines joined by a trailing \, or everything between two triple quotes."""
    line = read(prompt)
    if line.lstrip().startswith('"""'):
        lines = [line.lstrip()[3:]]
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(read(". "))
        lines[-1] = lines[-1].rstrip()[:-3]
        return " " + "\n".join(lines).strip()  # the space: a block is never a command
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read(". "))
    return "\n".join(lines)


def _prefill_progress(done: int, total: int) -> None:
    """A line that is gone again when the answer begins; short prompts finish in one call and show nothing."""
    sys.stdout.write(loading.dim(f"\rreading {done} of {total} tokens ") if done < total else "\r\x1b[K")
    sys.stdout.flush()


def _line_editor() -> str:
    """Switch on line editing with a history file and return the prompt to show. Without readline, plain input."""
    try:
        import readline
    except ImportError:
        return "> "
    path = history_path()
    if path.exists():
        try:
            readline.read_history_file(path)
        except OSError as error:
            print(f"warning: no history: {error}", file=sys.stderr)
    readline.set_history_length(HISTORY_LINES)
    readline.parse_and_bind("set enable-bracketed-paste on")  # a pasted text of many lines is one question
    atexit.register(_write_history, path)
    # \x01 and \x02 tell readline that what they enclose takes no room on the line.
    return "\x01\x1b[1m\x02>\x01\x1b[0m\x02 " if loading.colors(sys.stdout) else "> "


def history_path() -> Path:
    """Where the questions are kept between chats (XDG state directory)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "gangpao" / "chat_history"


def _write_history(path: Path) -> None:
    import readline

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.write_history_file(path)
    except OSError as error:
        print(f"warning: the history was not kept: {error}", file=sys.stderr)
