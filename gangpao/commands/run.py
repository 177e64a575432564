"""`gangpao run`: one prompt in, one answer out, made for pipes.

Only the answer goes to stdout, piece by piece as it comes; loading progress, choices, figures and what a model thinks before it
answers go to stderr, and only when that is a terminal. With --json stdout carries exactly one JSON object, after the answer has
ended.
"""

import json
import sys
from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any

import typer

from gangpao import catalog, cost
from gangpao.commands import options as opt
from gangpao.commands.model import find, loading
from gangpao.commands.terminal import screen
from gangpao.commands.terminal.conversation import fit
from gangpao.engine.generate import Engine, Generation
from gangpao.engine.memory import EngineOptions
from gangpao.engine.sample import SamplingParams, TokenLogprob
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
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")]


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
    yes: opt.Yes = False,
    as_json: opt.Json = False,
    system: opt.System = "",
    raw: Raw = False,
    *,
    sampling: Params,
    stop: opt.Stop = None,
    logit_bias: opt.LogitBias = None,
    engine: EngineOptions,
    cost_profile: opt.CostProfile = None,
) -> None:
    """Answer one prompt: text, or one JSON object, on stdout."""
    chosen = opt.chosen(**sampling, stop=tuple(stop or ()), logit_bias=opt.bias_of(logit_bias))
    model, prompt = model_and_prompt(words or [], model)
    talks = prompt is None and model is not None and sys.stdin.isatty() and not (as_json or raw)
    text = "" if talks else read_prompt(prompt)
    meter = cost.Meter(cost_profile)
    load = loading.with_adapters(partial(loading.load_engine, options=engine, yes=yes), model, adapter)
    if talks:  # `run MODEL` at a terminal is a conversation, as with Ollama
        from gangpao.commands import chat

        chat.converse(chat.Local(load(model), chosen, meter=meter, load=load, source=model, system=system))
    else:
        loaded = load(model)
        params = loaded.recommended(**chosen)
        generation = start(loaded, text, params, system=system, raw=raw)
        _answer(generation, loaded, meter, as_json, params.logprobs is not None)


def _answer(generation: Generation, engine: Engine, meter: cost.Meter, as_json: bool, logprobs: bool) -> None:
    tokens: list[TokenLogprob] | None = [] if logprobs else None
    _consume(generation, tokens, quiet=as_json)
    if as_json:
        print(json.dumps(document(engine, generation, meter, tokens), ensure_ascii=False))
    else:
        screen.note(screen.figures(generation.stats, meter.yuan(generation.stats.seconds)))


def model_and_prompt(words: list[str], model: str | None) -> tuple[str | None, str | None]:
    """The model and the prompt of `run [-m MODEL] [MODEL] [PROMPT ...]`; None for what is not there.

    Raises ValueError where the first of several words is no model.
    """
    if model is None and words and (find.means_model(words[0]) or (len(words) > 1 and refs.parse(words[0]))):
        model, words = words[0], words[1:]
    elif model is None and len(words) > 1:
        raise ValueError(
            f"{words[0]!r:.60}: no such model.{catalog.near(words[0])} A prompt of several words is written in quotes"
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


def start(engine: Engine, text: str, params: SamplingParams, *, system: str = "", raw: bool = False) -> Generation:
    """Begin an answer to one message, or (raw) a continuation of the text, in which special tokens count as such."""
    if raw:
        ids = engine.tokenizer.encode(text, add_bos=engine.tokenizer.adds_bos, parse_special=True)
        return engine.generate(ids, params, continues=True)
    ids, _ = fit(engine, system, [{"role": "user", "content": text}], room=1)
    return engine.generate(ids, params, stop=engine.template.stop)


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
        "ttft_s": round(stats.ttft_s, 4),
        "prefill_tps": round(stats.prefill_tps, 2),
        "decode_tps": round(stats.decode_tps, 2),
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
