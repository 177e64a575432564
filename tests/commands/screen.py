"""A terminal's screen, as far as our output needs one: rows of cells, a cursor, and the sequences that we send."""

import re

from rich.cells import cell_len

_MODE = re.compile(r"\x1b\[\?\d+[hl]")  # what readline switches on and off
_TOKEN = re.compile(r"\x1b\[(\d*)([A-Za-z])|(.)", re.DOTALL)


class Screen:
    """Rows of a window `columns` wide. A character that does not fit its row begins the next one."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.row = self.at = 0

    def feed(self, data: str) -> "Screen":
        for number, command, sign in _TOKEN.findall(_MODE.sub("", data)):
            if command:
                self._command(int(number or 1), number, command)
            else:
                self._put(sign)
        return self

    @property
    def text(self) -> list[str]:
        """The rows, without what is empty at their ends."""
        return ["".join(row).rstrip() for row in self.rows]

    def _command(self, count: int, number: str, command: str) -> None:
        if command == "D":
            self.at = max(0, min(self.at, self.columns - 1) - count)
        elif command in "AF":
            self.row = max(0, self.row - count)
            self.at = 0 if command == "F" else self.at
        elif command == "K":
            del self._cells()[self.at :]
        elif command == "J":
            del self._cells()[self.at :]
            del self.rows[self.row + 1 :]
        else:
            assert command == "m", command

    def _cells(self) -> list[str]:
        while len(self.rows) <= self.row:
            self.rows.append([])
        return self.rows[self.row]

    def _put(self, sign: str) -> None:
        if sign == "\r":
            self.at = 0
            return
        size = cell_len(sign)
        if sign == "\n" or self.at + size > self.columns:
            self.row, self.at = self.row + 1, 0
            self._cells()
        if sign == "\n":
            return
        cells = self._cells()
        cells += [" "] * (self.at - len(cells))
        if not size:
            cells[self.at - 1] += sign  # a combining mark
            return
        cells[self.at : self.at + size] = [sign, ""][:size]
        self.at += size
