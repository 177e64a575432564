"""What clients may send: the fields of each request, their types and bounds.

Whole numbers may be written 1 or 1.0, as in JSON; nothing else is converted, so "0.7" is no temperature. null is the same as
not there. Fields of OpenAI's API that do nothing here are accepted by name (IGNORED); unknown ones are, too, and go to the log.
The bounds of sampling values are the engine's own (SamplingParams).

A check costs what it looks at, and it runs where everybody else waits: every list has a bound, ends at its first wrong entry, and
where a field may be several things, a look at its type says which of them is checked. json_bounds.py has counted the body before.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from gangpao.engine.sample import MAX_LOGIT_BIAS, MAX_STOP_CHARS, SamplingParams
from gangpao.engine.thinking.options import MAX_BUDGET, NO_LIMIT
from gangpao.serve.http.errors import ApiError
from gangpao.serve.http.json_bounds import MAX_NUMBERS
from gangpao.validation import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    PlainValidator,
    Tag,
    ValidationError,
    model_validator,
)

T = TypeVar("T", bound=BaseModel)
E = TypeVar("E")


class Operation(NamedTuple):
    """A POST route for the description: what checks its body, a sentence, and whether answers may be streamed."""

    kind: type[BaseModel]
    text: str
    streams: bool = True


MAX_N = 16
MAX_INPUTS = 2048
MAX_MESSAGES = 4096
MAX_METADATA = 256

# Of OpenAI's chat and completion requests of 2026: known, and without effect here.
IGNORED = frozenset({
    "audio", "best_of", "metadata", "modalities", "moderation", "prediction",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user", "verbosity", "web_search_options",
})  # fmt: skip

_BOUNDS = {f.name: f.metadata for f in fields(SamplingParams) if f.metadata}
MAX_TOKENS: int = _BOUNDS["max_tokens"]["high"]
UNLIMITED = "Where it is not given, the answer goes on until the model ends it or the context is full."


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and math.isfinite(value) and value.is_integer() else value


def _few(most: int) -> BeforeValidator:
    """The bound before a look at each entry: pydantic counts a dict only when all of it is checked."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise ValueError(f"{len(value)} entries are more than {most}")
        return value

    return BeforeValidator(check)


def _kind(value: Any) -> str | None:
    return _TEXT if isinstance(value, str) else _LIST if isinstance(value, list) else None


class _AtFirst(FailFast):
    """The first wrong entry is enough. With a hash, as parts of unions need one."""

    __hash__ = object.__hash__


_TEXT, _LIST = "<text>", "<list>"
Whole = Annotated[int, BeforeValidator(_whole)]
Bias = Annotated[dict[str, float], _few(MAX_LOGIT_BIAS)]
Metadata = Annotated[dict[str, str], _few(MAX_METADATA)]
Many = Annotated[list[E], _AtFirst(), Field(max_length=MAX_MESSAGES)]
TextOr = Annotated[
    Annotated[str, Tag(_TEXT)] | Annotated[list[E], Tag(_LIST), _AtFirst(), Field(max_length=MAX_MESSAGES)],
    Discriminator(_kind, custom_error_type="text_or_list", custom_error_message="Input should be a text or a list"),
]


def setting(name: str, note: str = "", *, low: float | None = None) -> Any:
    """An optional field with the engine's bounds and help. note: a sentence to add; low: another lower bound."""
    info = _BOUNDS[name]
    lowest = info["low"] if low is None else low
    return Field(None, ge=lowest, le=info["high"], description=f"{info['help']} {note}".rstrip())


def budget(note: str = "") -> Any:
    """An optional budget of a thought."""
    what = "Tokens that a thought may take; 0 is none, -1 no limit."
    return Field(None, ge=NO_LIMIT, le=MAX_BUDGET, description=f"{what} {note}".rstrip())


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())


class StreamOptions(Body):
    """include_usage: a last chunk with `choices: []` that carries the counts."""

    include_usage: bool | None = None


