"""A Hugging Face folder as the base: read tensor by tensor, written as safetensors with each tensor in the type that it had.

All other files (tokenizer, chat template, generation settings) are copied as they are, so a merged model ends its turns as its base
does. What it gives up: pictures; of a model that sees only the language model could be merged, and it is refused.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gangpao.formats.adapters import safetensors
from gangpao.formats.architectures import EMBEDDING, HEAD
from gangpao.model import torch_file, weights
from gangpao.model.config import ModelConfig
from gangpao.tune.merge.adapted import Adapted

_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_WIDTHS = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}
_INDEX = "model.safetensors.index.json"


class Folder:
    """An open base or result. `names`: of its tensors in the language of Hugging Face."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = ModelConfig.from_file(path / "config.json", say=False)
        if self.config.tensor_prefix:
            raise ValueError(f"{path}: a model that sees; adapters are merged onto language models only")
        self.files = weights.weight_files(path)
        self._read: tuple[Path, dict[str, Tensor]] | None = None  # of .bin files the last one, as a whole
        self._places = {weights.hf_name(name): (file, name) for file in self.files for name in self._names(file)}

    @property
    def names(self) -> list[str]:
        """Of all tensors, buffers that old checkpoints carry included."""
        return list(self._places)

    def _names(self, file: Path) -> list[str]:
        if file.suffix == ".bin":
            return list(self._pickled(file))
        with _opened(file) as opened:
            return list(opened.keys())

    def _pickled(self, file: Path) -> dict[str, Tensor]:
        if self._read is None or self._read[0] != file:
            self._read = file, dict(torch_file.load(file))
        return self._read[1]

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding. The weights are believed before config.json."""
        return self.config.tie_word_embeddings and HEAD not in self._places

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors, from the headers."""
        return {name: self.entry(name)[1] for name in self._places}

    def entry(self, name: str) -> tuple[str, tuple[int, ...], int]:
        """Type in the words of safetensors, shape and bytes. Raises ValueError for what is no float."""
        file, own = self._places[name]
        if file.suffix == ".bin":
            tensor = self._pickled(file)[own]
            kind, shape = _TYPES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape)
        else:
            with _opened(file) as opened:
                part = opened.get_slice(own)
                kind, shape = str(part.get_dtype()), tuple(part.get_shape())
        if kind not in _WIDTHS:
            raise ValueError(
                f"{self.path}: {name:.100} holds {kind:.20}, not floats: merge onto the model that it was made from"
            )
        return kind, shape, math.prod(shape) * _WIDTHS[kind]

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is stored. Raises ValueError for one that is not there, or in a damaged file."""
        if name not in self._places:
            raise ValueError(f"{self.path}: there is no {name:.100}; the checkpoint is not whole")
        file, own = self._places[name]
        if file.suffix == ".bin":
            return self._pickled(file)[own]
        with _opened(file) as opened:
            tensor: Tensor = opened.get_tensor(own)
        return tensor

    def own_name(self, name: str) -> str:
        """What the file calls it."""
        return self._places[name][1]

    def file_of(self, name: str) -> Path:
        """Where it lies."""
        return self._places[name][0]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); the file is damaged, get it again") from error


def write(base: Folder, adapted: Adapted, staging: Path, advance: Callable[[], None]) -> None:
    """Write the merged folder into an empty one. Raises ValueError naming a tensor whose values its type cannot hold."""
    for path in base.path.iterdir():
        if (
            path.is_file()
            and path not in base.files
            and not path.name.endswith((".index.json", ".bin", ".safetensors"))
        ):
            shutil.copyfile(path, staging / path.name)
    unties = adapted.unties(base.tied)
    if unties:
        _untie(staging / "config.json")
    weight_map: dict[str, str] = {}
    for file in base.files:
        names = [name for name in base.names if base.file_of(name) == file]
        if unties and EMBEDDING in names:
            names.append(HEAD)
        target = file.stem.replace("pytorch_model", "model") + ".safetensors"
        weight_map |= {(HEAD if name == HEAD else base.own_name(name)): target for name in names}
        _write_file(base, adapted, names, staging / target, advance)
    if len(base.files) > 1:
        total = sum(path.stat().st_size for path in staging.glob("*.safetensors"))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (staging / _INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _write_file(base: Folder, adapted: Adapted, names: list[str], path: Path, advance: Callable[[], None]) -> None:
    def source(name: str) -> Tensor:
        return base.tensor(EMBEDDING if name == HEAD and base.tied else name)

    def own(name: str) -> str:
        return HEAD if name == HEAD and base.tied else base.own_name(name)

    entries = {own(name): base.entry(EMBEDDING if name == HEAD and base.tied else name) for name in names}
    with path.open("wb") as file:
        file.write(safetensors.header(entries))
        for name in names:
            stored = source(name)
            if name in adapted.names:
                stored = _rounded(name, adapted.apply(name, stored), stored.dtype)
            file.write(stored.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            advance()


def _rounded(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    out = values.to(dtype)
    if not torch.isfinite(out).all():
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} would hold a value that is no finite number in {kind}; take a base in float32 or bfloat16"
        )
    return out


def _untie(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    data["tie_word_embeddings"] = False
    with suppress(KeyError, TypeError):
        data["text_config"]["tie_word_embeddings"] = False
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
