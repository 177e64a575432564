"""`gangpao chat`: a conversation in the terminal.

A loop of three steps: read a question (line editing and history.py), stream the answer (wrap.py), print one dim line
of figures. Lines that begin with / are commands, one method each. Ctrl-C ends the answer and keeps what was said; at
the prompt it has to come twice. Without a terminal on stdin one built-in question is answered instead, so that
`make chat </dev/null` proves that everything works.

Who answers is a Talk: an engine in this process (Local), or with --connect any server that speaks OpenAI's API
(terminal/remote.py). The loop is the same.

What it gives up: no full-screen interface, so the terminal's own scrollback, copy and search keep working.
"""

import difflib
import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gangpao import catalog, cost
from gangpao.commands import options as opt
from gangpao.commands.model import loading
from gangpao.commands.model.find import one_of
from gangpao.commands.terminal import attach, screen, wrap
from gangpao.commands.terminal.conversation import Run, Talk
from gangpao.commands.terminal.history import History, history_path
from gangpao.commands.terminal.kept import KeptChat
from gangpao.commands.terminal.local import Local
from gangpao.engine.memory import EngineOptions
from gangpao.engine.sample import SamplingParams
from gangpao.engine.thinking.options import Thinking
from gangpao.images.look import Picture
from gangpao.options import Fields, command_of
from gangpao.text.templates.chat import Message
from gangpao.units import plain

DEMO = "请把这句话翻译成法语：今天的 weather 真不错，我们一起去 hiking 吧！"

