"""How often guesses of a kind are right: what this answer showed, on top of what all answers showed before it.

An answer that quotes foresees itself, one that talks does not, and the same kind of guess is worth more in one than in the other.
So an answer begins with what was seen in others and is soon judged by its own.

What all answers share here is a few counts by kind. They say how repetitive the answers of late were, and nothing of what is in
them.
"""

from dataclasses import dataclass, field

SHARED_FADES = 0.995  # of what all answers showed, at each guess of the kind
FADES = 0.9  # of what this answer showed
PRIOR_WEIGHT = 6.0  # guesses that a first belief counts for
SHARED_WEIGHT = 4.0  # guesses of this answer that the others count for

# Where nothing was seen yet. Stretches of text by their length; guesses of a model or a head by how sure it is, in tenths.
FIRST = {
    "2": 0.35,
    "3": 0.5,
    "4-7": 0.7,
    "8-15": 0.82,
    "16+": 0.88,
    "edit": 0.45,
    "model": 0.7,
    "head": 0.6,
}
UNKNOWN = 0.5


def first_belief(kind: str) -> float:
    """How likely a guess of that kind is, before any was checked."""
    last = kind.rsplit(" ", 1)[-1]
    if last.startswith("0."):  # as sure as the small model was, a little less
        return min(0.97, 0.95 * (float(last) + 0.05))
    return FIRST.get(last, UNKNOWN)


@dataclass(slots=True)
class Count:
    """Guesses that were right and that were checked; both fade."""

    right: float = 0.0
    tried: float = 0.0

    def add(self, right: bool, fades: float) -> None:
        self.right = self.right * fades + right
        self.tried = self.tried * fades + 1


@dataclass(slots=True)
class Chances:
    """Of one answer; shared: of all answers of an engine."""

    shared: dict[str, Count]
    own: dict[str, Count] = field(default_factory=dict)

    def of(self, kind: str) -> float:
        """The chance that a guess of that kind is right, those before it being right."""
        all_, own = self.shared.get(kind, _NONE), self.own.get(kind, _NONE)
        believed = (all_.right + PRIOR_WEIGHT * first_belief(kind)) / (all_.tried + PRIOR_WEIGHT)
        return (own.right + SHARED_WEIGHT * believed) / (own.tried + SHARED_WEIGHT)

    def learn(self, kind: str, right: bool) -> None:
        """One guess of that kind was checked."""
        self.shared.setdefault(kind, Count()).add(right, SHARED_FADES)
        self.own.setdefault(kind, Count()).add(right, FADES)


_NONE = Count()
