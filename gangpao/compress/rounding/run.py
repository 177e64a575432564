"""A model into types, with the data in view: the bytes of every matrix, and vectors where some were trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gangpao import kernels
from gangpao.compress.rounding import together
from gangpao.compress.rounding.config import RoundingConfig
from gangpao.compress.rounding.grids import GRIDS, Held, packed, unpacked
from gangpao.compress.rounding.layers import dense_weight
from gangpao.compress.rounding.store import Store, digest, load_array, save_array
from gangpao.compress.rounding.sweep import Order, Sweep
from gangpao.deploy.header import form_of
from gangpao.formats.adapters.gguf import Form, gguf_name
from gangpao.formats.architectures import EMBEDDING, HEAD, TENSORS
from gangpao.formats.blocks import BY_NAME, dequantize, fits, quantize
from gangpao.formats.gguf import GGUF
from gangpao.formats.imatrix import Importance
from gangpao.formats.row_order import pairs_side_by_side
from gangpao.model.layers import Linear
from gangpao.progress import Progress, Silent
from gangpao.tune.base.load import Base, load_base

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rounded:
    """An Encode: (tensor, first row, float32 rows in the file's order, type) -> uint8 rows. Rows that a rounding chose come from
    its folder, all others are rounded block by block. vectors: norms and biases that were trained, by GGUF name, in the file's
    order."""

    types: Mapping[str, str]
    importance: Importance | None
    tensors: Mapping[str, Bytes] = field(default_factory=dict)
    vectors: Mapping[str, Floats] = field(default_factory=dict)

    def __call__(self, name: str, first: int, values: Floats, kind: str) -> Bytes:
        """Raises ValueError where a tensor is asked for in another type or shape than it was rounded for."""
        rows = self.tensors.get(name)
        if rows is None:
            return _plain(self.importance, name, values, kind)
        if kind != self.types[name] or first + len(values) > len(rows):
            raise ValueError(
                f"{name}: rounded as {len(rows)} rows of {self.types[name]}, and rows {first} to {first + len(values)} of {kind} "
                "are asked for; round again for these types"
            )
        return np.ascontiguousarray(rows[first : first + len(values)])


def _plain(importance: Importance | None, name: str, values: Floats, kind: str) -> Bytes:
    if BY_NAME[kind].block_size == 1:
        return quantize(values, kind)
    return kernels.quantize_rows(values, kind, None if importance is None else importance.of(name))


def rounded(
    source: Path,
    types: Mapping[str, str],
    config: RoundingConfig,
    ids: Ids | None,
    importance: Importance | None = None,
    *,
    folder: Path,
    progress: Progress | None = None,
) -> Rounded:
    """Round the matrices of a model (a Hugging Face folder or a GGUF file) into the types of GGUF tensor names.

    ids [N, T]: calibration, None only for kind plain. folder: keeps what is done; called again with the same arguments, a
    rounding goes on and ends with the same bytes. Raises ValueError for a tensor whose rows do not fit its type, for ids that are
    missing or too short, and for a folder that holds another rounding.
    """
    if config.kind == "plain":
        return Rounded(types, importance)
    ids = _checked(ids, config)
    base = load_base(source)
    _check_types(base, types)
    identity = {
        "source": base.sha256, "types": dict(sorted(types.items())), "ids": digest(ids),
        "config": {k: v for k, v in config.model_dump().items() if k not in _NOT_OF_A_SWEEP},
        "importance": importance.digest(sorted(types)) if importance else "",
    }  # fmt: skip
    store = Store(folder, identity)
    order = RowOrders(source, base)
    tokens = torch.from_numpy(ids)
    shown = progress or Silent()
    sweep = Sweep(base.model, types, config, store, partial(_plain, importance), order, _copied(source, types))
    sweep.run(tokens, shown)
    names = [path.name.removesuffix(".npy") for path in sorted((folder / "tensors").glob("*.npy"))]
    tensors = {name: store.load(name) for name in names}
    if config.kind == "gptq":
        return Rounded(types, importance, tensors)
    return _learned(base, Rounded(types, importance, tensors), config, tokens, order, folder, shown)


def _copied(source: Path, types: Mapping[str, str]) -> frozenset[str]:
    """Tensors that the file has in their types already: a writer copies them, since no rounding is better than none."""
    if source.is_dir():
        return frozenset()
    with GGUF.open(source) as file:
        return frozenset(name for name, info in file.tensors.items() if info.type == types.get(name, info.type))


_NOT_OF_A_SWEEP = ("kind", "steps", "step_windows", "lr", "save_every")


def _checked(ids: Ids | None, config: RoundingConfig) -> Ids:
    if ids is None or ids.ndim != 2 or not ids.size:
        raise ValueError(f"kind {config.kind} needs calibration ids [windows, length]; give some, or take kind plain")
    if ids.shape[1] < 2:
        raise ValueError(f"windows of {ids.shape[1]} ids: nothing follows in them; take longer ones")
    return np.ascontiguousarray(ids, np.int64)


def _check_types(base: Base, types: Mapping[str, str]) -> None:
    for name, module in base.model.named_modules():
        if not isinstance(module, Linear):
            continue
        there = gguf_name(f"{name}.weight")
        kind = types.get(there or "")
        if kind in GRIDS and not fits(module.in_features, kind):
            raise ValueError(
                f"{there}: rows of {module.in_features} are not whole blocks of {kind}; take a type of 32 weights a block"
            )


class RowOrders:
    """Of a tensor's rows: row i of the file is row order[i] of Hugging Face's; None where they are the same."""

    def __init__(self, source: Path, base: Base) -> None:
        if source.is_dir():
            interleaved = form_of(base.config).interleaved
        else:
            with GGUF.open(source) as file:
                interleaved = Form.of(file).interleaved
        c = base.config
        self.heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads} if interleaved else {}
        self.head_dim = c.head_dim

    def __call__(self, name: str) -> Order | None:
        part = name.split(".")[-2] if name.startswith("blk.") else ""
        if part not in self.heads:
            return None
        rows = np.arange(self.heads[part] * self.head_dim, dtype=np.float32)
        return pairs_side_by_side(rows, self.heads[part]).astype(np.int64)


# --- learned


def _learned(
    base: Base, found: Rounded, config: RoundingConfig, ids: Tensor, order: RowOrders, folder: Path, progress: Progress
) -> Rounded:
    """Train what is continuous behind a sweep."""
    here = folder / f"learned-{_name_of(config)}"
    student = together.Student(base.model, *_as_read(base, found, order))
    together.train(base.model, student, ids, config, here, progress)
    (here / "tensors").mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, linear in student.linears.items():
        there = _there(name)
        rows = packed(linear.finished())
        moved = order(there)
        save_array(here / "tensors" / f"{there}.npy", rows if moved is None else rows[moved])
        tensors[there] = load_array(here / "tensors" / f"{there}.npy", mapped=True)
    vectors = {}
    for name, values in student.vectors().items():
        there = _there(name)
        moved = order(there)
        vectors[there] = values if moved is None else values[moved]
    return Rounded(found.types, found.importance, {**found.tensors, **tensors}, vectors)


def _name_of(config: RoundingConfig) -> str:
    return digest(np.array([config.steps, config.step_windows, config.lr, config.save_every], np.float64))[:8]


def _there(name: str) -> str:
    found = gguf_name(name)
    assert found is not None
    return found


def _as_read(base: Base, found: Rounded, order: RowOrders) -> tuple[dict[str, Held], dict[str, Tensor]]:
    """All matrices as a reader of the file will see them: those on a grid, and the others, by Hugging Face's name."""
    matrices: dict[str, Held] = {}
    plain: dict[str, Tensor] = {}
    for name, module in base.model.named_modules():
        if not isinstance(module, Linear):
            continue
        there = _there(f"{name}.weight")
        if there in found.tensors:
            rows = np.asarray(found.tensors[there])
            moved = order(there)
            back = rows if moved is None else rows[np.argsort(moved)]
            matrices[f"{name}.weight"] = unpacked(back, GRIDS[found.types[there]], module.in_features)
        elif not (name == "lm_head" and base.config.tie_word_embeddings):
            plain[f"{name}.weight"] = _read(found, there, dense_weight(module))
    plain[EMBEDDING] = _read(found, TENSORS[EMBEDDING], dense_weight(base.model.model.embed_tokens))
    if base.config.tie_word_embeddings:
        plain[HEAD] = plain[EMBEDDING]
    return matrices, plain


def _read(found: Rounded, name: str, weights: Tensor) -> Tensor:
    kind = found.types.get(name, "F32")
    return torch.from_numpy(dequantize(_plain(found.importance, name, weights.numpy(), kind), kind))
