"""placeholder"""

from collections.abc import Sequence


class Drafter:
    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids

    def propose(self, room: int, beside: int) -> list[int]:
        return []

    def learn(self, drafted: int, accepted: int) -> None:
        pass
