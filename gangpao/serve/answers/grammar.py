"""Answers that must have a form: a JSON schema, or calls of functions, as a grammar that rules tokens out (llguidance).

    constraint_for    response_format, tools, tool_choice -> a grammar's state for one answer (which tokens may come next, and
                      when nothing may), or None where every answer will do

Every token of an answer is chosen among those that keep it on a path to an end, so an answer that ends conforms; one that
max_tokens cut does not, and says so (finish_reason length). Free text with tools is a grammar too: any text without
<tool_call>, or text up to one and then a call that fits. JSON comes on one line, with a space after each comma and colon: then
most of its marks are forced, and forced tokens are drafts that speculation accepts.

The table of the vocabulary that llguidance needs takes up to a second to build; there is one for each loaded model. Compiled
grammars are kept, as programs send the same schema with every request.

A part of a schema that no grammar can hold is refused in a response format and for strict functions, with its path. Elsewhere it
is left out, that part only, and named in the log and in GrammarConstraint.loosened (loosen.py).

What it gives up: keywords beyond a grammar's reach (uniqueItems, not, if) are ignored where nothing is strict, and named in the
same way; properties come in the schema's order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gangpao.engine.generate import Engine
from gangpao.engine.sample import Logits
from gangpao.engine.transformer import Transformer
from gangpao.optional import needed, there
from gangpao.serve.answers import json_schema
from gangpao.serve.answers.call_grammar import call_rules, free_rules, literal, unheld
from gangpao.serve.answers.loosen import Budget
from gangpao.serve.answers.tool_calls import Json, offered
from gangpao.text.templates.call_format import OWN_CALLS, CallFormat
from gangpao.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

MAX_TOGETHER = 10_000  # values in the schemas of all functions: two seconds of compiling
_KEPT_GRAMMARS = 32
_ERROR_CHARS = 200
_MOST_LOGGED = 20
_BETWEEN_TAGS = "this model writes texts between tags, which are not held to it"
_TOGETHER = "the functions' schemas are too large together"

_ANY_OBJECT = json_schema.ready({"type": "object"}, "", exact=False, whole=False)

log = logging.getLogger("gangpao.serve")


class Loosened(NamedTuple):
    """A part of a function's parameters that its calls are not held to. tool: the function's name, or "response_format"."""

    tool: str
    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.tool}: {self.path}: {self.why}"


class Grammar(NamedTuple):
    """A grammar in llguidance's Lark dialect. whole: it says all of the answer, and so where it ends. answer, parameters: the ready
    schemas in it."""

    text: str
    whole: bool
    loosened: tuple[Loosened, ...] = ()
    answer: Json | None = None
    parameters: Sequence[Json] = ()


class GrammarConstraint:
    """A grammar's state in one answer (the engine's Constraint). whole: it says all of the answer, and so where it ends.
    loosened: what the answer is not held to, though a schema asks for it."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, grammar: Grammar) -> None:
        self.whole = grammar.whole
        self.loosened = grammar.loosened
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return self._matcher.is_stopped()

    def apply(self, logits: Logits) -> None:
        """Set the logits [V] of tokens that may not come next to -inf, in place. ValueError: the grammar grew too large."""
        allowed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        bits = np.unpackbits(allowed, count=self._vocab_size, bitorder="little")
        np.copyto(logits, -np.inf, where=bits == 0)

    def accept(self, token: int) -> None:
        """Go on behind a chosen token."""
        self._matcher.consume_token(token)
        self._check()

    def forced(self) -> list[int]:
        """Tokens that come next whatever the model says (in the tokenizer's own cutting); often none."""
        return [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"the answer's form became too complex to follow: {_reason(self._matcher)}")


def constraint_for(
    engine: Engine,
    response_format: Mapping[str, Any] | None,
    tools: Sequence[Mapping[str, Any]] | None,
    tool_choice: str | Mapping[str, Any] | None,
    parallel: bool = True,
) -> GrammarConstraint | None:
    """A new constraint for one answer; None where none is needed, or where llguidance is missing and functions are only offered:
    their calls are then what the model writes. Takes milliseconds, the first of a model up to a second.

    What is not held, because no grammar could, is in its `loosened`. Raises ValueError, beginning with the field's name, for what
    is malformed, or asked for strictly and impossible to guarantee.
    """
    form = AnswerForm(response_format, tools, tool_choice, parallel)
    if form.free or (form.may_be_free and not there("llguidance")):
        return None
    if form.choice.functions:
        form.calls = engine.template.calls
    table = _table_of(engine.model, engine.tokenizer)
    grammar, matcher = table.compiled(form)
    return GrammarConstraint(matcher, table.vocab_size, grammar)


