r"""One formula of LaTeX or plain text -> a small tree, and whether two trees have the same value.

Rational numbers are compared exactly. Everything else is computed at three places for its variables, to 1 part in 1e9, so that
`2(x+1)` is `2x+2` and `\frac{\sqrt 2}{2}` is `\frac1{\sqrt2}`, without a computer algebra system and in bounded time: texts are
short, trees shallow, powers small. What cannot be read is a FormulaError, and then only the texts can be compared.

What it gives up: identities that hold for some values only (`\sqrt{x^2}` is not `x`), and integrals, sums and limits.
"""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

MAX_LENGTH = 400  # characters
MAX_DEPTH = 40
_MAX_BITS = 20_000  # of an exact number
_CLOSE = 1e-9
# Values of variables, drawn once: positive, negative, mixed. A variable takes one by its name.
_PLACES = (
    (0.731058, 1.618397, 0.239713, 2.414281, 1.127509),
    (-0.652319, -1.345127, -2.127813, -0.891371, -1.771203),
    (1.230193, -0.518239, 2.903177, -1.647229, 0.367341),
)


class FormulaError(ValueError):
    """A text that is no formula, or one that is too large."""


@dataclass(frozen=True)
class Tree:
    """num (value), var (name), or an operation on parts."""

    kind: str
    parts: tuple[Tree, ...] = ()
    value: Fraction = Fraction(0)
    name: str = ""


_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "ln": cmath.log, "log": cmath.log10, "exp": cmath.exp,
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh,
    "sec": lambda x: 1 / cmath.cos(x), "csc": lambda x: 1 / cmath.sin(x), "cot": lambda x: cmath.cos(x) / cmath.sin(x),
}  # fmt: skip
_NUMBER = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\{(\d+)\}")
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_MIXED = re.compile(r"\\frac(?:\{(\d+)\}|(\d))(?:\{(\d+)\}|(\d))")
_SUBSCRIPT = re.compile(r"_(?:\{([^{}]*)\}|(\w))")
_CLOSES = {"(": ")", "[": "]", "{": "}"}


