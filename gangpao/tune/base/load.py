"""The base of a tuning, from a path: a Hugging Face folder or a GGUF file. Start reading here.

A GGUF file stays where it is and as it is: its blocks are seen through a memory map. A folder is read into memory, in the dtype
of its files or in a smaller one. Either way nothing of the base is trained, and what a run needs to know of it is in one record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gangpao.evaluate.results import sha256_of
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.model.transformer import Transformer
from gangpao.model.vision.tower import VisionTower
from gangpao.text.hf_folder import tokenizer_files
from gangpao.text.tokenizer import Tokenizer
from gangpao.text.tokenizer_json import hugging_face_files
from gangpao.tune.base import gguf as blocks
from gangpao.tune.base.device import compute_dtype, describe
from gangpao.tune.base.folder import DTYPES, model_of
from gangpao.tune.pictures import load as sight

STORAGES = tuple(DTYPES)


@dataclass(frozen=True, slots=True)
class Base:
    """A frozen model and what belongs to it.

    config: of the model as it is (an own head is believed before config.json). sha256: of the file; of several, of all their
    bytes, one file after the other. storage: in which types the weights lie, in words. dtype: of the computation, to be given to
    the forward pass. tower: of a model that sees.
    """

    path: Path
    config: ModelConfig
    model: Transformer
    tokenizer: Tokenizer
    chat_template: str | None
    sha256: str
    storage: str
    dtype: torch.dtype
    tower: VisionTower | None = None


def base_shape(path: Path) -> ModelConfig:
    """The configuration of a base, from its headers alone. Raises ValueError for what is no model that can be tuned."""
    if _is_folder(path):
        return sight.shapes(path)[1] if sight.sees(path) else ModelConfig.from_file(path / "config.json", say=False)
    with GGUF.open(path) as file:
        return blocks.read_config(file)


def base_tokenizer(path: Path) -> tuple[Tokenizer, str]:
    """The tokenizer of a base and its model type; no weights are read. Raises ValueError as base_shape does."""
    kind = base_shape(path).model_type
    if _is_folder(path):
        return Tokenizer.from_dir(path), kind
    with GGUF.open(path) as file:
        return Tokenizer.from_gguf(file.metadata), kind


def base_tokenizer_files(path: Path) -> dict[str, bytes]:
    """The files of a base's tokenizer by name: those of its folder, or made from a GGUF file. Raises ValueError where a file's
    tokenizer has no such form."""
    if _is_folder(path):
        return tokenizer_files(path)
    with GGUF.open(path) as file:
        return hugging_face_files(file.metadata)


def base_files(path: Path) -> Sequence[Path]:
    """The files that a base's weights are in, in order; what its sha256 and its size are of."""
    if _is_folder(path):
        return weights.weight_files(path)
    with GGUF.open(path) as file:
        return file.paths


def load_base(path: Path, *, storage: str = "auto", dtype: torch.dtype | None = None, device: str = "cpu") -> Base:
    """A base, every parameter frozen.

    storage: "auto" keeps a GGUF file's blocks and a folder's dtype; fp32, bf16 and fp16 are that for all weights, nf4 is for the
    matrices in the layers. dtype: of the computation; None: what the device is good at (compute_dtype).
    Raises ValueError for an unknown storage, and for a folder or file that is incomplete, damaged or not supported.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage {storage!r:.40} is not known; choose one of {', '.join(STORAGES)}")
    path = Path(path)
    dtype = dtype or compute_dtype(describe(device))
    if sight.sees(path):
        return _seeing(path, storage, dtype, device)
    if _is_folder(path):
        config = ModelConfig.from_file(path / "config.json")
        files: Sequence[Path] = weights.weight_files(path)
        model = model_of(config, weights.tensors(path), storage, device, str(path))
        tokenizer, words = Tokenizer.from_dir(path), _stored_as(model, storage)
    else:
        with GGUF.open(path) as file:
            config, files = blocks.read_config(file), file.paths
            if storage == "auto":
                model, words = blocks.model_in_blocks(file, config).to(device), _types(file)
            else:
                model = model_of(config, blocks.tensors(file, config), storage, device, str(path))
                words = f"{_stored_as(model, storage)}, from {_types(file)}"
            tokenizer = Tokenizer.from_gguf(file.metadata)
    template = tokenizer.chat_template
    return Base(path, model.config, model, tokenizer, template, sha256_of(files), words, dtype)


def check_length(seq_len: int, config: ModelConfig, path: Path) -> None:
    """Raises ValueError for rows that are longer than what the model was made for."""
    most = config.max_position_embeddings
    if seq_len > most:
        raise ValueError(
            f"seq_len is {seq_len:,}, and {path} reads {most:,} tokens at most: set seq_len to {most} or less "
            '(longer rows are dropped, or cut with data.too_long = "cut")'
        )


def _seeing(path: Path, storage: str, dtype: torch.dtype, device: str) -> Base:
    """A base with its tower. Raises ValueError for a storage in blocks, which no tower has."""
    if storage == "nf4":
        raise ValueError('storage nf4 is for language models alone; take "bf16" for one that sees')
    tower, model = sight.load(path, dtype=DTYPES[storage], device=device)
    tokenizer, digest = Tokenizer.from_dir(path), sha256_of(weights.weight_files(path))
    words = _stored_as(model, storage)
    model.requires_grad_(False)
    tower.requires_grad_(False)
    return Base(path, model.config, model, tokenizer, tokenizer.chat_template, digest, words, dtype, tower)


def _is_folder(path: Path) -> bool:
    if path.is_dir():
        if (path / "config.json").is_file():
            return True
        raise ValueError(f"{path}: there is no config.json; give a Hugging Face folder or a .gguf file")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such folder or file; give a Hugging Face folder or a .gguf file")
    return False


def _types(file: GGUF) -> str:
    """The types of a file's matrices, those of most bytes first."""
    count: Counter[str] = Counter()
    for info in file.tensors.values():
        if len(info.shape) > 1:
            count[info.type] += info.nbytes
    return f"{' and '.join(name for name, _ in count.most_common())} blocks of the file"


def _stored_as(model: Transformer, storage: str) -> str:
    count: Counter[str] = Counter()
    for p in model.parameters():
        count[str(p.dtype).removeprefix("torch.")] += p.nbytes
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    rest = " and ".join(names.get(name, name) for name, _ in count.most_common())
    return f"nf4, and {rest} outside the layers" if storage == "nf4" else rest
