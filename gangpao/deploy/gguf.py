"""Write a model as GGUF, in pure Python: what our engine, llama.cpp, Ollama, LM Studio and the phone apps read.

Tensors are converted and written one after the other, so the memory needed is one tensor's. Matrices get the type that was
asked for; norms and biases stay F32, and a matrix whose rows are not whole blocks becomes F16. header.py says what the model
is, plan.py which tensors there are, text/export.py what its tokenizer is.

What it gives up: latent attention (MiniCPM3) and split files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from gangpao.deploy.header import ALIGNMENT, header, metadata
from gangpao.deploy.plan import TYPE_IDS, plan
from gangpao.deploy.quants import FILE_TYPES
from gangpao.model import weights as checkpoint
from gangpao.model.config import ModelConfig
from gangpao.text.export import gguf_metadata

Progress = Callable[[int, int], None]


def export(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str],
    kind: str = "Q8_0",
    *,
    progress: Progress | None = None,
) -> Path:
    """A Hugging Face folder with its tokenizer to one .gguf file. progress(done, total) in tensors.

    Raises ValueError when the file exists, the type is unknown or the model has no GGUF form.
    """
    path = Path(folder)
    config = ModelConfig.from_file(path / "config.json")
    tensors = dict(checkpoint.tensors(path))
    return write(target, config, tensors, gguf_metadata(path), kind, name=path.name, progress=progress)


def write(
    target: str | os.PathLike[str],
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    tokenizer: Mapping[str, object],
    kind: str = "Q8_0",
    *,
    name: str = "",
    progress: Progress | None = None,
) -> Path:
    """Tensors under Hugging Face names and the tokenizer's metadata to a .gguf file, complete or not at all."""
    out = Path(target)
    if kind not in FILE_TYPES:
        raise ValueError(f"type {kind!r:.40} is not one we write; choose one of {', '.join(FILE_TYPES)}")
    if out.exists():
        raise ValueError(f"{out} exists already; choose another name or delete it first")
    fields = metadata(config, kind, name or out.stem) | _padded(tokenizer, config.vocab_size)
    planned = plan(config, tensors, kind)
    descriptor, staging = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(header(fields, ((t.name, t.shape, TYPE_IDS[t.kind], t.nbytes) for t in planned)))
            for i, tensor in enumerate(planned):
                file.write(bytes(-file.tell() % ALIGNMENT))
                file.write(tensor.data().tobytes())
                if progress:
                    progress(i + 1, len(planned))
            file.write(bytes(-file.tell() % ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, out)
    except BaseException:
        os.unlink(staging)
        raise
    return out


def _padded(tokenizer: Mapping[str, object], vocab_size: int) -> dict[str, object]:
    """Tokenizer metadata with unused pieces up to the rows of the embedding: llama.cpp wants as many as rows."""
    out = dict(tokenizer)
    pieces = out.get("tokenizer.ggml.tokens")
    assert isinstance(pieces, list)
    missing = vocab_size - len(pieces)
    if missing < 0:
        raise ValueError(
            f"the tokenizer has {len(pieces)} pieces and the model {vocab_size} rows: they do not belong together"
        )
    fill: dict[str, list[object]] = {
        "tokens": [f"[PAD{i}]" for i in range(len(pieces), vocab_size)], "token_type": [5] * missing, "scores": [0.0] * missing
    }  # fmt: skip
    for key, values in fill.items():
        found = out.get(f"tokenizer.ggml.{key}")
        if isinstance(found, list):
            out[f"tokenizer.ggml.{key}"] = [*found, *values]
    return out