HELP = (
    ("/help", "this list"),
    ("/model NAME", "go on with another model; without NAME, the models there are"),
    ("/set KEY VALUE", "change temperature, top_p, seed, system ...; without VALUE, show it; without KEY, show all"),
    ("/image FILE [TEXT]", "show a picture or video with the next question, or with TEXT; so does dragging one in"),
    ("/retry", "another answer to the last question"),
    ("/think WHAT", "on, off, default, low, medium, high, or the most tokens of a thought; without WHAT, show it"),
    ("/thoughts", "what the model thought before its last answer"),
    ("/reset", "forget the conversation (the system message stays)"),
    ("/system TEXT", "set who the model is to be; without TEXT, show it"),
    ("/stats", "model, context, tokens, speed and cost so far"),
    ("/save FILE", "write the conversation: Markdown, or JSON for a name in .json"),
    ("/quit", "leave (Ctrl-D does too)"),
)
HELP_END = """\
A line ending in \\ goes on in the next one; \"\"\" begins and ends a block of lines. \
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
NoHistory = Annotated[
    bool, typer.Option("--no-history", help="Do not read or keep the file of questions typed before.")
]
SessionName = Annotated[
    str | None,
    typer.Option(
        "--session",
        metavar="NAME",
        help="Keep the conversation, and what the model computed of it, under NAME; go on with it.",
    ),
]
# Options that belong to a model in this process, and those that belong to a server.
LOCAL_ONLY = frozenset(
    {*Fields(EngineOptions).chosen(), "cost_profile", "yes", "adapter", "mmproj", "session", "context_shift"}
)
REMOTE_ONLY = frozenset({"api_key", "ca", "insecure"})


Params = Annotated[
    dict[str, Any],
    Fields(
        SamplingParams, ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    ),
]  # fmt: skip


@command_of()
def chat(
    ctx: typer.Context,
    named: opt.Named = None,
    model: opt.Model = None,
    adapter: opt.Adapters = None,
    mmproj: opt.Mmproj = None,
    yes: opt.Yes = False,
    system: opt.System = "",
    *,
    sampling: Params,
    thinking: Thinking,
    engine: EngineOptions,
    cost_profile: opt.CostProfile = None,
    connect: Connect = None,
    api_key: ApiKey = None,
    ca: Ca = None,
    insecure: Insecure = False,
    no_history: NoHistory = False,
    session: SessionName = None,
    context_shift: opt.ContextShift = None,
) -> None:
    """Talk with a model in the terminal."""
    given = _given(ctx)
    check_sides(given)
    history = History(None if no_history else history_path())
    model = one_of(named, model)
    chosen = opt.chosen(**sampling)
    if connect is not None:
        from gangpao.commands.terminal import remote as remote

        asked = {name: value for name, value in chosen.items() if name in given}
        with closing(
            remote.connect(
                connect, model, asked, system=system, api_key=api_key, ca=ca, insecure=insecure, thinking=thinking
            )
        ) as there:
            converse(there, history=history)
    else:
        meter, kept = cost.Meter(cost_profile), KeptChat(session) if session else None
        load = loading.with_own(partial(loading.load_engine, options=engine, yes=yes), model, adapter, mmproj)
        # Nobody else holds the engine, so that another one finds its memory free.
        here = Local(
            load(model), chosen, meter=meter, load=load, source=model, system=system, kept=kept, shifts=context_shift is not False,
            thinking=thinking,
        )  # fmt: skip
        known = catalog.load().models.get(here.model_name)
        if kept is not None:
            note(kept.begin(here))
        try:
            converse(here, known.question if known else "", history)
        finally:
            if kept is not None:
                kept.end(here)


def converse(talk: Talk, question: str = "", history: History | None = None) -> None:
    """Answer what is typed, or without a terminal one question: this one, else the built-in one. history: where what is typed is
    kept; the usual file if not given."""
    question = question or DEMO
    session = Chat(talk)
    if sys.stdin.isatty():
        session.loop(history or History(history_path()))
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
    wrong = given & (LOCAL_ONLY if "connect" in given else REMOTE_ONLY)
    if wrong:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(wrong))
        why = "a model in this process, not a server's" if "connect" in given else "a server: give --connect URL, too"
        raise ValueError(f"{names}: only for {why}")


class Chat:
    """One conversation with its totals. Prints to stdout."""

    def __init__(self, conversation: Talk) -> None:
        self.conversation = conversation
        self.answers = 0
        self.tokens = 0
        self.seconds = 0.0
        self.decode_steps = 0
        self.decode_s = 0.0
        self.attempts = 0  # answers to the last question after the first
        self.thoughts = ""
        self.pictures: list[Picture] = []  # for the next question

    def loop(self, history: History) -> None:
        """Read and answer until the user leaves."""
        history.begin()
        # \x01 and \x02 tell readline that what they enclose takes no room on the line.
        prompt = "\x01\x1b[1m\x02>\x01\x1b[0m\x02 " if screen.colors(sys.stdout) else "> "
        note(f"{self.conversation.greeting()}. /help lists commands.")
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
                note("Ctrl-C again (or Ctrl-D) leaves.")
                continue
            finally:
                history.keep()
            interrupted = False
            if re.match(r"/\w*(\s|$)", text):
                if not self.command(text.strip()):
                    return
            elif text.strip():
                self.attempts = 0
                self._ask(text.strip())

    def _ask(self, text: str) -> None:
        """A question, or a picture that was dragged in, with or without words beside it."""
        path, words = attach.dragged(text)
        try:
            if path is not None:
                self._attach(path)
        except ValueError as error:
            complain(error)
            return
        if path is not None and not words:
            note(self._attached())
        elif self.answer(words, self.pictures):
            self.pictures = []

    def _attach(self, path: Path) -> None:
        if why := self.conversation.sees():
            raise ValueError(why)
        self.pictures = [*self.pictures, attach.load(path, whole=True)]

    def _attached(self) -> str:
        shown = ", ".join(f"{p.width} x {p.height}" for p in self.pictures)
        return f"{len(self.pictures)} picture{'s' if len(self.pictures) > 1 else ''} ({shown}) for your next question"

    def _image(self, line: str) -> str:
        if line == "none":
            self.pictures = []
            return "no picture"
        path, words = attach.split_path(line)
        if path is None:
            return self._attached() if self.pictures else "which? /image FILE; /image none takes pictures back"
        self._attach(path)
        if not words:
            return self._attached()
        self.attempts = 0
        if self.answer(words, self.pictures):
            self.pictures = []
        return ""

    def answer(self, text: str, pictures: Sequence[Picture] = ()) -> bool:
        """Stream the answer to one question; Ctrl-C ends it and keeps what was said. False after an error, which is shown."""
        try:
            progress = _prefill_progress if sys.stdout.isatty() else None
            run = self.conversation.ask(text, progress, attempt=self.attempts, pictures=pictures)
        except ValueError as error:
            complain(error)
            return False
        except KeyboardInterrupt:
            print()
            return True
        if self.conversation.dropped:
            note(
                f"(dropped the {self.conversation.dropped} oldest messages: the context is full; a larger --context holds more)"
            )
        stopped, failure = self._show(run)
        self.thoughts = run.thoughts
        self._count(run)
        note(self.conversation.figures(run) + (" · stopped" if stopped else ""))
        if run.stats.dropped_tokens:
            note(
                f"(the context is full: its {run.stats.dropped_tokens} oldest tokens were dropped; a larger --context holds more)"
            )
        if failure:
            complain(failure)
        elif run.finish_reason == "length":
            note(self._cut_off(run))
        return failure is None

    def _cut_off(self, run: Run) -> str:
        """Why an answer was cut off, and what helps."""
        limit = self.conversation.setting("max_tokens")
        spent = isinstance(limit, int) and run.stats.completion_tokens >= limit
        full = "the context is full, a larger --context holds more"
        why = f"max_tokens is {limit}, /set max_tokens changes it" if spent else full
        lost = "; nothing but a thought came, so the question is not kept" if run.thoughts and not run.text else ""
        return f"(cut off: {why}{lost})"

    def _show(self, run: Run) -> tuple[bool, ValueError | None]:
        """The answer on the screen, and remembered; whether it was stopped, and how it failed."""
        display = wrap.Display()
        stopped, failure = False, None
        try:
            for said in run:
                display.show(said)
        except KeyboardInterrupt:
            stopped = True
        except ValueError as error:
            failure = error
        finally:
            self.conversation.keep(run)
            display.end()
        return stopped, failure

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
            "help": _help,
            "model": self._model,
            "set": self._set,
            "image": self._image,
            "retry": self._retry,
            "think": self._think,
            "no_think": lambda _: self._think("off"),
            "thoughts": lambda _: self.thoughts or "the last answer came without a thought",
            "reset": self._reset,
            "system": self._system,
            "stats": self._stats,
            "save": self._save,
        }
        if name not in actions:
            print(
                wrap.wrapped(f"there is no command /{name}; {_nearest(name, [*actions, 'quit'], '/')}/help lists them")
            )
            return True
        try:
            said = actions[name](rest.strip())
        except (ValueError, OSError) as error:
            complain(error)
            return True
        except KeyboardInterrupt:
            said = "stopped"
        if said:
            print(wrap.wrapped(plain(said)))
        return True

    def _model(self, name: str) -> str:
        if not name:
            rows = [
                f"{'*' if known == self.conversation.model_name else ' '} {known}"
                for known in self.conversation.models()
            ]
            return "\n".join(rows) + "\n/model NAME goes on with another one (* is in use)"
        self.conversation.switch(name)
        return f"{self.conversation.greeting()}; it reads the conversation anew at your next question"

    def _set(self, line: str) -> str:
        name, _, value = line.partition(" ")
        name, value = name.replace("-", "_"), value.strip()
        known = (*opt.SETTINGS, "system")
        if not name:
            return "\n".join(f"{name:20} {self._setting(name)}" for name in known)
        if name not in known:
            raise ValueError(f"there is no setting {name}; {_nearest(name, known)}/set lists them")
        if value and name == "system":
            return self._system(value)
        if value:
            self.conversation.set(name, None if value == "default" else opt.setting_of(name, value))
        about = "" if name == "system" or value else f"; {opt.help_of(name)}"
        return f"{name} is {self._setting(name)}{about}"

    def _setting(self, name: str) -> str:
        if name == "system":
            return self.conversation.system or "(none)"
        value = self.conversation.setting(name)
        return str(value) if value is not None else self.conversation.unset

    def _retry(self, _: str) -> str:
        if self.conversation.setting("temperature") == 0:
            raise ValueError("at temperature 0 the answer would be the same: /set temperature 0.7, then /retry")
        taken = self.conversation.undo()
        count = len(self.conversation.turns)
        self.attempts += 1
        try:
            self.answer(taken[0]["content"], [picture for _, picture in taken[0].get("pictures", ())])
        finally:
            if len(self.conversation.turns) == count:  # no word came: what was there stays
                self.conversation.turns += taken
        return ""

    def _think(self, text: str) -> str:
        if text:
            self.conversation.thinking = Thinking.typed(text)
        return f"thinking: {self.conversation.thinking}"

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
            text = json.dumps({"messages": [attach.as_parts(m) for m in messages]}, ensure_ascii=False, indent=1) + "\n"
        else:
            text = "".join(f"## {m['role']}\n\n{_pictured(m)}{m['content']}\n\n" for m in messages)
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
    sys.stdout.write(screen.dim(f"\rreading {done} of {total} tokens ") if done < total else "\r\x1b[K")
    sys.stdout.flush()


def _help(_: str) -> str:
    width = max(len(name) for name, _ in HELP) + 1
    rows = [f"{name:{width}}{wrap.wrapped(text, ' ' * width)}" for name, text in HELP]
    return "\n".join([*rows, HELP_END])


def _pictured(message: Message) -> str:
    """A line about the pictures of a message, for a file of text."""
    shown = [f"{p.kind} {p.width} x {p.height}" for _, p in message.get("pictures", ())]
    return f"[{', '.join(shown)}]\n\n" if shown else ""


def _nearest(word: str, known: Sequence[str], mark: str = "") -> str:
    """A hint at what was meant, or nothing."""
    found = difflib.get_close_matches(word, known, 1, 0.5)
    return f"did you mean {mark}{found[0]}? " if found else ""


def note(text: str) -> None:
    """A dim line about the conversation, wrapped."""
    print(screen.dim(wrap.wrapped(text)))


def complain(error: Exception) -> None:
    """An error, wrapped."""
    print(wrap.wrapped(f"error: {error}"))
