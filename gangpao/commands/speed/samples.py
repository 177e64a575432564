"""What a suite has measured so far, as JSON lines in a file, so that a suite that was killed goes on with what is missing.

The first line says what was measured, on what and by which code; every other line is one sample. A line that a crash cut short
is left out and written over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gangpao.atomic import locked

Key = tuple[str, int, int, int]  # model, context, batch (0: the one that is alone), round


class Samples:
    """Samples by (model, context, batch, round), in a file or, without one, in memory only. Use as a context manager."""

    def __init__(self, path: Path | None, conditions: Mapping[str, Any]) -> None:
        """conditions: whatever makes samples comparable. Raises ValueError where the file holds samples under other ones."""
        self.path, self.conditions = path, json.loads(json.dumps(dict(conditions)))
        self.by_key: dict[Key, dict[str, Any]] = {}
        self._file, self._lock = None, None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = locked(path.parent, "another suite writes there; wait for it or choose another --out")
        self._lock.__enter__()
        try:
            end = self._read(path) if path.exists() else 0
            self._file = path.open("r+b" if end else "wb")
            self._file.seek(end)
            self._file.truncate()
            if not end:
                self._write({"suite": 1, "conditions": self.conditions})
        except BaseException:
            self.close()
            raise

    def _read(self, path: Path) -> int:
        """Take in what is there; the place behind its last whole line."""
        end = 0
        with path.open("rb") as lines:
            for line in lines:
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if not isinstance(entry, dict):
                    break
                if end == 0:
                    self._check(path, entry)
                else:
                    self.by_key[key_of(entry)] = entry
                end += len(line)
        if end == 0 and path.stat().st_size and not line.startswith(b'{"suite"'):
            raise ValueError(f"{path} is no file of a suite: choose another --out")
        return end

    def _check(self, path: Path, first: dict[str, Any]) -> None:
        found = first.get("conditions")
        if first.get("suite") != 1 or not isinstance(found, dict):
            raise ValueError(f"{path} is no file of a suite: choose another --out")
        names = sorted(n for n in {*found, *self.conditions} if found.get(n) != self.conditions.get(n))
        if names:
            raise ValueError(
                f"{path} holds samples of other conditions: "
                + "; ".join(f"{n} was {found.get(n)!r:.80}, is {self.conditions.get(n)!r:.80}" for n in names)
                + ". Choose another --out, or delete the file to begin anew"
            )

    def add(self, sample: dict[str, Any]) -> None:
        """Keep a sample; it survives the end of this process."""
        self.by_key[key_of(sample)] = sample
        self._write(sample)

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            self._file.flush()

    def __enter__(self) -> Samples:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let others in."""
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            self._lock.__exit__(None, None, None)
        self._file = self._lock = None


def key_of(sample: Mapping[str, Any]) -> Key:
    """Under which key a sample is kept."""
    return str(sample["model"]), int(sample["context"]), int(sample["batch"]), int(sample["round"])
