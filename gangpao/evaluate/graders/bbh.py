"""BIG-Bench Hard: the answer behind "So the answer is", compared as its target is: an option, a word, a number, brackets, words.

Nothing is cut off an answer but the punctuation that ends a sentence, and an answer ends where the next question begins. (lm-eval
0.4.13 takes the last character away whatever it is, and ends every answer at a capital Q.)
"""

from __future__ import annotations

import re
import unicodedata

from gangpao.evaluate.graders import maths
from gangpao.evaluate.graders.grade import Grade

NAME, VERSION = "gangpao-bbh", 1
GRADER = f"{NAME} {VERSION}"
STOP_VERSION = 1
STOPS = ("\n\nQ:", "\nQ:", "\n\nQuestion:")

_PHRASE = re.compile(r"(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is|\s*:)\s*:?\s*|答案(?:是|为|:|：)\s*", re.I)
_OPTION = re.compile(r"\(([A-Z])\)|(?<![A-Za-z(])([A-Z])(?=[).:,;]|\s*$|\s+\()")
_WORDS = {"true", "false", "yes", "no", "valid", "invalid"}
_BRACKETS = "()[]{}<>"
_END = " \t\n.!。*_`\"'$"


def kind_of(target: str) -> str:
    """option, word, number, brackets, words or text: how a target is compared."""
    target = target.strip()
    if re.fullmatch(r"\([A-Z]\)", target):
        return "option"
    if target.casefold() in _WORDS:
        return "word"
    if re.fullmatch(r"-?\d+(?:\.\d+)?", target):
        return "number"
    if target and all(c in _BRACKETS or c.isspace() for c in target):
        return "brackets"
    return "words" if re.fullmatch(r"[a-z'&-]+(?: [a-z'&-]+)*", target) else "text"


def answer_of(text: str, *, direct: bool = False) -> str | None:
    """What an answer says: behind the last "answer is", to the end of the line; with `direct`, its first line where it says no such
    thing. None where there is nothing."""
    text = unicodedata.normalize("NFKC", text)
    places = [place for stop in STOPS if (place := text.find(stop)) >= 0]
    text = text[: min(places)] if places else text
    found = list(_PHRASE.finditer(text))
    if not found and not direct:
        return None
    rest = text[found[-1].end() :] if found else text
    line = rest.strip().partition("\n")[0].strip()
    return re.sub(r"\*\*|__", "", line).strip() or None


def _option(said: str) -> str | None:
    found = list(dict.fromkeys(a or b for a, b in _OPTION.findall(said)))
    leading = re.match(r"\W*(?:[Oo]ption\s+)?\(?([A-Z])(?:\)|(?=[.:,]|\s*$|\s+[^a-z\s]))", said)
    if leading and not re.search(r"\b(?:or|and)\s+\(?[A-Z]\b", said):
        return f"({leading[1]})"
    return f"({found[0]})" if len(found) == 1 else None


def _word(said: str) -> str | None:
    if re.match(r"\W*(?:not\s+)(?:valid|true|plausible)", said, re.I):
        return {"v": "invalid", "t": "false", "p": "no"}[re.split(r"not\s+", said.casefold(), maxsplit=1)[1][0]]
    first = re.match(r"\W*(?:that\s+)?(?:the\s+argument\s+is\s+)?(?:deductively\s+)?([a-z]+)", said, re.I)
    return first[1].casefold() if first and first[1].casefold() in _WORDS else None


def _read(said: str, kind: str) -> str | None:
    """An answer in the form in which targets of its kind are compared."""
    if kind == "option":
        return _option(said)
    if kind == "word":
        return _word(said)
    if kind == "number":
        found = maths.numbers(said)
        values = {value for _, value in found}
        equation = "=" in said  # 2 + 3 = 5: what it comes to
        return str(found[-1][1]) if found and (equation or len(values) == 1) else str(found[0][1]) if found else None
    if kind == "brackets":
        bare = said.strip(" \t.。*_`\"'$")
        return "".join(bare.split()) if bare and all(c in _BRACKETS or c.isspace() for c in bare) else None
    bare = said.strip(_END).casefold()
    if kind == "words":
        return " ".join(word for word in re.split(r"[\s,;]+", bare) if word) or None
    return " ".join(bare.split()) or None


def grade(answer: str, target: str, *, direct: bool = False) -> Grade:
    """An answer with its reasoning (`direct`: without) against a target as published. Raises ValueError for an empty target."""
    if not target.strip():
        raise ValueError("an empty target; the row of the data set is damaged")
    kind = kind_of(target)
    said = answer_of(answer, direct=direct)
    if said is None:
        return Grade(False, None, "no 'the answer is'" if not direct else "an empty answer")
    found, right = _read(said, kind), _read(target, kind)
    if found is None:
        return Grade(False, None, f"no {kind} in {said[:80]!r}")
    return Grade(found == right, found, f"{kind}: {found[:80]}, the target is {target[:80]}")
