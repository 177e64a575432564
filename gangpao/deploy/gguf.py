"""Write a model as GGUF, in pure Python: what our engine, llama.cpp, Ollama, LM Studio and the phone apps read.

Tensors are converted and written some rows after the other, so the memory needed does not grow with the model. Matrices get
the type that was asked for; norms and biases stay F32, and a matrix whose rows are not whole blocks becomes F16. header.py
says what the model is, plan.py which tensors there are, text/export.py what its tokenizer is. Before the file gets its name it
is read back and compared with the checkpoint: proof_text.py and proof_numbers.py.

What it gives up: split files.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import torch

from gangpao import atomic
from gangpao.deploy import proof_numbers, proof_text
from gangpao.deploy.header import differences, metadata
from gangpao.deploy.plan import Planned, plan
from gangpao.formats import gguf_write
from gangpao.formats.blocks import WRITTEN
from gangpao.formats.gguf import GGUF
from gangpao.model import weights as checkpoint
from gangpao.model.config import ModelConfig
from gangpao.text.export import gguf_metadata

Progress = Callable[[int, int], None]
OnNote = Callable[[str], None]


def export(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str],
    kind: str = "Q8_0",
    *,
    progress: Progress | None = None,
    on_note: OnNote = lambda _: None,
    check: bool = True,
    alone: bool = True,
) -> Path:
    """A Hugging Face folder with its tokenizer to one .gguf file.

    progress(done, total) is called in tensors written, then in layers read back and compared (not with check=False). on_note
    gets sentences about what was left out or what other programs will not read. alone: this file is all that becomes of the
    folder, so the log says what of it is left out.
    Raises ValueError when the file exists, the type is unknown or the model has no GGUF form, and Difference, a ValueError,
    naming the stage and the first difference when what was written is not the checkpoint; then there is no file.
    """
    path = Path(folder)
    config = ModelConfig.from_file(path / "config.json", say=alone)
    tensors = dict(checkpoint.tensors(path))
    fields = gguf_metadata(path, on_note)

    def text(gguf: GGUF) -> None:
        proof_text.prove(path, gguf.metadata, config.vocab_size, on_note)

    return write(
        target, config, tensors, fields, kind,
        name=path.name, progress=progress, on_note=on_note, check=check, also=text if check else None,
    )  # fmt: skip


def write(
    target: str | os.PathLike[str],
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    tokenizer: Mapping[str, object],
    kind: str = "Q8_0",
    *,
    name: str = "",
    progress: Progress | None = None,
    on_note: OnNote = lambda _: None,
    check: bool = True,
    also: Callable[[GGUF], None] | None = None,
) -> Path:
    """Tensors under Hugging Face names and the tokenizer's metadata to a .gguf file, complete or not at all.

    also: a further check of the hidden file, before that of the numbers. Otherwise as `export`.
    """
    out = Path(target)
    if kind not in WRITTEN:
        raise ValueError(f"type {kind!r:.40} is not one we write; choose one of {', '.join(WRITTEN)}")
    if out.exists():
        raise ValueError(f"{out} exists already; choose another name or delete it first")
    fields = metadata(config, kind, name or out.stem) | padded(tokenizer, config.vocab_size)
    planned = plan(config, tensors, kind)
    advance = _counter(progress, len(planned) + (proof_numbers.steps(config) if check else 0))
    for note in differences(config):
        on_note(note)
    try:
        with atomic.new_file(out) as staging:
            with staging.open("wb") as file:
                _write_file(file, fields, planned, advance)
            with GGUF.open(staging) as gguf:
                if also:
                    also(gguf)
                if check:
                    proof_numbers.prove(gguf, config, planned, kind, on_note, advance)
    except proof_numbers.Difference as error:
        raise proof_numbers.Difference(
            f"{out} was not written, because it would not be the same as the checkpoint. {error}"
        ) from error
    return out


def _write_file(
    file: IO[bytes], fields: Mapping[str, object], planned: list[Planned], advance: Callable[[], None]
) -> None:
    file.write(gguf_write.header(planned, gguf_write.metadata(fields), len(fields)))
    for tensor in planned:
        file.write(bytes(gguf_write.padding(file.tell())))
        for piece in tensor.data():
            file.write(piece.data)
        advance()
    file.write(bytes(gguf_write.padding(file.tell())))


def _counter(progress: Progress | None, total: int) -> Callable[[], None]:
    done = itertools.count(1)
    return lambda: progress(next(done), total) if progress else None


def padded(tokenizer: Mapping[str, object], vocab_size: int) -> dict[str, object]:
    """Tokenizer metadata with unused pieces up to the rows of the embedding: llama.cpp wants as many as rows."""
    out = dict(tokenizer)
    pieces = out.get("tokenizer.ggml.tokens")
    assert isinstance(pieces, list)
    missing = vocab_size - len(pieces)
    if missing < 0:
        raise ValueError(
            f"the tokenizer has {len(pieces)} pieces and the model {vocab_size} rows, so {pieces[vocab_size]!r:.40} and what comes "
            "after it have none: they do not belong together; if tokens were added, resize the model's embedding first"
        )
    fill: dict[str, list[object]] = {
        "tokens": [f"[PAD{i}]" for i in range(len(pieces), vocab_size)], "token_type": [5] * missing, "scores": [0.0] * missing
    }  # fmt: skip
    for key, values in fill.items():
        found = out.get(f"tokenizer.ggml.{key}")
        if isinstance(found, list):
            out[f"tokenizer.ggml.{key}"] = [*found, *values]
    return out
