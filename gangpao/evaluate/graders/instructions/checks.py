"""The checks: each says whether an answer keeps one instruction. Pure functions; parameters are plain JSON values.

A word is a run of Latin letters and digits, or one Chinese character; a keyword in Latin letters is found as a whole word, one in
Chinese anywhere. Counts with a relation take "at least", "at most" or "exactly".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+(?:['’-][^\W_{_HAN}]+)*")
_ABBREVIATIONS = (
    r"(?:(?<=\bMr)|(?<=\bMrs)|(?<=\bMs)|(?<=\bDr)|(?<=\bSt)|(?<=\bvs)|(?<=\betc)|(?<=\be\.g)|(?<=\bi\.e)|(?<=\b[A-Z]))"
)
_SENTENCE_END = re.compile(
    rf"(?:(?<!\.)(?!{_ABBREVIATIONS}\.)[.!?]+[\"'”’)\]*]*(?=\s+[^a-z\s]|\s*$)|[。！？]+[”’」』）*]*|\.\.\.(?=\s+[A-Z]|\s*$)|\n\s*\n)"
)
_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*\Z", re.S)
_BULLET = re.compile(r"^[ \t]*[-*•·][ \t]+\S", re.M)
_NUMBERED = re.compile(r"^[ \t]*\d+[.)、．][ \t]*\S", re.M)
_QUOTES = (('"', '"'), ("“", "”"), ("「", "」"), ("『", "』"), ("＂", "＂"))


def words(text: str) -> list[str]:
    """Words of Latin script and single Chinese characters."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Pieces that end in a mark of a sentence, or at an empty line; pieces without a word are none."""
    return [piece for piece in _SENTENCE_END.split(text) if piece and _WORD.search(piece)]


def paragraphs(text: str, mark: str = "") -> list[str]:
    """Paragraphs between `mark`, or between empty lines where there is none."""
    pieces = text.split(mark) if mark else re.split(r"\n\s*\n", text)
    return [piece.strip() for piece in pieces]


def count_of(text: str, word: str) -> int:
    """How often a word occurs, capital letters or not."""
    bare = re.escape(word)
    if re.search(rf"[{_HAN}]", word):
        return len(re.findall(bare, text, re.I))
    return len(re.findall(rf"(?<![^\W{_HAN}]){bare}(?![^\W{_HAN}])", text, re.I))


def compare(count: int, relation: str, number: int) -> bool:
    """Raises ValueError for another relation."""
    if relation == "at least":
        return count >= number
    if relation == "at most":
        return count <= number
    if relation == "exactly":
        return count == number
    raise ValueError(f"no such relation: {relation!r}; at least, at most and exactly are there")


# --- length


def word_count(answer: str, relation: str, number: int) -> bool:
    """Words; of Chinese, characters without punctuation."""
    return compare(len(words(answer)), relation, number)


def sentence_count(answer: str, relation: str, number: int) -> bool:
    """Sentences."""
    return compare(len(sentences(answer)), relation, number)


def paragraph_count(answer: str, number: int, mark: str = "") -> bool:
    """Exactly so many paragraphs, none of them empty; a mark before the first or behind the last is forgiven."""
    found = paragraphs(answer.strip(), mark)
    found = found[1:] if found and not found[0] else found
    found = found[:-1] if found and not found[-1] else found
    return len(found) == number and all(found)


def nth_paragraph_starts(answer: str, paragraph: int, word: str, number: int) -> bool:
    """So many paragraphs, of which one begins with a word."""
    found = [piece for piece in paragraphs(answer.strip()) if piece]
    if len(found) != number or not 1 <= paragraph <= number:
        return False
    start = found[paragraph - 1].lstrip("\"'“‘*_#「『( ").casefold()
    rest = start.removeprefix(word.casefold())
    return rest != start and (bool(re.search(rf"[{_HAN}]", word)) or not rest[:1].isalnum())


# --- words


def keywords(answer: str, words: list[str]) -> bool:
    """All of them occur."""
    return all(count_of(answer, word) for word in words)


def forbidden(answer: str, words: list[str]) -> bool:
    """None of them occurs."""
    return not any(count_of(answer, word) for word in words)


def keyword_count(answer: str, word: str, relation: str, number: int) -> bool:
    """How often one occurs."""
    return compare(count_of(answer, word), relation, number)


def letter_count(answer: str, letter: str, relation: str, number: int) -> bool:
    """How often a letter or a Chinese character occurs, capital or not."""
    return compare(answer.casefold().count(letter.casefold()), relation, number)


# --- form


def json_only(answer: str) -> bool:
    """Nothing but JSON, an object or a list; a fence around it is forgiven."""
    fenced = _FENCE.match(answer)
    try:
        value = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)


def bullet_count(answer: str, number: int) -> bool:
    """Exactly so many points of a list."""
    return len(_BULLET.findall(answer)) == number


def numbered_count(answer: str, number: int) -> bool:
    """Exactly so many numbered points, 1 to n in order."""
    found = [int(re.search(r"\d+", m.group())[0]) for m in _NUMBERED.finditer(answer)]  # type: ignore[index]
    return found == list(range(1, number + 1))


def section_count(answer: str, name: str, number: int) -> bool:
    """At least so many sections, each with a heading: Section 1, or 第1节."""
    chinese = re.search(rf"[{_HAN}]", name)
    digits = r"(?:\d+|[一二三四五六七八九十]+|[IVX]+)"
    heading = rf"第\s*{digits}\s*{re.escape(name)}" if chinese else rf"{re.escape(name)}\s*{digits}\b"
    return len(re.findall(rf"^[ \t#*_【\[]*{heading}", answer, re.M | re.I)) >= number


