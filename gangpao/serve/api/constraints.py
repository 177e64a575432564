"""What restricts an answer, in the words of vLLM and llama.cpp's server: each is kept to, or refused by its name; none is dropped.

One table for every API whose programs send them beside its own fields. null, false and "" ask for nothing; an empty schema asks for
some JSON, as it does there, and 0 for log-probabilities without alternatives.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from gangpao.serve.answers.ends import Ends
from gangpao.serve.answers.forms import Form
from gangpao.serve.http.errors import ApiError

Kind = Literal["json", "choice", "regex", "grammar", "object", "refused"]

_FORMS: dict[str, Kind] = {
    "guided_json": "json", "guided_choice": "choice", "guided_regex": "regex", "guided_grammar": "grammar",
    "json_schema": "json", "grammar": "grammar", "structured_outputs.json": "json", "structured_outputs.choice": "choice",
    "structured_outputs.regex": "regex", "structured_outputs.grammar": "grammar", "structured_outputs.json_object": "object",
    "structured_outputs.structural_tag": "refused",
}  # fmt: skip
_REFUSED = {
    "allowed_token_ids": "this server does not take it; logit_bias can rule tokens out",
    "bad_words": "this server does not take it; logit_bias can rule tokens out",
    "prompt_logprobs": "a chat has none here; /v1/completions gives them",
    "echo": "a chat does not repeat its messages",
    "best_of": "use n",
    "use_beam_search": "answers are sampled here",
    "truncate_prompt_tokens": "shorten the conversation yourself, as only you know what it can do without",
}
_ENDS = ("stop_token_ids", "min_tokens", "ignore_eos")
_OUTER = "structured_outputs"
_INNER = frozenset(name.partition(".")[2] for name in _FORMS if name.startswith(f"{_OUTER}."))
_FROM_0 = frozenset({"logprobs", "prompt_logprobs"})  # 0 asks for those of the tokens themselves
_ONE_IS_NONE = frozenset({"n", "best_of"})
NAMES = frozenset({name.partition(".")[0] for name in _FORMS} | set(_REFUSED) | set(_ENDS))
MAX_STOP_IDS = 256


class Constraints(NamedTuple):
    """What a request's body asks for beside its API's own fields."""

    form: Form | None
    ends: Ends


def read(body: Mapping[str, Any], own: Form | None = None) -> Constraints:
    """The constraints of a body. own: the form that the API's own field asks for. Raises ApiError (400) naming the field."""
    same = body.get("best_of") is not None and body.get("best_of") == body.get("n")
    refuse({name: value for name, value in body.items() if not (same and name == "best_of")}, _REFUSED)
    if own is not None and own.kind == "json" and "type" not in own.value:
        raise ApiError(400, "type is missing; text, json_object and json_schema are known", field=own.field)
    forms = [] if own is None else [own]
    values = [(name, kind, _value(body, name)) for name, kind in _FORMS.items()]
    for name, value in (body.get(_OUTER) or {}).items():
        if name not in _INNER and _asks(value):
            raise ApiError(
                400,
                "this server does not know it; leave it out",
                field=f"{_OUTER}.{name:.40}",
                code="unsupported_parameter",
            )
    forms += [_form(name, kind, value) for name, kind, value in values if _asks(value)]
    if len(forms) > 1:
        raise ApiError(
            400, f"an answer has one form only, and {forms[0].field} asks for one, too", field=forms[1].field
        )
    return Constraints(forms[0] if forms else None, _ends(body))


def refuse(body: Mapping[str, Any], table: Mapping[str, str]) -> None:
    """Raises ApiError (400) for a field of the table, field -> why not, that asks for something."""
    for name, why in table.items():
        value = body.get(name)
        asks = bool(value) and not (name in _ONE_IS_NONE and value == 1)
        if asks or (name in _FROM_0 and _asks(value)):
            raise ApiError(400, why, field=name, code="unsupported_parameter")


def joined(*bodies: Mapping[str, Any]) -> dict[str, Any]:
    """The constraints of a request that may have them in several places. Raises ApiError (400) where two places differ."""
    found: dict[str, Any] = {}
    for body in bodies:
        for name in NAMES & body.keys():
            if body[name] is None:
                continue
            if name in found and found[name] != body[name]:
                raise ApiError(400, "it is there twice with different values; send it once", field=name)
            found[name] = body[name]
    return found


def _asks(value: Any) -> bool:
    """Whether it is something at all. 0 is, though it equals false."""
    return value is not None and value is not False and value != ""


def _value(body: Mapping[str, Any], name: str) -> Any:
    """A field's value, also of a field in a field."""
    outer, _, inner = name.partition(".")
    value = body.get(outer)
    if not inner or value is None:
        return value
    if not isinstance(value, Mapping):
        raise ApiError(400, "must be an object", field=outer)
    return value.get(inner)


def _form(name: str, kind: Kind, value: Any) -> Form:
    if kind == "refused":
        raise ApiError(400, "this server does not take it", field=name, code="unsupported_parameter")
    if kind == "object":
        if value is not True:
            raise ApiError(400, "must be true or false", field=name)
        return Form("json", {"type": "json_object"}, name)
    if kind != "json":
        return Form(kind, value, name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ApiError(400, "must be a JSON schema", field=name) from None
    return Form("json", {"type": "json_schema", "json_schema": {"schema": value}}, name)


def _ends(body: Mapping[str, Any]) -> Ends:
    ids, least, never = (body.get(name) for name in _ENDS)
    if ids is not None and not (isinstance(ids, list) and len(ids) <= MAX_STOP_IDS and all(map(_is_whole, ids))):
        raise ApiError(400, f"must be a list of at most {MAX_STOP_IDS} token ids", field="stop_token_ids")
    if least is not None and not (_is_whole(least) and 0 <= least <= 1_000_000):
        raise ApiError(400, "must be a whole number of tokens", field="min_tokens")
    if never is not None and not isinstance(never, bool):
        raise ApiError(400, "must be true or false", field="ignore_eos")
    return Ends(int(least or 0), bool(never), tuple(int(i) for i in ids or ()))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
