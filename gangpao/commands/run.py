"""`gangpao run`: one prompt in, one answer out, made for pipes.

Only the answer goes to stdout, piece by piece as it comes; loading progress, choices, figures and what a model thinks before it
answers go to stderr, and only when that is a terminal. With --json stdout carries exactly one JSON object, after the answer has
ended.
"""

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gangpao import catalog, cost
from gangpao.commands import options as opt
from gangpao.commands.model import find, loading, sight
from gangpao.commands.terminal import attach, screen
from gangpao.commands.terminal.conversation import NO_SIGHT, fit, head_of, question_of
from gangpao.engine.generate import Engine, Generation, Session
from gangpao.engine.memory import EngineOptions
from gangpao.engine.pictures.seeing import PictureError
from gangpao.engine.sample import SamplingParams, TokenLogprob
from gangpao.engine.saved import session as session_file
from gangpao.engine.thinking.options import Thinking
from gangpao.engine.thinking.rule import NOTHING_SAID, rule_of
from gangpao.images.look import Picture
from gangpao.options import Fields, command_of
from gangpao.pull import refs
from gangpao.text.thoughts import Said, split
from gangpao.units import plain

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL] [PROMPT]", show_default=False,
        help="What to ask, behind the model unless -m names it; - or nothing reads stdin.",
    ),
]  # fmt: skip
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="A picture or a video in front of the prompt: PNG, JPEG, WebP, GIF, MP4, WebM; repeatable.",
    ),
]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")]
SessionFile = Annotated[
    Path | None,
    typer.Option(
        "--session", metavar="FILE", show_default=False,
        help="Keep what was computed of prompt and answer in FILE, and take from it what a prompt has in common with it.",
    ),
]  # fmt: skip


Params = Annotated[
    dict[str, Any],
    Fields(
        SamplingParams,
        (
            "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
            "seed", "logprobs",
        ),
    ),
]  # fmt: skip


@command_of(after={"logprobs": "logit_bias"})
def run(
    words: Words = None,
    model: opt.Model = None,
    adapter: opt.Adapters = None,
    mmproj: opt.Mmproj = None,
    image: Images = None,
    yes: opt.Yes = False,
    as_json: opt.Json = False,
    system: opt.System = "",
    raw: Raw = False,
    session: SessionFile = None,
    context_shift: opt.ContextShift = None,
    *,
    sampling: Params,
    stop: opt.Stop = None,
    logit_bias: opt.LogitBias = None,
    thinking: Thinking,
    engine: EngineOptions,
    cost_profile: opt.CostProfile = None,
) -> None:
    """Answer one prompt: text, or one JSON object, on stdout."""
    chosen = opt.chosen(**sampling, stop=tuple(stop or ()), logit_bias=opt.bias_of(logit_bias))
    model, prompt = model_and_prompt(words or [], model)
    talks = prompt is None and model is not None and sys.stdin.isatty() and not (as_json or raw)
    pictures = [attach.load(path.expanduser()) for path in image or ()]
    if pictures and (talks or raw):
        raise ValueError("--image needs a prompt, and a chat template: leave --raw out, and ask something")
    if session and talks:
        raise ValueError("--session FILE needs a prompt; a conversation is kept by `gangpao chat --session NAME`")
    text = "" if talks else read_prompt(prompt)
    meter = cost.Meter(cost_profile)
    # Without a picture nothing is to be seen, and what it takes to see is memory and seconds.
    sees = mmproj if talks or pictures or mmproj is not None else sight.NONE
    load = loading.with_own(partial(loading.load_engine, options=engine, yes=yes), model, adapter, sees)
    if talks:  # `run MODEL` at a terminal is a conversation, as with Ollama
        from gangpao.commands import chat
        from gangpao.commands.terminal.local import Local

        chat.converse(
            Local(load(model), chosen, meter=meter, load=load, source=model, system=system, thinking=thinking)
        )
    else:
        loaded = load(model)
        params = loaded.recommended(thinking=thinking.on, **chosen)
        kept = _restored(loaded, session)
        try:
            generation = start(
                loaded, text, params, system=system, raw=raw, pictures=pictures, session=kept, shifts=bool(context_shift),
                thinking=thinking,
            )  # fmt: skip
        except PictureError as error:
            raise ValueError(f"{(image or ())[error.index]}: {error}") from None
        try:
            _answer(generation, loaded, meter, as_json, params.logprobs is not None)
        finally:
            generation.close()
            if session and kept:
                session_file.save(session, kept)


def _restored(engine: Engine, path: Path | None) -> Session | None:
    """A session with what the file has, if there is one. Raises ValueError for a file that cannot be used; it stays as it is."""
    if path is None:
        return None
    session = engine.session()
    if path.exists():
        session_file.restore(path, session)
    return session


def _answer(generation: Generation, engine: Engine, meter: cost.Meter, as_json: bool, logprobs: bool) -> None:
    tokens: list[TokenLogprob] | None = [] if logprobs else None
    _consume(generation, tokens, quiet=as_json)
    if as_json:
        print(json.dumps(document(engine, generation, meter, tokens), ensure_ascii=False))
    else:
        screen.note(screen.figures(generation.stats, meter.yuan(generation.stats.seconds)))


