r"""Whether two answers of mathematics are the same up to how they are written: numbers, formulas, pairs, intervals, sets, lists,
matrices, equations, words.

`same("0.5", r"\frac12")`, `same(r"\{1, 2\}", "{2,1}")`, `same("x = 5", "5")`, `same("5\text{ cm}", "5")` are true; `(1,2)` and
`[1,2]`, `1/3` and `0.33`, `28\%` and `0.28` are not the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from gangpao.evaluate.graders import latex

_ROW = "\x1e"  # between rows of a matrix
_MAX_PARTS = 60  # of a list, a set, a matrix
_SIGNS = str.maketrans({
    "−": "-", "–": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "π": r"\pi ", "∞": r"\infty ",
    "∪": r"\cup ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∈": r"\in ", "，": ",", "。": ".", "、": ",",
    "；": ";", "：": ":", "θ": r"\theta ", "（": "(", "）": ")", "【": "[", "】": "]", "“": '"', "”": '"',
})  # fmt: skip
_ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?|\w|\([^()]*\))")
_POWERS = {"²": "^2", "³": "^3"}
_SPACING = re.compile(
    r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|displaystyle|textstyle|limits|quad|qquad|hspace\{[^}]*\}|phantom\{[^}]*\})(?![a-zA-Z])"
    r"|\\[,!;:> ]|~|\\(?=\s|$)"
)
_NAMES = [
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])"), r"\\ge"),
    (re.compile(r"\\neq(?![a-zA-Z])"), r"\\ne"),
    (re.compile(r"\\(begin|end)\{(?:[bBvV]?matrix|array)\}(?:\{[lcr|]*\})?"), r"\\\1{pmatrix}"),
    (re.compile(r"\\lbrace|\\\{"), r"\\{"),
    (re.compile(r"\\rbrace|\\\}"), r"\\}"),
    (re.compile(r"(?<![\\a-zA-Z])(sqrt|pi|sin|cos|tan|log|ln|infty)(?![a-zA-Z])"), r"\\\1"),
    (re.compile(r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])"), r"\\infty"),
]  # fmt: skip
_DEGREES = re.compile(r"\^\s*\{\s*\\circ\s*\}|\^?\s*\\circ(?![a-zA-Z])|\\degree|°|\\%|%|\\\$|\$|€|£|¥|￥")
_TEXT = re.compile(
    r"\\(?:text|mbox|mathrm|textrm|textbf|textit|mathbf|mathit|operatorname|mathsf|hbox|bf|rm)\s*\{([^{}]*)\}"
)
_UNIT_TEXT = re.compile(_TEXT.pattern + r"(?:\s*\^\s*\{?\d\}?)?\s*\.?$")
_UNIT = re.compile(
    r"(?<=[\d})\s])\s*(?:degrees?|°|percent|dollars?|cents?|units?|sq(?:uare|\.)? ?\w+|cubic \w+|inch(?:es)?|feet|foot|ft|miles?|"
    r"yards?|[cmk]?m|[mk]?g|kg|hours?|hrs?|minutes?|mins?|seconds?|secs?|days?|weeks?|months?|years?|people|students|ways|points|"
    r"mph|米|厘米|千米|公里|克|千克|公斤|元|美元|度|个|人|天|小时|分钟|秒|岁|次|种|平方米|平方厘米|立方厘米)(?:\s*\^\s*\{?\d\}?)?\s*\.?$"
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:\{?,\}?\d{3})+(?![\d])")
_LEFT_SIDE = re.compile(r"^\\?[a-zA-Z]\w*(?:\([a-zA-Z]\)|_\{?\w+\}?|')?\s*(?:=|\\in(?![a-zA-Z]))\s*(?=\S)")
_RELATION = re.compile(r"(\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\ne(?![a-zA-Z])|<|>|=)")
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.S)
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
_AND = re.compile(r"\\text\{\s*(?:and|or|和|或)\s*\}|\s(?:and|or)\s|(?<=[\d}])[和或](?=[\d\\-])")


def clean(text: str) -> str:
    """One way to write it: no spacing commands, no dollar signs, one name for each command, no unit behind a number."""
    text = text.replace(r"\\", _ROW)  # before anything takes its second half for the start of a command
    text = _ROOT.sub(r"\\sqrt{\1}", text.strip().translate(_SIGNS))
    for sign, power in _POWERS.items():
        text = text.replace(sign, power)
    text = unicodedata.normalize("NFKC", text).strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
            text = text[len(opening) : -len(closing)].strip()
    text = re.sub(r"(?<=\d),\s*\\!\s*(?=\d{3})", ",", text)
    text = _SPACING.sub(lambda m: " " if m.group() in ("\\ ", "~", "\\quad", "\\qquad") else "", text)
    for pattern, name in _NAMES:
        text = pattern.sub(name, text)
    if not text.startswith(("(", "[", "\\{")):
        text = _THOUSANDS.sub(lambda m: re.sub(r"[{},]", "", m.group()), text)
    text = _AND.sub(",", re.sub(r"(?<![\d.])(\d+) (\d+)/(\d+)(?!\d)", r"\1\\frac{\2}{\3}", text))
    if whole := _TEXT.fullmatch(text.strip().rstrip(".,;:").strip()):
        text = whole[1].strip()
    text = re.sub(r",\s*,", ",", _DEGREES.sub("", text)).strip()
    if re.search(r"\d", stem := _UNIT_TEXT.sub("", text)) and stem.strip():
        text = stem.strip()
    text = _UNIT.sub("", text.strip())
    return text.strip().rstrip(".,;:").strip()


def _bare(text: str) -> str:
    """Letters and signs alone, for texts that are no formulas."""
    text = re.sub(r"(?<=\d)\s+(?=\d)", "_", _TEXT.sub(r"\1", text))  # 1 2 is not 12
    return re.sub(r"\s+|[\"'`]", "", text).casefold()


def _split(text: str, *marks: str) -> list[str]:
    """Parts between marks that stand outside brackets."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if mark := next((m for m in marks if text.startswith(m, at)), ""):
            if depth == 0:
                parts.append(text[start:at])
                start = at + len(mark)
            at += len(mark)
            continue
        depth += (text[at] in "([{") - (text[at] in ")]}")
        at += 1
    return [part.strip() for part in [*parts, text[start:]]]


