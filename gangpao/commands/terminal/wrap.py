"""Words on a terminal: an answer is wrapped between its words while it comes, and a thought is shown and folded away again.

Words go out letter by letter, nothing waits for the end of a word. A word that turns out not to fit its line is taken back
and written again on the next one. Widths are those of a terminal's columns: two for a Chinese character, none for a combining
mark. Between Chinese characters a line may end anywhere, except before a closing and behind an opening sign. The
last column stays empty, because a cursor behind it is drawn in different places by different terminals. The width is looked up
for every piece, so a window may change while an answer comes.

What it gives up: an emoji of several characters is counted as the sum of them, so its line may end early; text that is out
is not wrapped again when the window changes.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator

from rich.cells import cell_len

from gangpao.commands.terminal import screen
from gangpao.text.thoughts import Said
from gangpao.units import plain

ROWS = 6  # of a thought, while it lasts
TAB = 8
FENCES = ("```", "~~~")
LEAST = 8  # columns; a narrower window is left to the terminal
_NOT_FIRST = frozenset("，。、；：！？）】》」』〉〕｝”’…—～·％,.;:!?)]}%")
_NOT_LAST = frozenset("（【《「『〈〔｛“‘([{")


def columns() -> int:
    """Columns of the terminal that stdout is, as they are now."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):  # no terminal, or none with a file of its own
        size = shutil.get_terminal_size()
    return size.columns or 80  # a terminal that does not know says 0


def back(count: int) -> str:
    """The last `count` columns of this line are taken back."""
    return f"\x1b[{count}D\x1b[K" if count else ""


class Wrapper:
    """What to send to a terminal for a text that comes in pieces. width: gives the columns of the window."""

    def __init__(self, width: Callable[[], int] = columns) -> None:
        self._width = width
        self._columns = 0
        self._at = 0  # columns used in this row
        self._word = ""  # letters of it since the last place where the line may end
        self._line = ""  # how this line of the text begins; enough of it to know a fence
        self._fence = ""

    def push(self, text: str) -> str:
        """More of the text."""
        return "".join(back(cell_len(taken)) + put for taken, put in self.steps(text))

    def steps(self, text: str) -> Iterator[tuple[str, str]]:
        """More of the text as steps: what is taken back from the end of the row, and what is written then."""
        self._look()
        for sign in text:
            yield self._put(sign)

    def _look(self) -> None:
        width = max(1, self._width())
        if width != self._columns and self._columns:
            self._at %= width  # the terminal has broken or joined this row itself
            self._word = ""  # and the word may lie in two rows now: it stays where it is
        self._columns = width

    def _put(self, sign: str) -> tuple[str, str]:
        if sign == "\n":
            return "", self._end_line()
        if len(self._line.lstrip(" ")) < len(FENCES[0]):
            self._line += sign
        if self._code or self._columns < LEAST:
            return "", sign
        size = TAB - self._at % TAB if sign == "\t" else cell_len(sign)
        if sign in " \t":
            return "", self._space(sign, size)
        if self._may_break(sign, size):
            self._word = ""
        taken, begun = self._next_row(size) if self._at + size >= self._columns else ("", "")
        self._word += sign
        self._at += size
        return taken, begun + sign

    @property
    def _code(self) -> bool:
        """Whether this line is code, or the fence of code: its rows are the terminal's business."""
        return bool(self._fence) or self._line.lstrip(" ").startswith(FENCES)

    def _end_line(self) -> str:
        begin = self._line.lstrip(" ")[: len(FENCES[0])]
        if begin in FENCES and self._fence in ("", begin):
            self._fence = "" if self._fence else begin
        self._at, self._word, self._line = 0, "", ""
        return "\n"

    def _space(self, sign: str, size: int) -> str:
        self._word = ""
        if self._at + size >= self._columns:  # it is the end of the row, whatever follows
            self._at = self._columns
            return ""
        self._at += size
        return sign

    def _may_break(self, sign: str, size: int) -> bool:
        """Whether a row may end between the last character and this one, although no space is between them."""
        if not self._word or not size or sign in _NOT_FIRST or self._word[-1] in _NOT_LAST:
            return False
        return size == 2 or cell_len(self._word[-1]) == 2

    def _next_row(self, size: int) -> tuple[str, str]:
        """Begin a row with the word that does not fit this one when `size` columns join it. One longer than a row is left to the
        terminal, so that it can be copied whole."""
        width = cell_len(self._word)
        if not width:
            self._at = 0
            return "", "\n"
        if width >= self._at:
            self._at = -size if self._at + size == self._columns else 0 if self._at + size > self._columns else self._at
            return "", ""
        self._at = width
        return self._word, f"\n{self._word}"


def wrapped(text: str, indent: str = "") -> str:
    """A whole text for the terminal, all rows but the first behind `indent`; as it is where stdout is no terminal."""
    if not sys.stdout.isatty():
        return text
    width = columns() - len(indent)
    rows = [""]
    for taken, put in Wrapper(lambda: width).steps(text):
        _write(rows, taken, put)
    return f"\n{indent}".join(rows)


def _write(rows: list[str], taken: str, put: str) -> None:
    """One step of a wrapper, done to rows."""
    if taken:
        rows[-1] = rows[-1][: -len(taken)]
    first, *more = put.split("\n")
    rows[-1] += first
    rows += more


class Display:
    """One answer on stdout while it comes: the thought in a few dim rows, which one line replaces at its end, then the words.

    Where stdout is no terminal, words go out as they are, and thoughts do not.
    """

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._words = Wrapper()
        self._thought = Wrapper()
        self._rows: list[str] = [""]
        self._drawn: list[str] = []
        self._began = 0.0
        self._last = "\n"

    def show(self, said: Said) -> None:
        """A piece of the answer or of its thought."""
        text = plain(said.text) if self._live else said.text
        if said.thought:
            self._began = self._began or time.perf_counter()
            for taken, put in self._thought.steps(text):
                _write(self._rows, taken, put)
            del self._rows[:-ROWS]
            self._draw()
            return
        self._fold()
        self._last = text[-1:] or self._last
        _put(self._words.push(text) if self._live else text)

    def end(self) -> None:
        """The answer is over, or was ended; the next line begins."""
        self._fold()
        _put("" if self._last == "\n" else "\n")

    def _draw(self) -> None:
        if self._live:
            erased, self._drawn = self._erased(), list(self._rows)
            _put(erased + "\n".join(map(screen.dim, self._rows)))

    def _erased(self) -> str:
        """What takes back the rows of the thought. A window that has become narrower shows each of them in several."""
        width = columns()
        count = sum(max(1, -(-cell_len(row) // width)) for row in self._drawn)
        return "\r" + (f"\x1b[{count - 1}A" if count > 1 else "") + "\x1b[J"

    def _fold(self) -> None:
        if self._began:
            seconds, self._began = time.perf_counter() - self._began, 0.0
            _put((self._erased() if self._live else "") + screen.dim(f"thought for {seconds:.1f} s") + "\n")
            self._drawn = []


def _put(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