class Sampling(Body):
    """What all that generate text have in common."""

    model: str | None = Field(None, max_length=512, description="A name of GET /v1/models; the first where not given.")
    temperature: float | None = setting("temperature")
    top_p: float | None = setting("top_p")
    top_k: Whole | None = setting("top_k", "-1 keeps all, too.", low=-1)
    min_p: float | None = setting("min_p")
    repetition_penalty: float | None = setting("repetition_penalty")
    repeat_penalty: float | None = setting("repetition_penalty", "The name that llama.cpp has for repetition_penalty.")
    presence_penalty: float | None = setting("presence_penalty")
    frequency_penalty: float | None = setting("frequency_penalty")
    seed: Whole | None = setting("seed", "-1 is random, too.", low=-1)
    max_tokens: Whole | None = setting("max_tokens")
    n_predict: Whole | None = setting(
        "max_tokens", "The name that llama.cpp has for max_tokens; -1 is no limit.", low=-1
    )
    n: Whole | None = Field(None, ge=1, le=MAX_N, description="Answers to make; the i-th takes seed + i.")
    stop: TextOr[str] | None = Field(
        None,
        description=f"End before this text: strings of 1 to {MAX_STOP_CHARS} characters, as many as --max-stop says.",
    )
    logit_bias: Bias | None = Field(
        None, max_length=MAX_LOGIT_BIAS, description="Token id, written as a string -> -100 to 100, added to its logit."
    )
    speculate: bool | None = Field(None, description="Try drafts from the text so far; they never change the answer.")
    model_defaults: bool | None = Field(
        None,
        description="Take what is not given of temperature, top_k, top_p, min_p and repetition_penalty as the model recommends.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream is to end with the counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def given(self) -> dict[str, Any]:
        """The engine's settings that the request gives, by their names there. -1 is no seed, no top_k and no limit."""
        given = {name: value for name, value in self._plain() if value is not None and name != "logprobs"}
        for name, other in (("repetition_penalty", self.repeat_penalty), ("max_tokens", self.n_predict)):
            if other is not None:
                given.setdefault(name, other)
        if given.get("seed") == -1:
            del given["seed"]
        if given.get("top_k") == -1:
            given["top_k"] = 0
        if given.get("max_tokens") == -1:
            del given["max_tokens"]
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        given |= {"stop": tuple(s for s in stop if s), "logit_bias": self._bias()}
        return given

    def _plain(self) -> Iterator[tuple[str, Any]]:
        return ((name, getattr(self, name, None)) for name in _BOUNDS)

    def params(self, logprobs: int | None, recommended: Callable[..., SamplingParams]) -> SamplingParams:
        """The engine's settings. What was not given is what `recommended` fills in where the request asks for the model's
        defaults, and else what the API says, which changes nothing. Raises ApiError (400)."""
        make = recommended if self.model_defaults else SamplingParams
        try:
            return make(**self.given(), logprobs=logprobs)
        except ValueError as error:
            words = re.findall("[a-z_]+", str(error))
            raise ApiError(
                400, str(error), param=next((w for w in words if w in type(self).model_fields), None)
            ) from None

    def _bias(self) -> dict[int, float]:
        out = {}
        for key, value in (self.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) <= 9):
                raise ApiError(400, f"{key!r:.60} is not a token id", field="logit_bias")
            out[int(key)] = value
        return out


class ImageURL(Body):
    """An image; a data: URL unless the server may fetch from its host. detail: "low" shows it as one piece, all else as its model
    cuts it."""

    url: str
    detail: str | None = None


def loose(
    known: frozenset[str], kept: frozenset[str] = frozenset(), read: Callable[[Any], Any] = lambda value: value
) -> Any:
    """Before a model's own check: of a value whose type is none of the `known` ones, only its type, and texts and parts in `kept`.
    Nobody here knows what the fields of such a type are, so none of them can be wrong. read: what is done with a value first."""

    def check(value: Any) -> Any:
        value = read(value)
        if not isinstance(value, dict) or not isinstance(kind := value.get("type"), str) or kind in known:
            return value
        return {"type": kind} | {name: value[name] for name in kept if _is_said(value.get(name))}

    return model_validator(mode="before")(staticmethod(check))


def _is_said(value: Any) -> bool:
    """Whether it is a text, or parts."""
    if isinstance(value, list):
        return all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in value)
    return isinstance(value, str)


TEXTS = frozenset({"text", "input_text", "output_text", "summary_text"})
IMAGES = frozenset({"image_url", "input_image", "image", "video_url"})
_KNOWN_PARTS = TEXTS | IMAGES | {"refusal", "document", "search_result", "tool_reference", "tool_use", "tool_result"}


def _typed(value: Any) -> Any:
    """A part that says no type as what it looks like."""
    if isinstance(value, str):
        return {"type": "text", "text": value}
    if isinstance(value, dict) and value.get("type") is None:
        return {**value, "type": next((name for name in ("text", "image_url", "video_url") if name in value), "none")}
    return value


class Part(Body):
    """A part of a message: text, an image, a video (video_url, as vLLM has it), or what another program put there (content.py)."""

    _loose = loose(_KNOWN_PARTS, frozenset({"text", "title", "content"}), _typed)

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageURL | str | None = None
    video_url: ImageURL | str | None = None
    detail: str | None = None
    source: "Source | str | None" = None
    title: str | None = None
    tool_name: str | None = None
    content: "TextOr[Part] | None" = None


class Source(Body):
    """Where an image or a document of Anthropic's API is: its bytes (base64), its address, its text, or blocks."""

    type: str
    data: str | None = None
    url: str | None = None
    content: TextOr[Part] | None = None


class ChatMessage(Body):
    """One turn. tool_calls and tool_call_id are what the model called, and which call a tool answers."""

    role: str
    content: TextOr[Part] | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: Many[dict[str, Any] | None] | None = None
    tool_call_id: str | None = None
    function_call: dict[str, Any] | None = None
    prefix: bool | None = Field(None, description="Of the last message: the assistant's, to be continued.")


Part.model_rebuild()