class _Reader:
    """Recursive descent over the characters."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise FormulaError(f"longer than {MAX_LENGTH} characters")
        self.text, self.at, self.depth = text, 0, 0

    def peek(self, *options: str) -> str:
        """The first of the options that comes next behind blanks, or ""."""
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        return next((o for o in options if self.text.startswith(o, self.at)), "")

    def take(self, *options: str) -> str:
        """As peek, and go on behind it."""
        found = self.peek(*options)
        self.at += len(found)
        return found

    def need(self, option: str) -> None:
        if not self.take(option):
            raise FormulaError(f"{option!r} expected at {self.text[self.at : self.at + 10]!r}")

    def whole(self) -> Tree:
        tree = self.sum()
        if self.at < len(self.text):
            raise FormulaError(f"cannot read {self.text[self.at : self.at + 20]!r}")
        return tree

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise FormulaError("nested too deep")
        tree = self.product()
        while sign := self.take("+", "-"):
            right = self.product()
            tree = Tree("add", (tree, right if sign == "+" else Tree("neg", (right,))))
        self.depth -= 1
        return tree

    def product(self) -> Tree:
        tree = self.signed()
        while True:
            if self.take(r"\cdot", r"\times", "*"):
                tree = Tree("mul", (tree, self.signed()))
            elif self.take(r"\div", "/"):
                tree = Tree("div", (tree, self.signed()))
            elif self.begins():
                if tree.kind == "num" and self.text[self.at].isdigit():
                    raise FormulaError("two numbers without a sign between them")
                tree = Tree("mul", (tree, self.power()))
            else:
                return tree

    def begins(self) -> bool:
        """Whether a factor comes next without a sign of multiplication."""
        self.peek()
        next_one = self.text[self.at : self.at + 1]
        if next_one == "\\":
            return bool(_COMMAND.match(self.text, self.at))
        return next_one.isalnum() or next_one in ("(", "[", "{", ".")

    def signed(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise FormulaError("nested too deep")
        sign = self.take("+", "-")
        tree = self.signed() if sign else self.power()
        self.depth -= 1
        return Tree("neg", (tree,)) if sign == "-" else tree

    def power(self) -> Tree:
        tree = self.atom()
        while self.take("!"):
            tree = Tree("factorial", (tree,))
        if self.take("^"):
            tree = Tree("pow", (tree, self.argument(digits=True)))
        return tree

    def argument(self, *, digits: bool = False) -> Tree:
        """What LaTeX takes: a group, a command or one character; digits: a number as a whole, as people write 2^10."""
        if self.peek("{", "(", "\\"):
            return self.atom()
        if digits:
            return self.signed()
        if not (one := self.text[self.at : self.at + 1]).isalnum():
            raise FormulaError("an argument is missing")
        self.at += 1
        return Tree("num", value=Fraction(one)) if one.isascii() and one.isdigit() else Tree("var", name=one)

    def atom(self) -> Tree:
        if opening := self.take("(", "[", "{"):
            tree = self.sum()
            self.need(_CLOSES[opening])
            return tree
        if self.take("|"):
            tree = self.sum()
            self.need("|")
            return Tree("abs", (tree,))
        if repeating := _REPEATING.match(self.text, self.at):
            self.at = repeating.end()
            return Tree("num", value=_repeating(*repeating.groups()))
        if number := _NUMBER.match(self.text, self.at):
            self.at = number.end()
            return self.number(number.group())
        if command := _COMMAND.match(self.text, self.at):
            self.at = command.end()
            return self.command(command[1])
        letter = self.text[self.at : self.at + 1]
        if not letter.isalpha():
            raise FormulaError(f"cannot read {self.text[self.at : self.at + 20]!r}")
        self.at += 1
        return Tree("var", name=letter + self.subscript())

    def subscript(self) -> str:
        if found := _SUBSCRIPT.match(self.text, self.at):
            self.at = found.end()
            return f"_{found[1] or found[2]}"
        return ""

    def number(self, digits: str) -> Tree:
        """A number; with a proper fraction behind it a mixed one, with a base below it a name."""
        if below := self.subscript():
            return Tree("var", name=digits + below)
        mixed = _MIXED.match(self.text, self.at)
        value = Fraction(digits)
        if mixed and digits.isdigit():
            above, under = int(mixed[1] or mixed[2]), int(mixed[3] or mixed[4])
            if 0 < above < under:
                self.at = mixed.end()
                value += Fraction(above, under)
        return Tree("num", value=value)

    def command(self, name: str) -> Tree:
        if name == "frac":
            return Tree("div", (self.argument(), self.argument()))
        if name == "binom":
            return Tree("binom", (self.argument(), self.argument()))
        if name == "sqrt":
            degree = Tree("num", value=Fraction(2))
            if self.take("["):
                degree = self.sum()
                self.need("]")
            return Tree("pow", (self.argument(), Tree("div", (Tree("num", value=Fraction(1)), degree))))
        if name in _FUNCTIONS:
            return self.function(name)
        if name in ("overline", "vec", "hat", "bar", "angle", "triangle"):
            start = self.at
            self.argument()
            return Tree("var", name=self.text[start - len(name) : self.at])
        return Tree("var", name=name + self.subscript())

    def function(self, name: str) -> Tree:
        base = self.argument() if name == "log" and self.take("_") else None
        exponent = self.argument(digits=True) if self.take("^") else None
        argument = self.power()
        while self.begins() and not any(self.peek("\\" + other) for other in _FUNCTIONS):
            argument = Tree("mul", (argument, self.power()))
        tree = Tree("call", (argument,), name=name)
        if base is not None:
            tree = Tree("div", (tree, Tree("call", (base,), name="log")))
        return Tree("pow", (tree, exponent)) if exponent is not None else tree


def _repeating(whole: str, fixed: str, period: str) -> Fraction:
    first = Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
    return first + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))


def parse(text: str) -> Tree:
    """Raises FormulaError."""
    return _Reader(text.strip()).whole()


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1 or (base == 0 and exponent < 0):
        return None
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    return None if size * abs(exponent.numerator) > _MAX_BITS else base**exponent.numerator


def exact(tree: Tree) -> Fraction | None:
    """Its value where it is rational by the four operations, whole powers, factorials and binomials; else None."""
    if tree.kind == "num":
        return tree.value
    found = [exact(part) for part in tree.parts]
    if tree.kind in ("var", "call") or None in found:
        return None
    values = cast(list[Fraction], found)
    first, last = values[0], values[-1]
    whole = all(v.denominator == 1 and 0 <= v <= 1000 for v in values)
    match tree.kind:
        case "neg":
            return -first
        case "abs":
            return abs(first)
        case "add":
            return first + last
        case "mul":
            return first * last
        case "div":
            return first / last if last else None
        case "pow":
            return _exact_power(first, last)
        case "factorial":
            return Fraction(math.factorial(int(first))) if whole else None
        case "binom":
            return Fraction(math.comb(int(first), int(last))) if whole else None
    return None


def number(tree: Tree, place: tuple[float, ...]) -> complex:
    """Its value with variables from `place`. Raises ArithmeticError or ValueError where it has none."""
    if (rational := exact(tree)) is not None:
        return complex(rational)
    if tree.kind == "var":
        constants = {"pi": math.pi, "π": math.pi, "e": math.e, "i": 1j}
        if tree.name in constants:
            return complex(constants[tree.name])
        # By its name, so that both trees have the same; letters far apart, so that a and b differ.
        code = sum(ord(c) * 31**n for n, c in enumerate(tree.name))
        return complex(place[code % len(place)] + code % 97 / 1013)
    values = [number(part, place) for part in tree.parts]
    match tree.kind:
        case "neg":
            return -values[0]
        case "abs":
            return complex(abs(values[0]))
        case "add":
            return values[0] + values[1]
        case "mul":
            return values[0] * values[1]
        case "div":
            return values[0] / values[1]
        case "pow":
            return values[0] ** values[1]
        case "call":
            return _FUNCTIONS[tree.name](values[0])
    raise ValueError(f"{tree.kind} of what is no small whole number")


def ratio(left: Tree, right: Tree, place: tuple[float, ...]) -> complex | None:
    """left / right at a place; None where either has no finite value there."""
    try:
        a, b = number(left, place), number(right, place)
        if not (cmath.isfinite(a) and cmath.isfinite(b)):
            return None
        if abs(a) < 1e-12 and abs(b) < 1e-12:
            return complex(1)
        return a / b
    except (ArithmeticError, ValueError):
        return None


def same(left: Tree, right: Tree) -> bool:
    """Whether two formulas have the same value, wherever both have one and at two places at least."""
    a, b = exact(left), exact(right)
    if a is not None and b is not None:
        return a == b
    found = ratios(left, right)
    return len(found) > 1 and all(abs(r - 1) < _CLOSE for r in found)


def ratios(left: Tree, right: Tree) -> list[complex]:
    """The ratio at each place where there is one."""
    return [r for place in _PLACES if (r := ratio(left, right, place)) is not None]


def proportional(left: Tree, right: Tree) -> bool:
    """Whether one is the other times a number other than 0: then `left = 0` and `right = 0` say the same."""
    found = ratios(left, right)
    return len(found) > 1 and all(abs(r - found[0]) < _CLOSE * abs(found[0]) for r in found) and abs(found[0]) > 1e-12


def variables(tree: Tree) -> set[str]:
    """Names of its variables, constants left out."""
    mine = {tree.name} - {"pi", "π", "e", "i"} if tree.kind == "var" else set()
    return mine.union(*map(variables, tree.parts))
