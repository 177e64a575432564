"""An adapter from whatever it is in."""

from __future__ import annotations

import os
from pathlib import Path

from gangpao.formats.adapters.adapter import Adapter
from gangpao.formats.adapters.gguf import Form, read_gguf
from gangpao.formats.adapters.peft import CONFIG, WeightOf, is_peft, read_peft

RUN_ADAPTER = "adapter"  # folder in a run of `gangpao tune`


def read_adapter(
    path: str | os.PathLike[str], *, form: Form | None = None, weight_of: WeightOf | None = None
) -> Adapter:
    """The adapter of a PEFT folder, a GGUF file, or a run of `gangpao tune` (its adapter/), as float32 in memory.

    form: of the base (Form.of its file), which llama.cpp's own files need where the architecture interleaves q and k. weight_of:
    gives the base's weight of a module, float32 [out, in]; only adapters need it whose training began by changing the base (PiSSA,
    OLoRA). Raises ValueError naming file and tensor or key for what is damaged, of another base, or not computed here.
    """
    place = Path(path)
    if place.is_file() and place.suffix == ".gguf":
        return read_gguf(place, form)
    for folder in (place, place / RUN_ADAPTER):
        if is_peft(folder):
            return read_peft(folder, weight_of)
    if not place.exists():
        raise ValueError(f"{place}: no such file; an adapter is a PEFT folder or a .gguf file")
    raise ValueError(f"{place}: no adapter: it is no .gguf file, and no folder with {CONFIG}")
