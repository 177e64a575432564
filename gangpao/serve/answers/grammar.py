"""Answers that must have a form: a JSON schema, or calls of functions, as a grammar that rules tokens out (llguidance).

    grammar_of        response_format, tools, tool_choice -> a grammar's text, or None where every answer will do
    constraint_for    the grammar's state for one answer: which tokens may come next, and when nothing may

Every token of an answer is chosen among those that keep it on a path to an end, so an answer that ends conforms; one that
max_tokens cut does not, and says so (finish_reason length). Free text with tools is a grammar too: any text without
<tool_call>, or text up to one and then a call that fits. JSON comes on one line, with a space after each comma and colon: then
most of its marks are forced, and forced tokens are drafts that speculation accepts.

The table of the vocabulary that llguidance needs takes up to a second to build; there is one for each loaded model. Compiled
grammars are kept, as programs send the same schema with every request.

What it gives up: schemas that cannot be held (uniqueItems, not, if) are refused in a response format and for strict
functions, and held as far as possible elsewhere; properties come in the schema's order.
"""

import json
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import llguidance
import numpy as np

from gangpao.engine.generate import Engine
from gangpao.engine.sample import Logits
from gangpao.engine.transformer import Transformer
from gangpao.serve.answers import json_schema
from gangpao.serve.answers.tool_calls import Offered, offered
from gangpao.text.templates.tools import ARGUMENTS, CALL, CALL_END, NAME
from gangpao.text.tokenizer import Tokenizer

MAX_CALLS = 8  # of one answer with parallel calls: a small model may not know when to stop
_KEPT_GRAMMARS = 32
_ERROR_CHARS = 200
# Bounds of what one schema may cost to compile and one token to mask; above them it is an error, not a long wait.
_MAX_LEXER_STATES = 20_000
_MAX_GRAMMAR = 100_000
_MAX_STEP_ITEMS = 20_000


class Grammar(NamedTuple):
    """A grammar in llguidance's Lark dialect. whole: it says all of the answer, and so where it ends."""

    text: str
    whole: bool


class GrammarConstraint:
    """A grammar's state in one answer (the engine's Constraint)."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, whole: bool) -> None:
        self.whole = whole
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
    """A new constraint for one answer; None where none is needed. Takes milliseconds, the first of a model up to a second.

    Raises ValueError, beginning with the field's name, for what is malformed, too large, or impossible to guarantee.
    """
    grammar = grammar_of(response_format, tools, tool_choice, parallel)
    return None if grammar is None else _constraint(engine, grammar)


def text_constraint(engine: Engine, text: str) -> GrammarConstraint:
    """A new constraint for an answer that is all of a grammar, given in llguidance's Lark dialect. Raises ValueError."""
    try:
        return _constraint(engine, Grammar(text, whole=True))
    except ValueError as error:
        raise ValueError(f"cannot be guaranteed: {str(error).rpartition(': ')[2]}") from None


def _constraint(engine: Engine, grammar: Grammar) -> GrammarConstraint:
    table = _table_of(engine.model, engine.tokenizer)
    return GrammarConstraint(table.matcher(grammar.text), table.vocab_size, grammar.whole)


def grammar_of(
    response_format: Mapping[str, Any] | None,
    tools: Sequence[Mapping[str, Any]] | None,
    tool_choice: str | Mapping[str, Any] | None,
    parallel: bool = True,
) -> Grammar | None:
    """The form that an answer must have. Raises ValueError as constraint_for does."""
    schema = _answer_schema(response_format)
    choice = offered(tools, tool_choice)
    if not choice.functions:
        return None if schema is None else Grammar(f"start: answer\nanswer: %json {json.dumps(schema)}\n", whole=True)
    rules = _call_rules(choice, parallel)
    if choice.must:
        return Grammar(f'start: "{CALL}" calls\n{rules}', whole=True)
    if schema is not None:
        return Grammar(f'start: answer | "{CALL}" calls\nanswer: %json {json.dumps(schema)}\n{rules}', whole=True)
    return Grammar(f"start: WORDS | up_to_call calls | bare\n{_free_rules(choice, parallel)}{rules}", whole=False)


