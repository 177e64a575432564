"""Answers as they come, so that a run that was killed goes on without asking anything twice.

The first line of journal.jsonl says whose answers these are (model, settings); every other line is one answer under its key.
A line that a crash cut short is left out and written over. Any other line that is no answer stays in the file, is skipped and
counted: what it held is asked again. Memory holds what is in the file, and nothing more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gangpao import atomic

T = TypeVar("T")


def key_of(*parts: Any) -> str:
    """A short name for what was asked: equal for equal JSON, and for nothing else."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Journal:
    """Answers by key in a folder. Use as a context manager; one at a time in a folder.

    identity: whatever changes an answer. Raises ValueError where the folder holds answers of something else, or where the line that
    says whose they are is damaged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path = folder / "journal.jsonl"
        self._answers: dict[str, Any] = {}
        self.resumed = 0  # answers that were there already
        self.damaged = 0  # lines that are no answer, or none of the form that was wanted
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = atomic.locked(folder, "another run writes there; wait for it or choose another --out")
        self._lock.__enter__()
        try:
            self._end = self._read(dict(identity)) if self.path.exists() else 0
            self._file = self.path.open("r+b" if self._end else "wb")
            self._file.seek(self._end)
            self._file.truncate()
            if not self._end:
                self._write({"journal": 1, "identity": json.loads(json.dumps(dict(identity)))})
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise

    def _read(self, identity: dict[str, Any]) -> int:
        """Take in the file; the place behind its last whole line."""
        end, wanted = 0, json.loads(json.dumps(identity))
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    if number == 0:
                        return 0  # nothing but the beginning of a first line
                    break
                entry = _entry(line)
                if number == 0:
                    if "identity" not in entry:
                        raise ValueError(
                            f"{self.path}:1: damaged, and this line says whose answers the others are: choose another --out, or "
                            "delete the file to ask everything again"
                        )
                    self._check(entry["identity"], wanted)
                elif isinstance(entry.get("key"), str) and entry.get("answer") is not None:
                    self._answers[entry["key"]] = entry["answer"]
                else:
                    self.damaged += 1
                end += len(line)
        self.resumed = len(self._answers)
        return end

    def _check(self, found: Any, wanted: dict[str, Any]) -> None:
        if found == wanted:
            return
        found = found if isinstance(found, dict) else {}
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise ValueError(
            f"{self.path} holds answers of another run: "
            + "; ".join(f"{n} was {found.get(n)!r:.60}, is {wanted.get(n)!r:.60}" for n in names)
            + ". Choose another --out, or delete the folder to begin anew"
        )

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Any:
        """The answer under a key, or None."""
        return self._answers.get(key)

    def take(self, key: str, form: Callable[[Any], T]) -> T | None:
        """The answer under a key as `form` makes it of JSON; None where there is none, or where `form` raises ValueError or
        TypeError: the line is damaged then, and counted."""
        found = self._answers.get(key)
        try:
            return None if found is None else form(found)
        except (ValueError, TypeError):
            self.damaged += 1
            del self._answers[key]
            return None

    def forget(self, *keys: str) -> None:
        """Have these asked again: what is written next counts. The file keeps the old answers until then."""
        for key in keys:
            self._answers.pop(key, None)

    @property
    def warnings(self) -> list[str]:
        """What a reader has to know of it, in sentences."""
        if not self.damaged:
            return []
        return [
            f"{self.path.name} has damaged lines: {self.damaged}. They are not used, and what they answered is asked again."
        ]

    def put(self, key: str, answer: Any) -> None:
        """Write an answer; it survives the end of this process, and `flush` makes it survive the machine's."""
        self._answers[key] = answer
        self._write({"key": key, "answer": answer})

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(
            json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
        )
        self._file.flush()

    def flush(self) -> None:
        """Have everything on the disk."""
        atomic.sync(self.path)

    def close(self) -> None:
        """Close the file and let others in. Harmless when closed already."""
        if self._file.closed:
            return
        self._file.close()
        atomic.sync(self.path)
        self._lock.__exit__(None, None, None)


def _entry(line: bytes) -> dict[str, Any]:
    """A line as an object; an empty one where it is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}