def model_and_prompt(words: list[str], model: str | None) -> tuple[str | None, str | None]:
    """The model and the prompt of `run [-m MODEL] [MODEL] [PROMPT ...]`; None for what is not there.

    Raises ValueError where the first of several words is no model, and where a lone word looks like the name of one.
    """
    if model is None and words and (find.means_model(words[0]) or (len(words) > 1 and refs.parse(words[0]))):
        model, words = words[0], words[1:]
    elif model is None and len(words) > 1:
        raise ValueError(
            f"{words[0]!r:.60}: no such model.{catalog.near(words[0])} A prompt of several words is written in quotes"
        )
    elif model is None and words and find.looks_like_model(words[0]):
        prompt = shlex.quote(words[0])
        raise ValueError(
            f"{words[0]!r:.60}: no such model.{catalog.near(words[0])} If it is a prompt: gangpao run -m MODEL {prompt:.80}"
        )
    return model, " ".join(words) if words else None


def read_prompt(argument: str | None) -> str:
    """The prompt of the command line, or all of stdin. Raises ValueError when there is none, or it is not UTF-8."""
    if argument is not None and argument != "-":
        text = argument
    elif argument is None and sys.stdin.isatty():
        raise ValueError('no prompt: gangpao run "your question", or pipe it in (`gangpao chat` is for conversations)')
    else:
        text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("the prompt is not UTF-8 text: convert it first, for example with iconv")
    if not text.strip():
        raise ValueError("the prompt is empty")
    return text


def start(
    engine: Engine,
    text: str,
    params: SamplingParams,
    *,
    system: str = "",
    raw: bool = False,
    pictures: Sequence[Picture] = (),
    session: Session | None = None,
    shifts: bool = False,
    thinking: Thinking = NOTHING_SAID,
) -> Generation:
    """Begin an answer to one message behind its pictures, or (raw) a continuation of the text, in which special tokens count as
    such. shifts: whether the oldest is dropped of what fills the context."""
    if raw:
        ids = engine.tokenizer.encode(text, add_bos=engine.tokenizer.adds_bos, parse_special=True)
        shift = engine.shift() if shifts else None
        return engine.generate(ids, params, continues=True, session=session, shift=shift, pool=False)
    if pictures and engine.seeing is None:
        raise ValueError(NO_SIGHT.format(engine.name))
    ids, _, shown = fit(engine, system, [question_of(text, pictures)], room=1, cuts=shifts, thinking=thinking)
    hold, axes = attach.see(engine, shown) if shown else None, engine.axes(ids, shown)
    if shifts and axes is not None:
        raise ValueError(
            "--context-shift: pictures of this model lie on a canvas, from which nothing can be dropped: leave it out"
        )
    shift = engine.shift(head_of(system)) if shifts else None
    rule = rule_of(engine.template, engine.tokenizer, ids, thinking) if engine.template.thoughts else None
    return engine.generate(
        ids, params, session=session, stop=engine.template.stop, pictures=hold, axes=axes, shift=shift, thinking=rule,
        pool=False,
    )  # fmt: skip


def _consume(generation: Generation, tokens: list[TokenLogprob] | None, *, quiet: bool) -> None:
    splitter, thinking = generation.splitter(), False
    for piece in generation:
        if tokens is not None:
            tokens.extend(piece.logprobs)
        if not quiet:
            thinking = _show(splitter.push(piece.text), thinking)
    if not quiet:
        _show(splitter.finish(), thinking)
    if not quiet and not generation.text.endswith("\n"):
        print(flush=True)


def _show(said: Iterable[Said], thinking: bool) -> bool:
    """Pieces of thought and answer, where each belongs; thinking, then and returned: whether the last one was a thought."""
    for one in said:
        if not one.thought:
            screen.note("") if thinking else None
            screen.show(one.text)
        elif sys.stderr.isatty():
            text = plain(one.text)
            print(f"\x1b[2m{text}\x1b[0m" if screen.colors(sys.stderr) else text, end="", file=sys.stderr, flush=True)
        thinking = one.thought
    return thinking


def document(
    engine: Engine, generation: Generation, meter: cost.Meter, tokens: list[TokenLogprob] | None = None
) -> dict[str, Any]:
    """The JSON object of an answer; seconds and tokens a second as in Stats. A thought before the answer is its `reasoning`."""
    stats = generation.stats
    thought, text = split(generation.text, generation.splitter())
    out: dict[str, Any] = {
        "text": text,
        **({"reasoning": thought} if thought else {}),
        "model": engine.name,
        "finish_reason": generation.finish_reason,
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.completion_tokens,
        **({"dropped_tokens": stats.dropped_tokens} if stats.dropped_tokens else {}),
        **({"cached_tokens": stats.cached_tokens} if stats.cached_tokens else {}),
        **({"reasoning_tokens": stats.reasoning_tokens} if stats.reasoning_tokens else {}),
        "ttft_s": round(stats.ttft_s, 4),
        "prefill_tps": round(stats.prefill_tps, 2),
        "decode_tps": round(stats.decode_tps, 2),
        "drafted": stats.drafted,
        "accepted": stats.accepted,
        "yuan": meter.yuan(stats.seconds),
        "seed": generation.seed,
    }
    if tokens is not None:
        out["logprobs"] = [_logprob(engine, t.id, t.logprob) | {"top": _top(engine, t)} for t in tokens]
    return out


def _top(engine: Engine, token: TokenLogprob) -> list[dict[str, Any]]:
    return [_logprob(engine, i, value) for i, value in token.top]


def _logprob(engine: Engine, token: int, value: float) -> dict[str, Any]:
    return {"id": token, "token": engine.tokenizer.decode([token]), "logprob": round(value, 6)}
