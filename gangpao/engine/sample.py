"""Choose the next token from one vector of logits.

The idea: never sort the vocabulary. A vocabulary has 150,000 entries and a filter keeps a few dozen, so every filter
works on a short ascending array of candidate ids, and the only passes over the whole vector are cheap ones (a maximum,
a comparison). The order is: penalties and logit_bias, top_k, top_p (over what top_k left), min_p, then one draw from
the softmax at the given temperature. temperature 0 takes the largest logit after penalties and bias; ties go to the
lower id everywhere. One PCG64 generator a request makes the same seed give the same text, on every machine (exact.py).

What it gives up: a top_k that the caller switches off (0) costs a pass of exp over the vocabulary. Log
probabilities are those of the model itself (temperature 1, before penalties, bias and filters), so they can be compared
between requests with different settings.
"""

import copy
import math
import secrets
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gangpao.engine import exact
from gangpao.options import option

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

# The repetition penalty looks at this many last tokens of prompt and answer together: enough for a loop of several
# sentences, and short enough that a long chat does not slowly forbid its own vocabulary.
REPETITION_WINDOW = 256
_NOT_FINITE = "the model's logits are not finite: the model file is damaged or not supported correctly"
_LOWEST = np.finfo(np.float32).min
_MANY = 4096  # candidates for which exact weights take longer than rough ones that are mostly enough
_MARGIN = 2e-4
_BLOCK = 512
MAX_STOP = 4096  # each costs some microseconds a token
MAX_STOP_CHARS = 4096
MAX_LOGIT_BIAS = 1024
MOST = 128  # largest logits that are searched for: a longer list is nearly all of the vocabulary
MOST_KNOWN = 2048  # ids whose logits are asked for by name


_MODELS = "the model's own"  # where a command is not told; Engine.recommended fills it in


def _setting(default: Any, low: float, high: float, help: str, unset: str = "") -> Any:
    return option(default, help, low, high, unset=unset)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What one request asks of the sampler. The defaults change nothing: draws from the model's own distribution.

    A model's recommended values are data (`recommended_in`, catalog.toml) and no part of these defaults.
    Bounds and one-line help live in the field metadata; the command line takes both from there.
    Raises ValueError naming the field, its bounds and the value.
    """

    temperature: float = _setting(1.0, 0.0, 5.0, "Randomness; 0 always takes the most likely token.", _MODELS)
    top_k: int = _setting(0, 0, 1_000_000, "Keep the K most likely tokens; 0 keeps all.", _MODELS)
    top_p: float = _setting(1.0, 0.0, 1.0, "Keep the fewest tokens whose probabilities reach P; 1 keeps all.", _MODELS)
    min_p: float = _setting(0.0, 0.0, 1.0, "Keep tokens at least P times as likely as the best; 0 keeps all.", _MODELS)
    repetition_penalty: float = _setting(
        1.0,
        0.1,
        10.0,
        f"Divide the logits of the last {REPETITION_WINDOW} tokens of prompt and answer; 1 is off.",
        _MODELS,
    )
    presence_penalty: float = _setting(0.0, -2.0, 2.0, "Subtract from the logits of tokens already in the answer.")
    frequency_penalty: float = _setting(0.0, -2.0, 2.0, "The same, times how often the token is in the answer.")
    seed: int | None = _setting(None, 0, 2**63 - 1, "Same seed, same text; random (and reported) when not given.")
    max_tokens: int = _setting(1024, 1, 1_000_000, "End the answer after this many tokens.")
    logprobs: int | None = _setting(None, 0, 20, "Report log probabilities, with this many alternatives a token.")
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.metadata:
                _check_number(f.name, getattr(self, f.name), f.metadata, whole="int" in str(f.type))
        _check_stop(self.stop)
        _check_bias(self.logit_bias)


# What a model may recommend, and its names as general.sampling.* of a GGUF file, which are llama.cpp's.
_FILE_NAMES = {
    "temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "penalty_repeat",
}  # fmt: skip
# For a talk with a model that recommends nothing: Ollama's documented values, without its former repetition penalty.
UNSAID: Mapping[str, float] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}


def recommended_in(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The sampling settings that a GGUF file recommends, by our names. A value out of our bounds counts as not said."""
    out: dict[str, float] = {}
    for name, theirs in _FILE_NAMES.items():
        value: Any = metadata.get(f"general.sampling.{theirs}")
        if isinstance(value, float) and value.is_integer() and name == "top_k":
            value = int(value)
        try:
            SamplingParams(**{name: value})
        except (
            ValueError
        ):  # not there, or another program's file: a bad recommendation is no reason to refuse the model
            continue
        out[name] = value
    return out


