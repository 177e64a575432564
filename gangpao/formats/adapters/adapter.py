"""What a low-rank adapter is, whatever file it comes from.

For every part, W of the base becomes W + scale * b @ a; with a magnitude (DoRA, arXiv:2402.09353) each row of that sum is then
stretched to the length `magnitude` says. W is the module's weight as Hugging Face stores it: [out, in], an embedding [V, D].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


@dataclass(frozen=True, slots=True)
class Part:
    """The adapter of one module. a: float32 [r, in]; b: float32 [out, r]; of an embedding a is [r, D] and b [V, r].

    scale: of the product b @ a, all of it (alpha / r, or alpha / sqrt(r), and what a pattern says). magnitude: float32 [out], the
    lengths of the rows of the adapted weight (DoRA); None without.
    """

    a: Floats
    b: Floats
    scale: float
    magnitude: Floats | None = None

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[0] != self.b.shape[1] or not self.a.shape[0]:
            raise ValueError(f"a {self.a.shape} and b {self.b.shape} are no low-rank pair: [r, in] and [out, r] are")
        if self.magnitude is not None and self.magnitude.shape != (len(self.b),):
            raise ValueError(f"a magnitude {self.magnitude.shape} does not belong to {len(self.b)} rows")

    @property
    def rank(self) -> int:
        """r."""
        return len(self.a)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that it belongs to, [out, in]."""
        return len(self.b), self.a.shape[1]

    def delta(self, begin: int = 0, end: int | None = None) -> Floats:
        """scale * b @ a, float32; of rows begin to end."""
        out: Floats = (self.b[begin:end] @ self.a) * np.float32(self.scale)
        return out

    def applied(self, weight: Floats, begin: int = 0, end: int | None = None) -> Floats:
        """Rows begin to end of the adapted weight, from the base's rows, float32 [rows, in]."""
        out: Floats = weight + self.delta(begin, end)
        if self.magnitude is not None:
            length = np.sqrt(np.square(out).sum(axis=1, dtype=np.float32))
            out *= (self.magnitude[begin:end] / np.where(length == 0, np.float32(1), length))[:, None]
        return out


@dataclass(frozen=True, slots=True)
class Adapter:
    """Parts under Hugging Face's module names without ".weight", rows in Hugging Face's order (rotate_half).

    whole: tensors that take the place of the base's, under whole names ("lm_head.weight", a trained bias); most adapters have none.
    base: the model it was trained on, by name or path; base_sha256: of its file. Both "" where unknown.
    alpha, rank, rslora: as the source says; what counts is each part's scale.
    """

    parts: dict[str, Part]
    base: str = ""
    base_sha256: str = ""
    alpha: float = 0.0
    rank: int = 0
    rslora: bool = False
    whole: dict[str, Floats] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays in memory."""
        arrays = [x for p in self.parts.values() for x in (p.a, p.b, p.magnitude) if x is not None]
        return sum(x.nbytes for x in [*arrays, *self.whole.values()])

    def check_base(self, shapes: Mapping[str, tuple[int, ...]], where: str = "the base") -> None:
        """Raises ValueError naming the first tensor for which a base with these (Hugging Face's whole names) has no place."""
        for name, wanted in [(f"{n}.weight", p.shape) for n, p in self.parts.items()] + [
            (n, tuple(x.shape)) for n, x in self.whole.items()
        ]:
            if name == f"{HEAD}.weight" and name not in shapes:
                found = shapes.get(f"{EMBEDDING}.weight")  # a tied head has the embedding's shape
            else:
                found = shapes.get(name)
            if found is None:
                raise ValueError(
                    f"an adapter of another base{self._of()}: it changes {name:.100}, and {where} has none"
                )
            if tuple(found) != wanted:
                raise ValueError(
                    f"an adapter of another base{self._of()}: its {name} is {list(wanted)}, that of {where} {list(found)}"
                )

    def _of(self) -> str:
        return f" ({self.base:.100})" if self.base else ""
