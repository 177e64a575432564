"""A model as a Hugging Face folder with 4- or 8-bit weights in compressed-tensors' form, which vLLM and transformers load.

    int4    weights of 4 bits, a scale for 128 columns (64 or 32 where rows are no multiple of it, else one a row), activations as
            they are (W4A16, pack-quantized)
    int8    weights of 8 bits, a scale a row, activations rounded to 8 bits a token as they come (W8A8, int-quantized)

The matrices inside the layers are written so; embedding, head, norms and biases stay bfloat16. The folder
appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gangpao.compress.folders.forms import FORMS, GROUPS, Form
from gangpao.compress.folders.grid import Grid, fit
from gangpao.formats.integers import bits as words
from gangpao.model import weights as checkpoint
from gangpao.model.config import ModelConfig

Progress = Callable[[int], None]
Matters = Callable[[str], "np.ndarray[Any, np.dtype[np.float32]] | None"]

VERSION = "0.20.1"  # of compressed-tensors, whose form this is; its reader is asked in the tests


def write(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    target: Path,
    form: str,
    *,
    matters: Matters = lambda _: None,
    extra: Mapping[str, bytes] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Tensors under Hugging Face's names to a folder. matters(name): mean squared activation of a matrix's columns, or None.

    extra: further files (the tokenizer's). progress(bytes) counts those of the tensors that are done. Raises ValueError for an
    unknown form, a target that exists, and weights that are no finite numbers, naming the tensor.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r:.40}: choose one of {', '.join(FORMS)}")
    if target.exists():  # before minutes of work, not after them
        raise ValueError(f"{target} exists already; choose another name or delete it first")
    chosen, stored = _fitting(FORMS[form], tensors), dict[str, Tensor]()
    done = 0
    for name, tensor in tensors.items():
        if is_packed(name, tensor):
            stored |= _packed(name, tensor, chosen, matters(name))
        else:
            stored[name] = tensor.to(torch.bfloat16)
        done += tensor.nbytes
        if progress:
            progress(done)
    about = {"quantization_config": quantization_config(chosen)}
    return checkpoint.save(target, config, stored, extra=extra, about=about)


def _fitting(form: Form, tensors: Mapping[str, Tensor]) -> Form:
    """The form with the widest groups that every matrix has whole."""
    if not form.group:
        return form
    columns = {tensor.shape[1] for name, tensor in tensors.items() if is_packed(name, tensor)}
    return replace(form, group=next((g for g in GROUPS if all(c % g == 0 for c in columns)), 0))


def is_packed(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is written as integers: the matrices inside the layers, without routers."""
    return (
        tensor.dim() == 2 and ".layers." in name and name.endswith(".weight") and not name.endswith("mlp.gate.weight")
    )


def _packed(name: str, tensor: Tensor, form: Form, matters: Any) -> dict[str, Tensor]:
    module = name.removesuffix(".weight")
    try:
        grid = fit(tensor.detach().to("cpu", torch.float32).numpy(), form.bits, form.group, matters)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return {f"{module}.{suffix}": value for suffix, value in _parts(grid, form)}


def _parts(grid: Grid, form: Form) -> Iterator[tuple[str, Tensor]]:
    if form.bits == 8:
        yield "weight", torch.from_numpy(grid.q)
    else:
        unsigned = grid.q.astype(np.int16) + np.int16(1 << (form.bits - 1))
        yield "weight_packed", torch.from_numpy(words.pack(unsigned, form.bits))
        yield "weight_shape", torch.tensor(grid.q.shape, dtype=torch.int64)
    yield "weight_scale", torch.from_numpy(grid.scale).to(torch.bfloat16)


def quantization_config(form: Form) -> dict[str, Any]:
    """What config.json says of it."""

    def numbers(bits: int, **more: Any) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "actorder": None, "block_structure": None, "dynamic": False, "group_size": None, "num_bits": bits, "observer": "minmax",
            "observer_kwargs": {}, "symmetric": True, "type": "int",
        }  # fmt: skip
        return plain | more

    strategy = {"strategy": "group", "group_size": form.group} if form.group else {"strategy": "channel"}
    activations = numbers(8, dynamic=True, strategy="token", observer=None) if form.activations else None
    return {
        "config_groups": {
            "group_0": {
                "input_activations": activations, "output_activations": None, "targets": ["Linear"],
                "weights": numbers(form.bits, **strategy),
            }
        },
        "format": "int-quantized" if form.bits == 8 else "pack-quantized",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "version": VERSION,
    }  # fmt: skip