def _ids(value: list[Any]) -> list[int]:
    if set(map(type, value)) <= {int}:
        return value
    if set(map(type, value)) <= {int, float} and (whole := list(map(int, value))) == value:
        return whole
    raise ValueError("token ids must be whole numbers")


def _tokens(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise ValueError("Input should be a list of token ids")
    return _ids(value)


def _inputs(value: Any) -> str | list[str] | list[int] | list[list[int]]:
    if isinstance(value, str):
        return value
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, int | float):
        return _ids(value)
    if isinstance(value, list):
        if len(value) > MAX_INPUTS:
            raise ValueError(f"{len(value)} texts are more than {MAX_INPUTS}")
        kinds = set(map(type, value))
        if kinds <= {str}:
            return value
        if kinds == {list}:
            return [_ids(one) for one in value]
    raise ValueError("Input should be a text, a list of texts, a list of token ids, or a list of such lists")


Tokens = Annotated[list[int], PlainValidator(_tokens, json_schema_input_type=list[int])]
Inputs = Annotated[
    str | list[str] | list[int] | list[list[int]],
    PlainValidator(_inputs, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]


class CompletionRequest(Sampling):
    """POST /v1/completions: text that goes on from a prompt, without a chat template; special tokens count as such."""

    prompt: Inputs = Field(description="A text, token ids, or a list of either.")
    max_tokens: Whole | None = setting(
        "max_tokens",
        f"{SamplingParams().max_tokens} where it is not given; 0 only reads the prompt; -1 is no limit.",
        low=-1,
    )
    echo: bool | None = Field(
        None, description="Begin with the prompt; with logprobs, with its log-probabilities, too."
    )
    suffix: str | None = Field(None, description="What comes after a hole behind the prompt, which the model fills.")
    logprobs: Whole | None = Field(
        None, ge=0, le=20, description="Log-probabilities, with so many alternatives a token."
    )
    prompt_logprobs: Whole | None = Field(None, ge=0, le=20, description="The same for the prompt, in vLLM's form.")
    response_format: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        """Tokens of the answer at most, under either name: 0 only reads the prompt, -1 is no limit."""
        return self.n_predict if self.max_tokens is None else self.max_tokens

    def given(self) -> dict[str, Any]:
        """The same; without a limit where that is said, and without one where nothing is sampled."""
        given = super().given()
        if self.limit == -1:
            given["max_tokens"] = MAX_TOKENS
        elif self.limit == 0:
            del given["max_tokens"]
        return given


class ExtraFile(Body):
    """Another file of the project."""

    filename: str | None = None
    text: str


class InfillRequest(Sampling):
    """POST /infill, llama-server's. prompt: a beginning of what is filled in."""

    input_prefix: str
    input_suffix: str
    input_extra: Many[ExtraFile] | None = None
    prompt: str | None = None
    max_tokens: Whole | None = setting("max_tokens", UNLIMITED, low=-1)
    n_predict: Whole | None = setting("max_tokens", "llama-server's name for max_tokens.", low=-1)


class EmbeddingRequest(Body):
    """POST /v1/embeddings: means of the last hidden states of a language model, of length 1. Not trained for search."""

    model: str | None = Field(None, max_length=512)
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Whole | None = Field(None, ge=1, description="Must be the model's own; nothing is cut off.")
    truncate: bool | None = Field(None, description="Take the beginning of a text that does not fit into the context.")
    truncate_prompt_tokens: Whole | None = Field(
        None, ge=-1, le=MAX_TOKENS, description="Take so many tokens of a text's end at most; -1 is as many as fit."
    )


class TokenizeRequest(Body):
    """POST /tokenize. prompt: a text (content is another name for it), or messages, which the chat template turns into one."""

    model: str | None = Field(None, max_length=512)
    prompt: str | None = None
    content: str | None = None
    messages: Many[ChatMessage] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = Field(
        None, description="Begin with BOS where the model expects it; true by default."
    )
    parse_special: bool | None = Field(None, description="Whether special pieces spelled in the text count as such.")
    with_pieces: bool | None = Field(None, description="Also give the text of each token.")


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = Field(None, max_length=512)
    tokens: Tokens = Field(description=f"Up to {MAX_NUMBERS}.")


class Error(BaseModel):
    """message: what and what to do; param: the field to blame."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer that is not 2xx."""

    error: Error


def parse(kind: type[T], body: dict[str, Any]) -> T:
    """The request as `kind`. Raises ApiError (400) naming the first field that is wrong."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = [str(p) for p in first["loc"]]
    names = list(kind.model_fields)
    param = path[0] if path and path[0] in names else None
    where = ".".join(p for p in path if len(p) <= 40 and p not in (_TEXT, _LIST))[:120]
    raise ApiError(400, f"{where}: {first['msg'].removeprefix('Value error, ')}"[:300], param=param)


def unknown(body: dict[str, Any], kind: type[BaseModel], known: Collection[str] = ()) -> list[str]:
    """Names of fields that mean nothing to us, shortened, for the log. known: further names that do."""
    strange = (name for name in body if name not in kind.model_fields and name not in IGNORED and name not in known)
    return [repr(name[:40]) for name in islice(strange, 20)]
