"""What was seen, as a text file: JSON lines that are only ever appended.

    {"seconds": 12.0, "text": "A hand shows two fingers.", "behind": 1.8, "at": "2026-11-30T10:00:00+00:00", "source": "clip.mp4"}
    {"asked": "What came before?", "text": "...", "seconds": 12.0, "at": ..., "source": ...}

A run that is started again with the same file goes on behind the last second that its source has there. A last line without
an end, as a killed process leaves it, is cut off.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gangpao.units import plain, utc_now

MAX_TEXT = 8_000  # characters of the log that go with a question: the newest ones


@dataclass(frozen=True, slots=True)
class Entry:
    """One line that was seen: seconds of the source, what the model said, how many seconds after the frame it stood there."""

    seconds: float
    text: str
    behind: float


class Log:
    """The log of one source; in memory only where there is no path. Raises ValueError for a file that is no such log."""

    def __init__(self, path: Path | None, source: str) -> None:
        self._path, self._source = path, source
        self.entries: list[Entry] = []
        if path is not None and path.exists():
            self._read(path)

    @property
    def reached(self) -> float:
        """The last second that was described; below 0 where nothing was."""
        return max((entry.seconds for entry in self.entries), default=-math.inf)

    def saw(self, entry: Entry) -> None:
        """Append what was seen."""
        self.entries.append(entry)
        self._write({"seconds": round(entry.seconds, 3), "text": entry.text, "behind": round(entry.behind, 2)})

    def answered(self, asked: str, text: str) -> None:
        """Append a question and its answer; they are no part of what was seen."""
        self._write({"asked": asked, "text": text, "seconds": round(max(self.reached, 0.0), 3)})

    def text(self, most: int = MAX_TEXT) -> str:
        """Lines of time and text, the newest that fit into so many characters; a first line says how many are left out."""
        lines: list[str] = []
        left = most
        for entry in reversed(self.entries):
            line = f"[{clock(entry.seconds)}] {entry.text}"
            left -= len(line) + 1
            if left < 0:
                break
            lines.append(line)
        missing = len(self.entries) - len(lines)
        return "\n".join([*([f"({missing} earlier lines are left out)"] if missing else []), *reversed(lines)])

    def _read(self, path: Path) -> None:
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                entry = Entry(float(row["seconds"]), str(row["text"]), float(row.get("behind", 0)))
                source, seen = row["source"], "asked" not in row
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{path}, line {number}: no line of a log of `gangpao watch`; name another --log"
                ) from None
            if seen and source == self._source:
                self.entries.append(entry)
        if len(whole) < len(raw):
            os.truncate(path, len(whole))

    def _write(self, row: dict[str, Any]) -> None:
        if self._path is None:
            return
        row |= {"at": utc_now(), "source": self._source}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def clock(seconds: float) -> str:
    """1:02:03 or 02:03."""
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def one_line(text: str) -> str:
    """What a model said, on one line and without control characters."""
    return plain(" ".join(text.split()))
