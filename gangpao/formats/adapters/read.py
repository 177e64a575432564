"""An adapter from whatever it is in."""

from __future__ import annotations

import os
from pathlib import Path

from gangpao.formats.adapters.adapter import Adapter
from gangpao.formats.adapters.peft import CONFIG, WeightOf, is_peft, read_peft


def read_adapter(path: str | os.PathLike[str], weight_of: WeightOf | None = None) -> Adapter:
    """The adapter of a PEFT folder or a GGUF file, as float32 in memory.

    weight_of: gives the base's weight of a module, float32 [out, in]; only adapters need it whose training began by changing the
    base (PiSSA, OLoRA). Raises ValueError naming file and tensor or key for what is damaged or not computed here.
    """
    place = Path(path)
    if place.is_dir() and is_peft(place):
        return read_peft(place, weight_of)
    if not place.exists():
        raise ValueError(f"{place}: no such file; an adapter is a PEFT folder or a .gguf file")
    raise ValueError(f"{place}: no adapter: there is no {CONFIG} in it")
