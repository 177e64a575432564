"""`gangpao watch`: a camera, a video or a folder of pictures, told in sentences; questions about it are answered meanwhile.

Two things happen at once on a terminal: frames are described in a thread, each a line as it comes, and what is typed is answered
from the log, which is text only. `/now QUESTION` goes with the newest frame. Without a terminal the source is watched to its
end, and each line of stdin is a question then. Without --connect the model is served by a process of our own, for as long.

Seconds behind are counted from the moment a frame was taken until its sentence stands there.
"""

import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from gangpao.commands import chat
from gangpao.commands import options as opt
from gangpao.commands.terminal import screen
from gangpao.commands.watch.child import served
from gangpao.commands.watch.describe import Describer
from gangpao.commands.watch.live import Newest
from gangpao.commands.watch.log import Entry, Log, clock
from gangpao.images import video
from gangpao.openai_client import RemoteError, Server, tls

PROMPT = "Describe what this picture shows in one short sentence."
HELP = (
    "Type a question about what was seen; /now QUESTION asks about the newest frame; /quit ends (Ctrl-C and Ctrl-D do)."
)

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A video file, an animation, a folder of pictures, or a camera: /dev/video0."
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option("--log", metavar="FILE", help="Keep what was seen as JSON lines; one that is there is gone on with."),
]
Every = Annotated[float, typer.Option("--every", min=0.05, max=3600, help="Seconds between frames that are looked at.")]
Changed = Annotated[
    float,
    typer.Option(
        "--changed",
        min=0,
        max=255,
        help="How much a frame must differ: levels of 255, the mean of a thumbnail; 0: always.",
    ),
]
Prompt = Annotated[str, typer.Option("--prompt", help="What is asked of each frame.")]
Side = Annotated[
    int, typer.Option("--size", min=56, max=4096, help="Frames are sent with at most SIZE x SIZE pixels in all.")
]
Tokens = Annotated[
    int, typer.Option("--max-tokens", min=1, max=4096, help="Tokens of a description or an answer at most.")
]
Paced = Annotated[
    bool, typer.Option("--live", help="Play a file at its own speed, as a camera: late frames are left out.")
]


def watch(
    source: Source,
    connect: chat.Connect = None,
    model: opt.Model = None,
    yes: opt.Yes = False,
    log: LogFile = None,
    every: Every = 1.0,
    changed: Changed = video.CHANGED,
    prompt: Prompt = PROMPT,
    size: Side = 448,
    max_tokens: Tokens = 64,
    paced: Paced = False,
    api_key: chat.ApiKey = None,
    ca: chat.Ca = None,
    insecure: chat.Insecure = False,
) -> None:
    """Tell what a camera, a video or a folder of pictures shows, and answer questions about it."""
    is_camera = source.startswith("/dev/")
    if not is_camera and not Path(source).exists():
        raise ValueError(f"there is no {source}: give a video file, a folder of pictures, or a camera like /dev/video0")
    kept = Log(log, source)
    found = video.camera(source, every) if is_camera else video.frames(Path(source), every)
    # A camera's seconds begin anew with every run; those of a file are where a run goes on.
    after = -math.inf if is_camera else kept.reached
    newest = Newest(found, live=is_camera, paced=paced, changes=video.Changes(changed), after=after)
    here = connect is None
    with (
        served(model, yes=yes) if connect is None else nullcontext(connect) as url,
        closing(Server(url, api_key, tls(ca, insecure), on_wait=screen.note)) as server,
    ):
        params = {"max_tokens": max_tokens, "temperature": 0}
        describer = Describer(server, server.pick(None if here else model), prompt, size, params)
        screen.note(f"{describer.model} at {server.base}; {len(kept.entries)} lines of {source} are known")
        if sys.stdin.isatty():
            _at_a_terminal(newest, describer, kept)
        else:
            _describe(newest, describer, kept)
            _answer(iter(sys.stdin), newest, describer, kept)


def _describe(newest: Newest, describer: Describer, log: Log) -> None:
    """Describe frames until the source ends. Raises ValueError of the source or the server."""
    for seen in newest.frames():
        text = describer.describe(seen.frame)
        entry = Entry(seen.frame.seconds, text, time.monotonic() - seen.taken)
        log.saw(entry)
        behind = screen.dim(f"  {entry.behind:.1f} s behind")
        screen.show(f"[{clock(entry.seconds)}] {entry.text}")
        print(behind, flush=True)
    late = f", {newest.dropped} came too late" if newest.dropped else ""
    screen.note(f"the source has ended; {newest.unchanged} frames showed nothing new{late}")


def _at_a_terminal(newest: Newest, describer: Describer, log: Log) -> None:
    """Describe in a thread, answer what is typed meanwhile. Raises what ended the describing, once the typing has ended."""
    problem: list[ValueError] = []

    def work() -> None:
        try:
            _describe(newest, describer, log)
        except ValueError as error:
            problem.append(error)
            print(f"error: {error}", file=sys.stderr)

    screen.note(HELP)
    threading.Thread(target=work, daemon=True).start()
    try:
        _answer(_typed(), newest, describer, log)
    except (KeyboardInterrupt, EOFError):
        print()
    finally:
        newest.stop()
    if problem:
        raise typer.Exit(2)


def _typed() -> Iterator[str]:
    while True:
        yield input()


def _answer(lines: Iterator[str], newest: Newest, describer: Describer, log: Log) -> None:
    """Answer each line that is a question until there are no more, or one says /quit."""
    for line in lines:
        question, frame = line.strip(), None
        if question == "/quit":
            return
        if question.startswith("/now "):
            question, frame = question.removeprefix("/now ").strip(), newest.newest
            if frame is None:
                print("error: there is no frame yet", file=sys.stderr)
                continue
        elif question.startswith("/"):
            screen.note(HELP)
            continue
        if not question:
            continue
        try:
            text = describer.answer(question, log, frame)
        except RemoteError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        log.answered(question, text)
        screen.show(f"{text}\n")