def _check_number(name: str, value: object, bounds: Mapping[str, Any], *, whole: bool) -> None:
    if value is None and name in ("seed", "logprobs"):
        return
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, got {value!r:.60}")
    assert isinstance(value, (int, float))
    # NaN fails both comparisons, so it is refused here too.
    if not bounds["low"] <= value <= bounds["high"]:
        raise ValueError(f"{name} must be from {bounds['low']} to {bounds['high']}, got {value!r:.60}")


def _check_stop(stop: object) -> None:
    if not isinstance(stop, tuple) or not all(isinstance(s, str) for s in stop):
        raise ValueError("stop must be a tuple of strings")
    if len(stop) > MAX_STOP:
        raise ValueError(f"stop takes at most {MAX_STOP} strings, got {len(stop)}")
    for s in stop:
        if not 1 <= len(s) <= MAX_STOP_CHARS:
            raise ValueError(
                f"stop: a stop string must have 1 to {MAX_STOP_CHARS} characters, got {len(s)}; give a part of it"
            )


def _check_bias(bias: object) -> None:
    if not isinstance(bias, Mapping):
        raise ValueError("logit_bias must map token ids to numbers")
    if len(bias) > MAX_LOGIT_BIAS:
        raise ValueError(f"logit_bias takes at most {MAX_LOGIT_BIAS} tokens, got {len(bias)}")
    for key, value in bias.items():
        if isinstance(key, bool) or not isinstance(key, int) or key < 0:
            raise ValueError(f"logit_bias: {key!r:.60} is not a token id")
        _check_number(f"logit_bias[{key}]", value, {"low": -100.0, "high": 100.0}, whole=False)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of a chosen token under the model itself, and the likeliest alternatives, best first.

    rank: 1 for the likeliest token.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    rank: int = 1

    def cut(self, count: int) -> "TokenLogprob":
        """The same with `count` alternatives at most."""
        return self if len(self.top) <= count else replace(self, top=self.top[:count])


@dataclass(slots=True)
class PromptScores:
    """Log-probabilities of a prompt's tokens as far as they are known, each given all before it; None for the first, and for rows
    of pictures.

    alternatives: how many of the likeliest tokens each has beside it.
    """

    alternatives: int
    values: list[TokenLogprob | None] = field(default_factory=lambda: [None])


@dataclass(frozen=True, slots=True)
class Need:
    """The `count` largest logits of all tokens but the known ones, and those of the known ones; the others may be -inf.

    That is enough for a choice that changes logits of known tokens only and then looks at the `count` largest.
    """

    count: int
    known: npt.NDArray[np.int32]

    @classmethod
    def of(cls, count: int, known: Iterable[int]) -> "Need | None":
        """None where everything is needed, because it would be nearly that."""
        ids = np.fromiter(set(known), np.int32)
        return cls(count, ids) if 1 <= count <= MOST and len(ids) <= MOST_KNOWN else None


GREEDY = Need(1, np.empty(0, np.int32))  # the largest logit and nothing else