def text_constraint(engine: Engine, text: str) -> GrammarConstraint:
    """A new constraint for an answer that is all of a grammar, given in llguidance's Lark dialect. Raises ValueError."""
    table = _table_of(engine.model, engine.tokenizer)
    return GrammarConstraint(table.of_text(text), table.vocab_size, Grammar(text, whole=True))


class Parameters(NamedTuple):
    """A function's parameters as they were sent. where: their place in the request. exact: nothing may be left out."""

    name: str
    schema: Any
    where: str
    exact: bool


class AnswerSchema(NamedTuple):
    """The schema of a whole answer as it was sent."""

    schema: Any
    where: str
    exact: bool


class AnswerForm:
    """What a request says about its answer's form. free: any answer will do."""

    def __init__(
        self,
        response_format: Mapping[str, Any] | None,
        tools: Sequence[Mapping[str, Any]] | None,
        tool_choice: str | Mapping[str, Any] | None,
        parallel: bool = True,
        calls: CallFormat = OWN_CALLS,
    ) -> None:
        self.calls = calls
        self.answer = _answer_schema(response_format)
        self.choice = offered(tools, tool_choice)
        self.parallel = parallel and not self.choice.single
        self.free = self.answer is None and not self.choice.functions

    @property
    def may_be_free(self) -> bool:
        """Whether any answer will do for want of a grammar: functions are offered that need not be called, and none is strict."""
        return self.answer is None and not self.choice.must and not any(p.exact for p in self._parameters())

    @property
    def key(self) -> bytes:
        """Equal for equal forms."""
        choice = (self.choice.functions, self.choice.places, self.choice.must)
        content = json.dumps((self.answer, choice, self.parallel, str(self.calls)), default=dict)
        return hashlib.sha256(content.encode()).digest()

    def grammar(self) -> Grammar:
        """The grammar, its schemas within bounds but not tried. Raises ValueError for one that is not."""
        answer = self.answer and json_schema.ready(self.answer.schema, self.answer.where, exact=self.answer.exact)
        parameters = [json_schema.ready(p.schema, p.where, exact=p.exact, whole=False) for p in self._parameters()]
        if sum(map(json_schema.size_of, parameters)) > MAX_TOGETHER:
            raise ValueError(f"tools: {_TOGETHER}")
        return self._grammar(answer, parameters, ())

    def loosened(self, fits: Callable[[Grammar], str]) -> Grammar:
        """The grammar without the parts of schemas that cannot be held. fits: "" for a grammar that compiles, or the reason.

        Raises ValueError, naming the part, where the schema is to be held strictly.
        """
        budget = Budget()
        answer, faults = None, []
        if self.answer is not None:
            schema, where, exact = self.answer
            answer, parts = json_schema.held(schema, where, budget, exact=exact, whole=True)
            faults += [Loosened("response_format", *part) for part in parts]
        parameters = list(self._parameters())
        held: dict[int, Json] = {}

        def hold(i: int) -> None:
            name, schema, where, exact = parameters[i]
            held[i], parts = json_schema.held(schema, where, budget, exact=exact)
            faults.extend(Loosened(name, f"parameters.{part.path}".rstrip("."), part.why) for part in parts)

        for i, p in enumerate(parameters):
            if json_schema.size_of(p.schema) > json_schema.MAX_VALUES:
                hold(i)
        sizes = [json_schema.size_of(held.get(i, p.schema)) for i, p in enumerate(parameters)]
        order = sorted((i for i, p in enumerate(parameters) if not p.exact), key=lambda i: -sizes[i])
        count = 0  # of the functions that are given up, the largest first
        while count < len(order) and sum(sizes) - sum(sizes[i] for i in order[:count]) > MAX_TOGETHER:
            count += 1
        for i in range(len(parameters)):
            if i not in held and i not in order[:count]:
                hold(i)
        while True:
            gone = sorted(order[:count])
            named = [Loosened(parameters[i].name, "parameters", _TOGETHER) for i in gone]
            schemas = [_ANY_OBJECT if i in gone else held[i] for i in range(len(parameters))]
            grammar = self._grammar(answer, schemas, (*faults, *named))
            why = fits(grammar)
            if not why:
                return grammar
            if count == len(order):
                raise ValueError(f"response_format or tools: this cannot be guaranteed: {why}")
            count = (count + len(order) + 1) // 2  # half of what is left, as each try takes long

    def ignored(self, grammar: Grammar) -> tuple[Loosened, ...]:
        """What its grammar does not hold of schemas that are not strict, though it compiles. The same budget is for all."""
        budget = Budget()
        found = []
        if self.answer is not None and grammar.answer is not None and not self.answer.exact:
            parts = json_schema.ignored({**grammar.answer}, budget, whole=True)
            found += [Loosened("response_format", *part) for part in parts]
        for p, schema in zip(self._parameters(), grammar.parameters, strict=True):
            parts = [] if p.exact else json_schema.ignored({**schema}, budget, whole=False)
            found += [Loosened(p.name, f"parameters.{part.path}".rstrip("."), part.why) for part in parts]
        known = {one[:2] for one in grammar.loosened}
        return tuple(one for one in found if one[:2] not in known)

    def _parameters(self) -> Iterator[Parameters]:
        for i, function in zip(self.choice.places, self.choice.functions, strict=True):
            schema = function.get("parameters")
            if schema is None or schema == {}:
                schema = {"type": "object", "properties": {}, "additionalProperties": False}
            where = f"tools[{i}].function.parameters of {function['name']}"
            yield Parameters(function["name"], schema, where, function.get("strict") is True)

    def _unheld(self, parameters: Sequence[Json]) -> tuple[Loosened, ...]:
        """What the model's own format does not hold of parameters that grammars do. Raises ValueError where it must be held."""
        loosened = []
        for (name, _, where, exact), schema in zip(self._parameters(), parameters, strict=True):
            for path in unheld(self.calls, schema):
                if exact:
                    raise ValueError(f"{where}: {path} cannot be guaranteed: {_BETWEEN_TAGS}")
                loosened.append(Loosened(name, f"parameters.{path}", _BETWEEN_TAGS))
        return tuple(loosened)

    def _grammar(self, answer: Json | None, parameters: Sequence[Json], faults: tuple[Loosened, ...]) -> Grammar:
        names = [function["name"] for function in self.choice.functions]
        answer_rule = f"answer: %json {json.dumps(answer)}\n"
        if not names:
            return Grammar(f"start: answer\n{answer_rule}", True, faults, answer)
        faults += self._unheld(parameters)
        rules = call_rules(self.calls, names, parameters, self.parallel)
        mark = literal(self.calls.mark)
        if self.choice.must:
            return Grammar(f"start: {mark} calls\n{rules}", True, faults, answer, parameters)
        if answer is not None:
            return Grammar(f"start: answer | {mark} calls\n{answer_rule}{rules}", True, faults, answer, parameters)
        free = free_rules(self.calls, names, parameters, self.parallel)
        return Grammar(f"{free}{rules}", False, faults, answer, parameters)


