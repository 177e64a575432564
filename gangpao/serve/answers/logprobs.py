"""Log-probabilities as the APIs write them: tokens by name, alternatives, places in the text.

A token that is no whole text by itself (a part of a Chinese character) is named by its bytes, as OpenAI does: `bytes:\\xe5\\x8c`.
No two tokens of a place have the same name, and the chosen one is always among the alternatives.
"""

from collections.abc import Sequence
from typing import Any

from gangpao.engine.sample import TokenLogprob
from gangpao.text.tokenizer import Tokenizer


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """A token's text, or its bytes where they are no text."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _named(tokenizer: Tokenizer, values: Sequence[tuple[int, float]]) -> dict[str, float]:
    """Log-probabilities by name; of two tokens that are spelled alike the second goes by its id, as in vLLM."""
    out: dict[str, float] = {}
    for token, value in values:
        name = token_name(tokenizer, token)
        out[name if name not in out else f"token_id:{token}"] = _rounded(value)
    return out


def _with_chosen(entry: TokenLogprob) -> list[tuple[int, float]]:
    chosen = (entry.id, entry.logprob)
    return [*entry.top, *(() if any(i == entry.id for i, _ in entry.top) else (chosen,))]


def _rounded(value: float) -> float:
    return round(value, 6)


def completion_form(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    entries: Sequence[TokenLogprob | None],
    offsets: Sequence[int],
    alternatives: int,
) -> dict[str, Any]:
    """The form of /v1/completions: lists side by side; None is a token that has nothing before it.

    offsets: characters of the choice's text, prompt included where it is echoed.
    """
    values = [None if e is None else _rounded(e.logprob) for e in entries]
    tops = [None if e is None else _named(tokenizer, _with_chosen(e.cut(alternatives))) for e in entries]
    tokens = [token_name(tokenizer, i) for i in ids]
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": list(offsets)}


def prompt_form(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprob | None], alternatives: int
) -> list[dict[str, Any] | None]:
    """vLLM's prompt_logprobs: for each token of the prompt itself and its alternatives, by id."""

    def one(entry: TokenLogprob) -> dict[str, Any]:
        places = {entry.id: (entry.logprob, entry.rank)}
        places |= {i: (value, rank) for rank, (i, value) in enumerate(entry.cut(alternatives).top, 1)}
        return {
            str(i): {"logprob": _rounded(value), "rank": rank, "decoded_token": token_name(tokenizer, i)}
            for i, (value, rank) in places.items()
        }

    return [None if entry is None else one(entry) for entry in entries]


def prompt_offsets(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[int]:
    """The character of `text` at which each of a prompt's tokens begins; a BOS that was put in front of it takes no room."""
    unseen = int(bool(ids) and ids[0] == tokenizer.bos_id and not text.startswith(token_name(tokenizer, ids[0])))
    stream, offsets, at = tokenizer.stream(keep_special=True), [0] * unseen, 0
    for token in ids[unseen:]:
        offsets.append(min(at, len(text)))
        at += len(stream.push(token))
    return offsets


def chat_form(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """The form of chat completions, which has bytes of its own beside a text."""

    def one(token: int, value: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": _rounded(value), "bytes": list(data)}

    return [{**one(e.id, e.logprob), "top_logprobs": [one(i, v) for i, v in e.top]} for e in entries]
