"""Text that comes in pieces and means something only where marks are: what may become one is held back."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

T = TypeVar("T")
SPACE = " \t\r\n"


def held_back(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


class PieceReader(ABC, Generic[T]):
    """Reads text that comes in pieces. held: not looked at yet, or held back."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> list[T]:
        """What can be said for certain after some more text."""
        self._held += text
        out: list[T] = []
        while self._step(out):
            pass
        return out

    @abstractmethod
    def _step(self, out: list[T]) -> bool:
        """Go on by one mark; False when more text is needed."""