def _answer_schema(response_format: Mapping[str, Any] | None) -> AnswerSchema | None:
    """The schema of the whole answer: OpenAI's two forms, and llama.cpp's with the schema beside the type."""
    kind = (response_format or {}).get("type", "text")
    if response_format is None or kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise ValueError(f"response_format: type must be text, json_object or json_schema, not {kind!r:.60}")
    named = response_format.get("json_schema")
    if kind == "json_schema" and named is not None and not isinstance(named, Mapping):
        raise ValueError('response_format: json_schema must look like {"name": ..., "schema": {...}}')
    inner = named if isinstance(named, Mapping) else response_format
    schema = inner.get("schema", {"type": "object"} if kind == "json_object" else None)
    if not isinstance(schema, Mapping):
        raise ValueError(f"response_format: schema must be a JSON schema (an object), not {type(schema).__name__}")
    return AnswerSchema(schema, "response_format: schema", inner.get("strict") is not False)


# --- what a model's vocabulary is to llguidance


class _Pieces:
    """The tokenizer in the form llguidance asks for. A vocabulary without an end gets one behind its last id."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.ends = sorted(i for i in tokenizer.end_ids if i < vocab_size) or [vocab_size]
        self.eos_token_id = self.ends[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(vocab_size)]
        # What marks a thought or a call is text to a grammar, whichever kind of piece it is.
        self.special_token_ids = sorted(i for i in tokenizer.control_ids - tokenizer.text_ids if i < vocab_size)
        if self.ends == [vocab_size]:
            self.tokens.append(b"<end>")
            self.special_token_ids.append(vocab_size)
        self._tokenizer = tokenizer
        marks = tokenizer.text_ids & tokenizer.control_ids
        self._mark_ids = {tokenizer.vocabulary.pieces[i]: i for i in marks}
        texts = sorted(self._mark_ids, key=len, reverse=True)
        self._marks = re.compile(f"({'|'.join(map(re.escape, texts))})") if texts else None

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text, with pieces that mark thoughts or calls as themselves and no other control piece."""
        known = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        ids: list[int] = []
        for part in self._marks.split(known) if self._marks else [known]:
            mark = self._mark_ids.get(part)
            ids += self._tokenizer.encode(part, start=False) if mark is None else [mark]
        return ids