def _brackets(text: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) where one pair of brackets holds the whole."""
    for opening, closing in (("\\{", "\\}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"), ("{", "}")):
        if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening + closing):
            inside = text[len(opening) : len(text) - len(closing)]
            depth = 0
            for c in inside:
                depth += (c in "([{") - (c in ")]}")
                if depth < 0:
                    return None
            return opening, inside, closing
    return None


def _all_same(left: list[str], right: list[str], *, ordered: bool, depth: int) -> bool:
    if len(left) != len(right) or len(left) > _MAX_PARTS:
        return False
    if ordered:
        return all(_same(a, b, depth + 1) for a, b in zip(left, right, strict=True))
    rest = list(right)
    for one in left:
        match = next((n for n, other in enumerate(rest) if _same(one, other, depth + 1)), None)
        if match is None:
            return False
        del rest[match]
    return True


def _rows(text: str) -> list[list[str]] | None:
    found = _MATRIX.fullmatch(text)
    if not found:
        return None
    rows = [row for row in _split(found[1], _ROW) if row]
    return [_split(row, "&") for row in rows]


def _parts(text: str) -> list[str]:
    r"""Parts between commas; one with a \pm is two."""
    parts: list[str] = []
    for part in _split(text, ","):
        signs = "+-" if part.count(r"\pm") == 1 else ""
        parts += [part.replace(r"\pm", sign).strip().removeprefix("+") for sign in signs] or [part]
    return parts


def _formulas(left: str, right: str, compare: Callable[[latex.Tree, latex.Tree], bool]) -> bool:
    if _WORD.search(_TEXT.sub(r"\1", left)) or _WORD.search(_TEXT.sub(r"\1", right)):
        return False  # "east" is no product of four variables
    try:
        return compare(latex.parse(_TEXT.sub(r"\1", left)), latex.parse(_TEXT.sub(r"\1", right)))
    except latex.FormulaError:
        return False


def _relations(left: str, right: str, depth: int) -> bool:
    """Equations and inequalities: the same sides, the same the other way round, or equations of the same solutions."""
    a, b = _RELATION.split(left), _RELATION.split(right)
    if len(a) != len(b) or len(a) < 3:
        return False
    turned = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
    back = [turned.get(part, part) for part in reversed(b)]
    for other in (b, back):
        if a[1::2] == other[1::2] and _all_same(a[::2], other[::2], ordered=True, depth=depth):
            return True
    if a[1] == b[1] == "=" and len(a) == 3:
        return _formulas(f"{a[0]}-({a[2]})", f"{b[0]}-({b[2]})", latex.proportional)
    return False


def _boxes(left: str, right: str, depth: int) -> bool | None:
    """Matrices, unions, pairs, intervals, sets and lists; None where neither is one."""
    rows, others = _rows(left), _rows(right)
    if rows is not None or others is not None:
        if rows is None or others is None or len(rows) != len(others):
            return False
        return all(_all_same(a, b, ordered=True, depth=depth) for a, b in zip(rows, others, strict=True))
    for split in (lambda text: _split(text, r"\cup"), _parts):
        a, b = split(left), split(right)
        if len(a) > 1 or len(b) > 1:
            return _all_same(a, b, ordered=False, depth=depth)
    boxes = _brackets(left), _brackets(right)
    insides = [_parts(box[1]) if box else [] for box in boxes]
    a_box, b_box = boxes
    if (
        a_box and b_box and (len(insides[0]) > 1 or len(insides[1]) > 1 or a_box[0] == "\\{" or b_box[0] == "\\{")
    ):  # a pair of brackets around one value is no box, unless it is a set
        kinds = {(box[0].removeprefix("\\"), box[2].removeprefix("\\")) for box in (a_box, b_box)}
        ordered = a_box[0].removeprefix("\\") != "{"
        return len(kinds) == 1 and _all_same(*insides, ordered=ordered, depth=depth)
    return None


def _same(left: str, right: str, depth: int) -> bool:
    if _bare(left) == _bare(right):
        return bool(_bare(left))
    if depth > 6 or not left or not right:
        return False
    boxed = _boxes(left, right, depth)
    if boxed is not None:
        return boxed
    if _RELATION.search(left) or _RELATION.search(right):
        return _relations(left, right, depth)
    return _formulas(left, right, latex.same)


def same(left: str, right: str) -> bool:
    """Whether two answers are the same. Any text is allowed; what cannot be read is compared as text."""
    if max(len(left), len(right)) > 4 * latex.MAX_LENGTH:
        return left.strip() == right.strip()
    a, b = clean(left), clean(right)
    if _same(a, b, 0):
        return True
    # A name before the value says nothing, where the other side has none: x = 5 is 5.
    bare_a, bare_b = _LEFT_SIDE.sub("", a), _LEFT_SIDE.sub("", b)
    return (bare_a != a) != (bare_b != b) and _same(bare_a, bare_b, 0)
