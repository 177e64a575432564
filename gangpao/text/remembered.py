"""Parts of texts and their ids: words come again, and a merge loop in Python is slow."""

from collections.abc import Callable, Iterable

_MEMORY = 50_000  # parts remembered


class Remembered:
    """Ids of parts of texts, those of short parts remembered. longest: characters of the longest part worth remembering."""

    def __init__(self, merged: Callable[[str], list[int]], longest: int) -> None:
        self._merged, self._longest = merged, longest
        self._memory: dict[str, list[int]] = {}

    def ids(self, parts: Iterable[str]) -> list[int]:
        """Of all parts, one after the other."""
        out: list[int] = []
        memory = self._memory
        for part in parts:
            found = memory.get(part)
            if found is None:
                found = self._merged(part)
                if len(part) <= self._longest:
                    if len(memory) >= _MEMORY:
                        memory.clear()
                    memory[part] = found
            out += found
        return out