class _Table:
    """llguidance's index of a vocabulary, and the grammars compiled for it, the last used ones."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        with needed("llguidance", "an answer in a given form"):
            import llguidance

        pieces = _Pieces(tokenizer, vocab_size)
        self.vocab_size = vocab_size
        self._index = llguidance.LLTokenizer(pieces, n_vocab=len(pieces.tokens), eos_token=pieces.ends)  # type: ignore[arg-type]
        self._limits = llguidance.LLParserLimits(**json_schema.LIMITS)  # type: ignore[arg-type]
        self._kept: OrderedDict[bytes, tuple[Grammar, llguidance.LLMatcher]] = OrderedDict()
        self._lock = threading.Lock()

    def compiled(self, form: AnswerForm) -> tuple[Grammar, llguidance.LLMatcher]:
        """The grammar of a form, and a fresh state at its start. Raises ValueError where it cannot be held."""
        key = form.key
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept[0], kept[1].deep_copy()
        grammar, matcher = self._compile(form)
        for loosened in grammar.loosened[:_MOST_LOGGED]:
            log.warning("a part of a schema is not held: %s", loosened)
        if len(grammar.loosened) > _MOST_LOGGED:
            log.warning("%d more parts of schemas are not held", len(grammar.loosened) - _MOST_LOGGED)
        self._keep(key, grammar, matcher)
        return grammar, matcher.deep_copy()

    def of_text(self, text: str) -> llguidance.LLMatcher:
        """A fresh state of a grammar that a client wrote. Raises ValueError where it does not compile."""
        key = hashlib.sha256(b"text" + text.encode("utf-8", "replace")).digest()
        with self._lock:
            kept = self._kept.get(key)
        grammar, matcher = kept or (Grammar(text, whole=True), self._matcher(Grammar(text, whole=True)))
        if why := json_schema.compile_error(matcher):
            raise ValueError(f"cannot be guaranteed: {why}"[:_ERROR_CHARS])
        self._keep(key, grammar, matcher)
        return matcher.deep_copy()

    def _keep(self, key: bytes, grammar: Grammar, matcher: llguidance.LLMatcher) -> None:
        with self._lock:
            self._kept[key] = grammar, matcher
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT_GRAMMARS:
                self._kept.popitem(last=False)

    def _compile(self, form: AnswerForm) -> tuple[Grammar, llguidance.LLMatcher]:
        tried: list[llguidance.LLMatcher] = []

        def why_not(grammar: Grammar) -> str:
            tried.append(self._matcher(grammar))
            return json_schema.compile_error(tried[-1])

        try:  # nearly always there is nothing wrong, and the parts need not be tried one by one
            grammar = form.grammar()
            why = why_not(grammar)
        except ValueError as error:
            why = str(error)
        if why:
            grammar = form.loosened(why_not)
        matcher = tried[-1]
        more = form.ignored(grammar) if matcher.get_grammar_warnings() else ()
        return Grammar(grammar.text, grammar.whole, (*grammar.loosened, *more)), matcher

    def _matcher(self, grammar: Grammar) -> llguidance.LLMatcher:
        import llguidance

        lark = llguidance.LLMatcher.grammar_from_lark(grammar.text)
        return llguidance.LLMatcher(self._index, lark, log_level=0, limits=self._limits)


_tables: weakref.WeakKeyDictionary[Transformer, _Table] = weakref.WeakKeyDictionary()
_building = threading.Lock()


def _table_of(model: Transformer, tokenizer: Tokenizer) -> _Table:
    with _building:
        if model not in _tables:
            _tables[model] = _Table(tokenizer, model.config.vocab_size)
        return _tables[model]


def _reason(matcher: llguidance.LLMatcher) -> str:
    lines = matcher.get_error().strip().splitlines() or ["unknown"]
    return lines[0][:_ERROR_CHARS]