def _answer_schema(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
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
    exact = inner.get("strict") is not False
    return json_schema.checked(schema, "response_format: schema", exact=exact)


def _call_rules(choice: Offered, parallel: bool) -> str:
    """Grammar rules for what follows the first <tool_call>."""
    more = f' ("\\n{CALL}" call){{0,{MAX_CALLS - 1}}}' if parallel else ""
    names = [f"call{i}" for i in range(len(choice.functions))]
    rules = [f"calls: call{more}", f'call: "\\n" ({" | ".join(names)}) "\\n{CALL_END}"']
    for i, (name, function) in enumerate(zip(names, choice.functions, strict=True)):
        head = json.dumps(f"{NAME}{function['name']}{ARGUMENTS}")
        rules.append(f'{name}: {head} %json {json.dumps(_arguments_schema(i, function))} "}}"')
    return "\n".join(rules) + "\n"


def _free_rules(choice: Offered, parallel: bool) -> str:
    """Grammar rules for words, words up to <tool_call>, and calls without that mark, as some models write them: bare JSON,
    perhaps in a code fence, at the start of the answer. What begins like one is one, so it is no words."""
    opening = r"\s*(```(json)?\s*)?\{\s*\"name\"\s*:\s*\"%s\"\s*,\s*\"arguments\"".replace(r"\"", '"')
    names = [re.escape(function["name"]).replace("/", r"\/") for function in choice.functions]
    any_name = f"({'|'.join(names)})"
    no_bare = f"& ~/{opening % any_name}(.|\\n)*/"
    heads = [f"bare{i}" for i in range(len(names))]
    rules = [
        f"WORDS: /(.|\\n)*/ & ~/(.|\\n)*{CALL}(.|\\n)*/ {no_bare}",
        f"up_to_call[lazy]: /(.|\\n)*{CALL}/ {no_bare}",
        f"bare: ({' | '.join(heads)}){{1,{MAX_CALLS if parallel else 1}}}",
        r"BARE_END: /\s{0,8}\}(\s{0,8}```)?\s?/",
    ]
    for i, (head, name, function) in enumerate(zip(heads, names, choice.functions, strict=True)):
        schema = json_schema.with_free_spacing(_arguments_schema(i, function))
        rules.append(f"{head}: /{opening % name}\\s*:\\s*/ %json {json.dumps(schema)} BARE_END")
    return "\n".join(rules) + "\n"


def _arguments_schema(i: int, function: Mapping[str, Any]) -> dict[str, Any]:
    where = f"tools[{i}].function.parameters"
    schema = function.get("parameters")
    if schema is None or schema == {}:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    ready = json_schema.checked(schema, where, exact=function.get("strict") is True)
    if ready.get("type", "object") != "object":
        raise ValueError(f'{where}: the type must be "object", not {ready["type"]!r:.60}')
    return {"type": "object", **ready}


# --- what a model's vocabulary is to llguidance


class _Pieces:
    """The tokenizer in the form llguidance asks for. A vocabulary without an end gets one behind its last id."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.ends = sorted(i for i in tokenizer.end_ids if i < vocab_size) or [vocab_size]
        self.eos_token_id = self.ends[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(vocab_size)]
        self.special_token_ids = sorted(i for i in tokenizer.control_ids if i < vocab_size)
        if self.ends == [vocab_size]:
            self.tokens.append(b"<end>")
            self.special_token_ids.append(vocab_size)
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        known = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(known, start=False)


class _Table:
    """llguidance's index of a vocabulary, and the grammars compiled for it, the last used ones."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        pieces = _Pieces(tokenizer, vocab_size)
        self.vocab_size = vocab_size
        self._index = llguidance.LLTokenizer(pieces, n_vocab=len(pieces.tokens), eos_token=pieces.ends)  # type: ignore[arg-type]
        self._limits = llguidance.LLParserLimits(
            max_lexer_states=_MAX_LEXER_STATES,
            max_grammar_size=_MAX_GRAMMAR,
            step_max_items=_MAX_STEP_ITEMS,
            verbose_errors=False,
        )
        self._kept: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: str) -> llguidance.LLMatcher:
        """A fresh state at the grammar's start. Raises ValueError where it does not compile."""
        with self._lock:
            kept = self._kept.get(grammar)
            if kept is not None:
                self._kept.move_to_end(grammar)
                return kept.deep_copy()
        made = llguidance.LLMatcher(
            self._index, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0, limits=self._limits
        )
        if not made.is_error():
            made.compute_bitmask()  # a first step finds what compiling does not
        if made.is_error():
            raise ValueError(f"response_format or tools: this schema cannot be guaranteed: {_reason(made)}")
        with self._lock:
            self._kept[grammar] = made
            while len(self._kept) > _KEPT_GRAMMARS:
                self._kept.popitem(last=False)
        return made.deep_copy()


_tables: "weakref.WeakKeyDictionary[Transformer, _Table]" = weakref.WeakKeyDictionary()
_building = threading.Lock()


def _table_of(model: Transformer, tokenizer: Tokenizer) -> _Table:
    with _building:
        if model not in _tables:
            _tables[model] = _Table(tokenizer, model.config.vocab_size)
        return _tables[model]


def _reason(matcher: llguidance.LLMatcher) -> str:
    lines = matcher.get_error().strip().splitlines() or ["unknown"]
    return lines[0][:_ERROR_CHARS]
