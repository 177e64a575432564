"""Forms of an answer: a JSON schema, one of several texts, a regular expression, a grammar. A request has at most one.

A schema goes through grammar.py as it is; the others become a grammar in llguidance's dialect of Lark (GBNF, llama.cpp's form, is
translated). What it gives up: grammars longer than MAX_GRAMMAR characters.
"""

import json
import re
from typing import Any, Literal, NamedTuple

from gangpao.optional import needed

MAX_GRAMMAR = 20_000
MAX_CHOICES = 1_000


class Form(NamedTuple):
    """What an answer is to be. value: for json OpenAI's response_format, for choice a list of texts, else a text. field: what asked
    for it, in our words."""

    kind: Literal["json", "choice", "regex", "grammar"]
    value: Any
    field: str = "response_format"


def lark(form: Form) -> str:
    """The grammar of a choice, a regular expression or a grammar. Raises ValueError for what is none."""
    if form.kind == "choice":
        texts = form.value
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
            raise ValueError("must be a list of texts")
        if len(texts) > MAX_CHOICES:
            raise ValueError(f"{len(texts)} texts are more than {MAX_CHOICES}")
        return f"start: {' | '.join(map(json.dumps, texts))}\n"
    if not isinstance(form.value, str) or not form.value.strip():
        raise ValueError("must be a text")
    if len(form.value) > MAX_GRAMMAR:
        raise ValueError(f"{len(form.value)} characters are more than {MAX_GRAMMAR}")
    if form.kind == "regex":
        # A slash ends a regular expression in Lark, and so does a line's end.
        inner = re.sub(r"\\.|/|\n", lambda m: {"/": r"\/", "\n": r"\n"}.get(m[0], m[0]), form.value, flags=re.DOTALL)
        return f"start: /{inner}/\n"
    with needed("llguidance", "an answer in a given form"):
        from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(form.value))
    except Exception as error:  # the translator raises what it likes
        raise ValueError(f"is no grammar: {error}"[:200]) from None