class Sampler:
    """The choices of one request: its settings, its random numbers, and what it has said so far.

    prompt_ids feeds the repetition penalty only, without rows of pictures, which are no tokens. `seed` is the seed in use,
    chosen at random if params gave none.
    """

    def __init__(self, params: SamplingParams, vocab_size: int, prompt_ids: Iterable[int] = ()) -> None:
        wild = [i for i in params.logit_bias if i >= vocab_size]
        if wild:
            raise ValueError(f"logit_bias: token {wild[0]} does not exist; this model has {vocab_size} tokens")
        self.params = params
        self.vocab_size = vocab_size
        self.seed = secrets.randbits(53) if params.seed is None else params.seed
        self._rng = np.random.Generator(np.random.PCG64(self.seed))
        self._window: deque[int] = deque((i for i in prompt_ids if i < vocab_size), maxlen=REPETITION_WINDOW)
        self._counts: dict[int, int] = {}

    def sample(self, logits: Logits) -> int:
        """Choose from logits [V] (left unchanged) and remember the choice. ValueError if they are not finite."""
        token = self.pick(logits)
        self.accept(token)
        return token

    def pick(self, logits: Logits) -> int:
        """Choose without remembering; uses up one random number unless temperature is 0."""
        assert logits.shape == (self.vocab_size,), logits.shape
        logits = penalize(logits, self._window, self._counts, self.params)
        peak = float(logits.max())
        if not math.isfinite(peak):
            raise ValueError(_NOT_FINITE)
        p = self.params
        if p.temperature == 0:
            return int(logits.argmax())
        ids = largest(logits, p.top_k or self.vocab_size)
        ids = keep_top_p(logits, ids, p.temperature, p.top_p)
        ids = keep_min_p(logits, ids, p.temperature, p.min_p)
        return draw(logits, ids, p.temperature, self._rng)

    def need(self, ahead: Iterable[int] = ()) -> Need | None:
        """What `pick` has to know of the next logits, and of those behind the tokens `ahead` if these come; None: all of them."""
        p = self.params
        known = set(p.logit_bias)
        if p.repetition_penalty != 1.0:
            known |= {*self._window, *ahead}
        if p.presence_penalty or p.frequency_penalty:
            known |= {*self._counts, *ahead}
        return Need.of(1 if p.temperature == 0 else p.top_k, known)

    def copy(self) -> "Sampler":
        """One that will choose as this one would, from the same random numbers, and changes nothing of it."""
        other = copy.copy(self)
        other._rng = np.random.Generator(np.random.PCG64())
        other._rng.bit_generator.state = self._rng.bit_generator.state
        other._window, other._counts = self._window.copy(), dict(self._counts)
        return other

    def accept(self, token: int) -> None:
        """Remember a token of the answer for the penalties."""
        self._window.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1


def penalize(logits: Logits, window: Iterable[int], counts: Mapping[int, int], params: SamplingParams) -> Logits:
    """Logits after repetition (CTRL, arXiv:1909.05858), presence and frequency penalties and bias; input unchanged.

    window: token ids the repetition penalty sees, each once; counts: id -> times in the answer so far.
    """
    repeat = params.repetition_penalty != 1.0
    answer = bool(counts) and (params.presence_penalty != 0.0 or params.frequency_penalty != 0.0)
    if not (repeat or answer or params.logit_bias):
        return logits
    out = logits.copy()
    if repeat:
        seen = np.fromiter(set(window), np.int64)
        value = out[seen]
        out[seen] = np.where(value > 0, value / params.repetition_penalty, value * params.repetition_penalty)
    if answer:
        said = np.fromiter(counts.keys(), np.int64)
        times = np.fromiter(counts.values(), np.float64)
        out[said] -= (params.presence_penalty + params.frequency_penalty * times).astype(np.float32)
    for token, bias in params.logit_bias.items():
        out[token] += np.float32(bias)
    return out


def largest(logits: Logits, k: int) -> Ids:
    """Ascending ids of the k largest logits, without those of -inf (unless k is all); of equal ones the lower ids.

    The vector is folded into 64 rows and reduced to column maxima: the k-th largest maximum is a floor under the k-th
    largest logit, and one comparison leaves hardly more than k candidates (43 us for 151,936 entries and k = 40,
    against 138 us for argpartition).
    """
    size = logits.shape[0]
    if k >= size:
        return np.arange(size)
    columns = size // 64
    if k <= columns:
        maxima = logits[: columns * 64].reshape(64, columns).max(axis=0)
        floor = np.partition(maxima, columns - k)[columns - k]
    else:
        floor = np.partition(logits, size - k)[size - k]
    # Where fewer than k may come (a grammar), the floor is -inf, and all that may not would be sorted with them.
    ids = np.flatnonzero(logits >= max(floor, _LOWEST))
    if ids.size > k:
        ids = np.sort(ids[np.lexsort((ids, -logits[ids]))[:k]])
    return ids


