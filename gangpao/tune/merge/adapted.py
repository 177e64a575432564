"""What becomes of a tensor: W + sum of scale * (s b @ a), in float32, rounded once by whoever stores it (as peft rounds it).

Several adapters are added. One with magnitudes (DoRA) sets the length of whole rows, so it goes alone and at its own strength.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gangpao.formats.adapters import Adapter, Part
from gangpao.formats.architectures import EMBEDDING, HEAD


class Adapted:
    """Adapters with a scale each, as what they do to tensors under Hugging Face's whole names.

    Raises ValueError for adapters that cannot be added up.
    """

    def __init__(self, adapters: Sequence[tuple[Adapter, float]]) -> None:
        self.parts: dict[str, list[tuple[Part, float]]] = {}
        self.whole: dict[str, Tensor] = {}
        for adapter, scale in adapters:
            dora = any(part.magnitude is not None for part in adapter.parts.values())
            if (dora or adapter.whole) and (len(adapters) > 1 or scale != 1.0):
                what = "magnitudes (DoRA)" if dora else f"whole tensors ({next(iter(adapter.whole)):.80})"
                raise ValueError(
                    f"an adapter with {what} is merged alone and with scale 1; merge the others onto the result"
                )
            for name, part in adapter.parts.items():
                self.parts.setdefault(f"{name}.weight", []).append((part, scale))
            self.whole |= {name: torch.from_numpy(values) for name, values in adapter.whole.items()}

    @property
    def names(self) -> set[str]:
        """The tensors that change."""
        return self.parts.keys() | self.whole.keys()

    def unties(self, tied: bool) -> bool:
        """Whether a base that uses one tensor as embedding and head needs two afterwards."""
        return tied and bool({EMBEDDING, HEAD} & self.names)

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """The adapted tensor, float32, of the base's [out, in] in any floats."""
        out = self.whole.get(name, weight).to(weight.dtype).float()
        for part, scale in self.parts.get(name, []):
            out = _applied(name, part, scale, out)
        return out


def _applied(name: str, part: Part, scale: float, weight: Tensor) -> Tensor:
    a, b = torch.from_numpy(part.a), torch.from_numpy(part.b)
    product = (
        (a.T @ b.T).T if name == EMBEDDING else b @ a
    )  # the order of peft's products, so that the bits are its own
    delta = product * (part.scale * scale)
    if part.magnitude is None:
        return weight + delta
    length = torch.linalg.norm(weight + delta, dim=1)
    factor = torch.from_numpy(part.magnitude) / torch.where(length == 0, 1, length)
    return factor[:, None] * (weight + delta)
