"""Weights that were trained, as a model that others read: a Hugging Face folder, or a .gguf file of F32 where no tokenizer's files
are at hand.

A GGUF file has its tokenizer in its metadata, which cannot become tokenizer.json again; so what was a file stays one, with the same
keys and every tensor in F32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gangpao.compress.quantize.source import FileSource
from gangpao.compress.quantize.tensors import Bytes, Floats, SourceTensor
from gangpao.compress.quantize.write import write_source
from gangpao.formats.adapters.gguf import Form, heads_of, hf_name
from gangpao.formats.row_order import pairs_side_by_side
from gangpao.model.config import ModelConfig
from gangpao.train.pretrain import export


def write_floats(values: Mapping[str, Tensor], config: ModelConfig, target: Path, models: Sequence[Path]) -> Path:
    """Write the folder `target`, or `target`.gguf where none of `models` is a folder with a tokenizer. Returns which.

    values: float tensors under Hugging Face's names. models: where a tokenizer may be, the best first.
    """
    folder = next((path for path in models if path.is_dir()), None)
    if folder is not None:
        return export(target, config, dict(values), folder)
    file = target.with_name(f"{target.name}.gguf")
    with Trained(models[0], values) as source:
        write_source(source, file, {}, fields={"general.file_type": np.uint32(0)})
    return file


class Trained(FileSource):
    """A .gguf file with other weights in F32: those of `values`, under Hugging Face's names."""

    def __init__(self, path: Path, values: Mapping[str, Tensor]) -> None:
        super().__init__(path)
        self.trained, self._form = values, Form.of(self.gguf)
        self.tensors = tuple(SourceTensor(tensor.name, tensor.shape, "F32") for tensor in self.tensors)

    def values(self, tensor: SourceTensor, begin: int, end: int) -> Floats:
        name = hf_name(tensor.name)
        if name is None:  # divisors of rotary frequencies
            return np.array(self.gguf.array(tensor.name), np.float32).reshape(-1, tensor.cols)[begin:end]
        if name not in self.trained:
            raise ValueError(f"{self.path}: {tensor.name} is not among the weights that were trained ({name})")
        rows = self.trained[name].detach().to("cpu", torch.float32).numpy()
        if heads := heads_of(name.rpartition(".")[0], self._form):
            rows = pairs_side_by_side(rows, heads)
        return np.ascontiguousarray(rows.reshape(-1, tensor.cols)[begin:end])

    def raw(self, tensor: SourceTensor, begin: int, end: int) -> Bytes:
        return self.values(tensor, begin, end).view(np.uint8)