def keep_top_p(logits: Logits, ids: Ids, temperature: float, top_p: float) -> Ids:
    """The fewest likeliest candidates whose probabilities (renormalised over them) reach top_p; at least one."""
    if top_p >= 1.0 or ids.size <= 1:
        return ids
    if ids.size <= 4096:
        weights = _weights(logits, ids, temperature)
        return _nucleus(ids, weights, top_p * float(np.cumsum(weights)[-1]))
    # Wide open: sum the whole softmax once, then look for the nucleus among the 64, 1024, ... likeliest.
    need = top_p * float(np.cumsum(_weights(logits, ids, temperature))[-1])
    for k in (64, 1024, 16384):
        head = largest(logits, min(k, ids.size))
        weights = _weights(logits, head, temperature)
        if np.cumsum(weights)[-1] >= need:
            return _nucleus(head, weights, need)
    return _nucleus(ids, _weights(logits, ids, temperature), need)


def _nucleus(ids: Ids, weights: npt.NDArray[np.float64], need: float) -> Ids:
    order = np.lexsort((ids, -weights))
    count = int(np.searchsorted(np.cumsum(weights[order]), need)) + 1
    return np.sort(ids[order[:count]])


def keep_min_p(logits: Logits, ids: Ids, temperature: float, min_p: float) -> Ids:
    """Candidates at least min_p times as likely as the likeliest one (arXiv:2407.01082)."""
    if min_p <= 0.0:
        return ids
    values = logits[ids].astype(np.float64)
    kept: Ids = ids[values >= values.max() + temperature * exact.log(min_p)]
    return kept


def draw(logits: Logits, ids: Ids, temperature: float, rng: np.random.Generator) -> int:
    """One candidate at random with softmax(logits / temperature) over the candidates; one random number."""
    number = rng.random()
    place = None
    if ids.size > _MANY:
        place = _surely(logits if ids.size == logits.size else logits[ids], temperature, number)
    if place is None:
        total = np.cumsum(_weights(logits, ids, temperature))
        place = min(int(np.searchsorted(total, number * total[-1], side="right")), ids.size - 1)
    return int(ids[place])


def _surely(values: Logits, temperature: float, number: float) -> int | None:
    """The candidate that exact weights would choose, from numpy's own fast ones; None where those are too rough to tell.

    Their bits depend on the processor, and they are right to 3e-5 of themselves (values up to 88 in float32): what they say
    counts only where the choice is farther than _MARGIN of the total from both neighbours.
    """
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((values - values.max()) / np.float32(max(temperature, 1e-6)))
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64))
    wanted, margin = number * blocks[-1], _MARGIN * blocks[-1]
    block = int(np.searchsorted(blocks, wanted, side="right"))
    before = blocks[block - 1] if block else 0.0
    begin = block * _BLOCK
    inside = before + np.cumsum(weights[begin : begin + _BLOCK], dtype=np.float64)
    place = int(np.searchsorted(inside, wanted, side="right"))
    if place >= len(inside) or wanted > inside[place] - margin:
        return None
    return begin + place if wanted >= (inside[place - 1] if place else before) + margin else None


def _weights(logits: Logits, ids: Ids, temperature: float) -> npt.NDArray[np.float64]:
    values = logits[ids].astype(np.float64)
    # Below 1e-6 the division would overflow; it is greedy long before.
    return exact.exp((values - values.max()) / max(temperature, 1e-6))


def logprobs_of(logits: Logits, token: int, count: int, norm: float | None = None) -> TokenLogprob:
    """Log probability of `token` and of the `count` likeliest tokens, from raw logits [V]. ValueError if they are not finite.

    norm: their log-sum-exp, where it is known.
    """
    if not math.isfinite(logits.max() if norm is None else norm):
        raise ValueError(_NOT_FINITE)
    norm = exact.log_sum_exp(logits) if norm is None else norm
    ids = largest(logits, count) if count else np.empty(0, np.int64)
    best = ids[np.lexsort((ids, -logits[ids]))]
    top = tuple((int(i), float(logits[i]) - norm) for i in best)
    value = logits[token]
    rank = 1 + int(np.count_nonzero(logits > value)) + int(np.count_nonzero(logits[:token] == value))
    return TokenLogprob(token, float(value) - norm, top, rank)