def title(answer: str) -> bool:
    """A title in double angle brackets, 《《》》 of Chinese or «» not among them."""
    return any(piece.strip() for piece in re.findall(r"<<([^<>\n]+)>>", answer))


def highlighted(answer: str, number: int) -> bool:
    """At least so many pieces between asterisks, one or two on a side."""
    pieces = re.findall(r"\*\*([^*\n]+)\*\*|(?<!\*)\*(?![\s*])([^*\n]+)\*(?!\*)", answer)
    return sum(bool((a or b).strip()) for a, b in pieces) >= number


def placeholders(answer: str, number: int) -> bool:
    """At least so many different places to fill in, [as here]; a link of Markdown is none."""
    return len({p.strip() for p in re.findall(r"\[([^\[\]\n]+)\](?!\()", answer)} - {"", "x", "X"}) >= number


def postscript(answer: str, mark: str) -> bool:
    """A last part that begins with the mark, P.S. or 附言, and says something."""
    if re.search(rf"[{_HAN}]", mark):
        pattern = rf"^[ \t*_]*{re.escape(mark)}[*_]*\s*[:：,，]?[*_]*\s*[^\s:：,，*_]"
    else:
        letters = [re.escape(c) for c in mark if c.isalpha()]
        pattern = rf"^[ \t*_]*{r'[.]?[ ]?'.join(letters)}[.:]*[*_]*\s*[^\s.:*_]"
    found = list(re.finditer(pattern, answer, re.M | re.I))
    return bool(found) and found[-1].start() > 0


def two_answers(answer: str, mark: str) -> bool:
    """Two different answers with the mark between them, once."""
    found = [piece.strip() for piece in answer.split(mark)]
    return len(found) == 2 and all(found) and found[0] != found[1]


def repeated(answer: str, text: str) -> bool:
    """The request word for word first, then an answer."""

    def bare(piece: str) -> str:
        return " ".join(piece.split()).casefold()

    start, whole = bare(text), bare(answer).lstrip("\"'“*> ")
    return whole.startswith(start) and bool(_WORD.search(whole[len(start) :]))


def one_of(answer: str, options: list[str]) -> bool:
    """Nothing but one of the options; quotation marks and a full stop are forgiven."""
    bare = answer.strip().strip("\"'“”‘’「」*").strip().rstrip(".。!！").casefold()
    return bare in {option.rstrip(".。!！").casefold() for option in options}


# --- letters, beginning and end


def language(answer: str, code: str) -> bool:
    """By script: zh has more Chinese characters than other words, 3 to 2; en has Latin letters nearly alone. Else ValueError."""
    if code == "zh":
        found = words(answer)
        return sum(bool(re.match(rf"[{_HAN}]", word)) for word in found) > 0.6 * len(found)
    if code == "en":
        letters = [c for c in answer if c.isalpha()]
        return bool(letters) and sum(c.isascii() for c in letters) > 0.95 * len(letters)
    raise ValueError(f"no check for the language {code!r}; zh and en are there")


def lower_case(answer: str) -> bool:
    """Letters, and no capital one."""
    return answer.islower()


def upper_case(answer: str) -> bool:
    """Letters, and no small one."""
    return answer.isupper()


def capital_words(answer: str, relation: str, number: int) -> bool:
    """Words all in capital letters; I and A count."""
    return compare(sum(word.isupper() for word in words(answer)), relation, number)


def starts_with(answer: str, text: str) -> bool:
    """The first words; quotation marks and emphasis before them are forgiven."""
    return answer.strip().lstrip("\"'“‘*「 ").casefold().startswith(text.casefold())


def ends_with(answer: str, text: str) -> bool:
    """The last words; quotation marks and emphasis behind them are forgiven."""
    return answer.strip().rstrip("\"'”’*」 ").casefold().endswith(text.casefold())


def quoted(answer: str) -> bool:
    """The whole in quotation marks."""
    text = answer.strip()
    return len(text) > 2 and any(text.startswith(a) and text.endswith(b) for a, b in _QUOTES)


def no_commas(answer: str) -> bool:
    """No comma of either script; the Chinese 、 is another sign."""
    return bool(answer.strip()) and not re.search(r"[,，]", answer)


def no_digits(answer: str) -> bool:
    """No digit."""
    return bool(answer.strip()) and not re.search(r"\d", answer)


CHECKS: dict[str, Callable[..., bool]] = {
    check.__name__: check
    for check in (
        word_count, sentence_count, paragraph_count, nth_paragraph_starts, keywords, forbidden, keyword_count, letter_count,
        json_only, bullet_count, numbered_count, section_count, title, highlighted, placeholders, postscript, two_answers,
        repeated, one_of, language, lower_case, upper_case, capital_words, starts_with, ends_with, quoted, no_commas, no_digits,
    )
}  # fmt: skip


def check(answer: str, kind: str, parameters: dict[str, Any]) -> bool:
    """Whether an answer keeps an instruction. Raises ValueError for an unknown kind or parameters that it does not have."""
    if kind not in CHECKS:
        raise ValueError(f"no such instruction: {kind!r}; there are {', '.join(CHECKS)}")
    try:
        return CHECKS[kind](answer, **parameters)
    except TypeError as error:
        raise ValueError(f"instruction {kind}: {error}") from error
