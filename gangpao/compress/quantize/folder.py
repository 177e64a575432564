"""A Hugging Face folder as a source: names, row orders, header and tokenizer are those of `gangpao export`.

The checkpoint is looked through once, to see that it is whole; then every piece opens its file anew and closes it, so that no more
of the weights counts as this process's memory than the piece.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from gangpao.compress.quantize.tensors import Floats, OnNote, Source, SourceTensor, as_bytes, is_own
from gangpao.deploy.gguf import padded
from gangpao.deploy.header import differences, metadata
from gangpao.deploy.plan import Planned, plan, stays_float32
from gangpao.model import weights as checkpoint
from gangpao.model.config import ModelConfig
from gangpao.text.export import gguf_metadata

_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class FolderSource(Source):
    """config.json, weights and tokenizer."""

    def __init__(self, path: Path, on_note: OnNote) -> None:
        self.path = path
        config = ModelConfig.from_file(path / "config.json")
        self._fields = metadata(config, "F16", _name(path)) | padded(gguf_metadata(path, on_note), config.vocab_size)
        for note in differences(config):
            on_note(note)
        self.architecture = str(self._fields["general.architecture"])
        places = _places(path, config.tensor_prefix or "")
        planned = plan(config, dict(checkpoint.tensors(path)), "F32")
        self._planned = {tensor.name: _Light(tensor, places) for tensor in planned}
        self.tensors = tuple(SourceTensor(t.name, t.shape, _type(t)) for t in planned)

    def fields(self) -> dict[str, bytes]:
        return as_bytes({key: value for key, value in self._fields.items() if not is_own(key)})

    def number(self, key: str) -> int:
        value = self._fields.get(f"{self.architecture}.{key}", 0)
        return value if isinstance(value, int) else 0

    def values(self, tensor: SourceTensor, begin: int, end: int) -> Floats:
        light = self._planned[tensor.name]
        rows = tensor.rows // len(light.sources)
        number, at = divmod(begin, rows) if len(tensor.shape) > 1 else (0, 0)
        return light.rows(number, at, at + end - begin)

    def close(self) -> None:
        """Nothing is open between two pieces."""


class _Light:
    """A planned tensor without its values: where they are, and what the file has otherwise."""

    def __init__(self, tensor: Planned, places: dict[str, tuple[Path, str]]) -> None:
        self.change = tensor.change
        self.sources = [places.get(name) for name, _ in tensor.sources]
        # What is not in a safetensors file stays: rotary divisors, which are computed, and .bin files.
        self.kept = [None if place else values for place, (_, values) in zip(self.sources, tensor.sources, strict=True)]
        self._whole: Floats | None = None

    def rows(self, number: int, begin: int, end: int) -> Floats:
        if self.change:
            if begin == 0 or self._whole is None:
                whole = np.ascontiguousarray(self.change.there(self._read(number, None)))
                self._whole = whole[None] if whole.ndim == 1 else whole
            out = self._whole[begin:end]
            if end >= len(self._whole):
                self._whole = None
            return out.reshape(end - begin, -1)
        found = self._read(number, (begin, end))
        return found.reshape(1, -1) if found.ndim == 1 else found

    def _read(self, number: int, span: tuple[int, int] | None) -> Floats:
        place, kept = self.sources[number], self.kept[number]
        if place is None:
            assert kept is not None
            values = kept.detach() if span is None or kept.dim() == 1 else kept.detach()[slice(*span)]
            return np.asarray(values.to("cpu", torch.float32).numpy())
        path, name = place
        with safe_open(path, framework="pt") as file:
            part = file.get_slice(name)
            whole = span is None or len(part.get_shape()) == 1
            values = file.get_tensor(name) if whole else part[span[0] : span[1]]  # type: ignore[index]
            return np.array(values.to("cpu", torch.float32).numpy())


def _places(folder: Path, prefix: str) -> dict[str, tuple[Path, str]]:
    """Of every tensor in safetensors files: Hugging Face's name -> file and name in it."""
    out = {}
    for path in checkpoint.weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, it is not a mapping
                    if name.startswith(prefix):
                        out[checkpoint.hf_name(name.removeprefix(prefix))] = (path, name)
    return out


def _type(tensor: Planned) -> str:
    """The type in which a file keeps what the folder has: that of its floats, F32 where an export has it, too."""
    first = tensor.sources[0][1]
    return "F32" if stays_float32(tensor.name, first) else _TYPES.get(first.dtype, "F32")


def _name(path: Path) -> str:
    """What the model is called: the run's name for RUN/export."""
    return path.parent.name if path.name == "export" and path.parent.name else path.name
