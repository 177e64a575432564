"""The letter that a written answer settles on, in Chinese and English, for multiple choice in generation mode.

Looked for in this order, and the first that gives one letter decides:

1. what is said to be the answer: `the answer is B`, `答案是B`, `故选B`, `B项正确`, `\\boxed{B}`; of several such sentences the last
2. a letter at the beginning: `B`, `(B)`, `B. Paris`, `**B**`
3. a letter alone on the last line
4. one letter that stands alone in the text, as `option B`, `选项B` or `(B)`, and no other
5. the text of one option, word for word, of no other, and hardly more (where the options are given)

Two letters in one place (`A和C`, `AC`, `A or B`) are no answer to a question with one: none. So is a refusal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from gangpao.evaluate.graders.grade import Grade

NAME, VERSION = "gangpao-choice", 1
GRADER = f"{NAME} {VERSION}"

_AROUND = 15  # words beside the text of an option, for that to be a choice
_LONGEST = 20_000  # characters that are read, from the end
_NOT = r"(?:not|n't|isn't|不是|并非|不为|不选|非)"
_AND = r"(?:\s*(?:[,、/&+;]|and|or|和|与|及|或|或者)?\s*)"


def _patterns(letters: str) -> list[re.Pattern[str]]:
    """What says which letter is the answer; the letters are in the group `said`."""
    one = rf"[(\[【《〈'\"“‘]*\s*(?<![A-Za-z])[{letters}](?![A-Za-z]|'[a-z])"
    many = rf"(?P<said>[{letters}]{{2,}}(?![A-Za-z])|{one}(?:[)\]】]?{_AND}{one})*)"
    option = r"(?:(?:the\s+)?(?:option|choice|letter)|选项|选择|选)?"
    english = (
        r"\b(?:answers?|(?:correct|right|best|final|my)\s+(?:answer|option|choice|one)|answer\s+choice|option\s+that\s+\w+)"
        rf"(?:\s+(?:to|for|of)\s+[^.\n]{{0,80}}?)?\s*(?:is|would\s+be|should\s+be|must\s+be|are|:|=)\s*:?\s*{option}\s*:?\s*"
    )
    chinese = (
        r"(?:正确|最佳|最终)?(?:答案|选项|选择|答)(?:应该|应当|应)?(?:是|为|选|在于)?\s*[:：]?\s*"
        + option
        + r"\s*[:：]?\s*"
    )
    choose = (
        r"(?:应该|应当|应|故|因此|所以|我|可|而|本题|,|，|。|^|\s)\s*(?:本题|应|可)?选(?:择|项)?(?:的是)?\s*[:：]?\s*"
    )
    english_choose = (
        rf"\b(?:I\s+(?:would\s+)?(?:choose|pick|select|go\s+with)|I'd\s+(?:choose|pick|go\s+with))\s+{option}\s*"
    )
    correct = rf"(?<![A-Za-z{letters}])(?P<said>[{letters}])[)\]】]?\s*(?:项|选项)?\s*"
    return [
        re.compile(english + many, re.I | re.M),
        re.compile(chinese + many, re.M),
        re.compile(choose + many, re.M),
        re.compile(english_choose + many, re.I | re.M),
        re.compile(correct + r"(?:是|为|才是)?(?:正确|对)(?:的|答案|选项)?(?!吗)"),
        re.compile(
            correct + r"(?:is|must\s+be)\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best|accurate|appropriate)", re.I
        ),
        re.compile(r"\\boxed\s*\{\s*(?:\\text\w*\s*\{\s*)?" + many),
    ]


def _plain(answer: str) -> str:
    text = unicodedata.normalize("NFKC", answer[-_LONGEST:])
    return re.sub(r"\*\*|__|`|\$|(?<!\w)\*(?=\S)|(?<=\S)\*(?!\w)", "", text).strip()


def _letters_in(said: str, letters: str) -> list[str]:
    """Different letters in a piece of text, in order."""
    return list(dict.fromkeys(re.findall(rf"[{letters}]", said)))


def _said(text: str, letters: str) -> Iterator[tuple[int, list[str]]]:
    for pattern in _patterns(letters):
        for found in pattern.finditer(text):
            said = found["said"]
            if not re.search(rf"[{letters}]", said):  # a small letter, which the case of words let through
                continue
            if re.search(_NOT + r"\s*$", text[max(0, found.start() - 6) : found.start("said")].rstrip("选 ")):
                continue
            article = said == "A" and re.match(r"\s+[a-z]", text[found.end("said") :])
            if not article:
                yield found.start("said"), _letters_in(said, letters)


def _at_the_beginning(text: str, letters: str) -> list[str]:
    one = rf"(?:(?:option|choice|选项|答)\s*[:：]?\s*)?[(\[【]?\s*([{letters}])\s*[)\]】]?"
    found = re.match(rf"[^\w(\[【]*{one}(?=\s*$|\s*\n|[.,:;、。)\]】]|\s+[(\-—]|\s*[\u4e00-\u9fff])", text, re.I)
    if not found or found[1] not in letters:
        return []
    more = re.match(
        rf"[)\]】]?\s*(?:[,、/&]|and|or|和|与|及|或)\s*[(\[【]?([{letters}])(?![A-Za-z])", text[found.end(1) :]
    )
    return [found[1], more[1]] if more and more[1] != found[1] else [found[1]]


def _alone(text: str, letters: str) -> list[str]:
    """Letters that stand for an option wherever they are: in brackets, or behind the word."""
    found = re.findall(rf"[(\[【]([{letters}])[)\]】]|(?:[Oo]ption|[Cc]hoice|选项)\s*([{letters}])(?![A-Za-z])", text)
    return list(dict.fromkeys(a or b for a, b in found))


def _count(text: str) -> int:
    """Words, each Chinese character one."""
    return len(re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+", text))


def _by_text(text: str, options: Sequence[str], letters: str) -> list[str]:
    def bare(piece: str) -> str:
        return re.sub(r"[\s.,;:。，；：]+", " ", unicodedata.normalize("NFKC", piece)).strip().casefold()

    whole, pieces = bare(text), [bare(option) for option in options]
    exact = [n for n, piece in enumerate(pieces) if piece and piece == whole]
    if not exact:
        # In a long answer an option is discussed, not chosen.
        inside = [
            n
            for n, piece in enumerate(pieces)
            if len(piece) > 1 and piece in whole and _count(whole.replace(piece, "")) <= _AROUND
        ]
        # An option that is a part of another one is not named by it.
        exact = [n for n in inside if not any(n != m and pieces[n] in pieces[m] for m in inside)]
    return [letters[n] for n in exact]


def letter(answer: str, letters: str = "ABCD", options: Sequence[str] = ()) -> tuple[str | None, str]:
    """The letter and how it was found; None and why where there is not one."""
    text = _plain(answer)
    if not text:
        return None, "an empty answer"
    said = sorted(_said(text, letters))
    last_line = text.rsplit("\n", 1)[-1]
    end = re.fullmatch(rf"\W*([{letters}])\W*", last_line)
    ways = (
        (said[-1][1] if said else [], "said to be the answer"),
        (_at_the_beginning(text, letters), "at the beginning"),
        ([end[1]] if end else [], "alone on the last line"),
        (_alone(text, letters), "the letters that stand alone"),
        (_by_text(text, options, letters), "by the text of an option"),
    )
    for found, how in ways:
        if len(found) == 1:
            return found[0], how
        if len(found) > 1:
            return None, f"several letters: {', '.join(found)} ({how})"
    return None, "no letter"


def grade(answer: str, right: str, letters: str = "ABCD", options: Sequence[str] = ()) -> Grade:
    """Whether an answer settles on `right`, one of `letters`. Raises ValueError where it is none of them."""
    if len(right) != 1 or right not in letters:
        raise ValueError(f"the right answer {right!r} is none of {letters}; the row of the data set is damaged")
    found, how = letter(answer, letters, options)
    return Grade(found == right, found, how if found is None else f"{found}: {how}; the right one is {right}")
