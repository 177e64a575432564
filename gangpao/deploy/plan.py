"""Which tensors a GGUF file holds, under which names, in which types and rows, from a checkpoint's tensors.

The weights are believed before the configuration: a head of its own stays, whatever tie_word_embeddings says, and what is
missing, left over or of another shape is said before the first byte is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gangpao import kernels
from gangpao.deploy.changes import Change, changes
from gangpao.deploy.header import form_of, rope_as_divisors
from gangpao.formats.architectures import DELTA_TENSORS, EMBEDDING, EXPERT_TENSORS, HEAD, TENSORS
from gangpao.formats.blocks import BY_NAME, Unwritable, fits, quantize
from gangpao.model import weights as checkpoint
from gangpao.model.config import ModelConfig
from gangpao.model.layers import inverse_frequencies
from gangpao.model.transformer import Transformer

Floats = npt.NDArray[np.float32]
Source = tuple[str, torch.Tensor]

ROWS = 4096  # of a matrix at once: a large one as float32 is larger than the checkpoint's layers


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the file: its name, where it comes from, and how. `data` converts it when its turn comes.

    change: what the file has otherwise than the checkpoint; None: nothing.
    """

    name: str
    sources: tuple[Source, ...]
    type: str
    change: Change | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """In numpy's order; experts are stacked."""
        first = tuple(self.sources[0][1].shape)
        if len(first) == 3:  # filters [channels, 1, taps]
            first = (first[0], first[2])
        return (len(self.sources), *first) if "_exps" in self.name else first

    @property
    def nbytes(self) -> int:
        return BY_NAME[self.type].row_bytes(self.shape[-1]) * int(np.prod(self.shape[:-1], dtype=np.int64))

    def data(self) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes, some rows at a time. Raises ValueError naming the tensor for values that have no place in its type."""
        for source, (name, _) in enumerate(self.sources):
            for begin, values in self.rows(source):
                try:
                    yield kernels.quantize_rows(values, self.type)
                except ValueError:
                    self._explain(name, begin, values)
                    raise

    def _explain(self, name: str, begin: int, values: Floats) -> None:
        """Raises ValueError naming the tensor and the row of the file, in the words of the definition."""
        try:
            quantize(values, self.type)
        except Unwritable as error:
            order = f" ({self.change.what})" if self.change else ""
            where = f"tensor {name}, to be written as {self.type}: row {begin + error.row}{order}"
            raise ValueError(f"{where}: {error.what}") from error

    def rows(self, source: int = 0) -> Iterator[tuple[int, Floats]]:
        """The values of a source in the file's order, as (first row, float32 [rows, columns])."""
        tensor = self.sources[source][1].detach()
        if self.change:
            whole = self.change.there(tensor.to("cpu", torch.float32).numpy())
            tensor = torch.from_numpy(np.ascontiguousarray(whole))
        tensor = tensor.reshape(-1, self.shape[-1])
        for begin in range(0, len(tensor), ROWS):
            yield begin, tensor[begin : begin + ROWS].to("cpu", torch.float32).contiguous().numpy()


def plan(config: ModelConfig, tensors: Mapping[str, torch.Tensor], kind: str) -> list[Planned]:
    """The tensors of the file, in its order. Raises ValueError when tensors and configuration do not belong together."""
    named = whole(config, tensors)
    change_of = changes(config)
    out = []
    for name, sources in _placed(config, named):
        out.append(Planned(name, sources, _kind_of(name, sources[0][1], kind), change_of(sources[0][0])))
    return out + [Planned(name, (source,), "F32") for name, source in _rope_tensors(config)]


def stays_float32(name: str, tensor: torch.Tensor) -> bool:
    """Whether readers want a tensor in F32, whatever the others have: norms, biases, filters, routers. tensor: the checkpoint's."""
    return tensor.dim() in (1, 3) or "ffn_gate_inp" in name


def _kind_of(name: str, tensor: torch.Tensor, kind: str) -> str:
    if stays_float32(name, tensor):
        return "F32"
    return kind if fits(tensor.shape[-1], kind) else "F16"


def whole(config: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under Hugging Face's names: each that the configuration asks for in its shape, no others, and a head of its
    own also where the configuration says that it is the embedding. Raises ValueError for what is missing or left over."""
    named = {checkpoint.hf_name(foreign): tensor for foreign, tensor in tensors.items()}
    named = {name: tensor for name, tensor in named.items() if not checkpoint.is_derived(name)}
    if config.tie_word_embeddings and {HEAD, EMBEDDING} <= named.keys() and _equal(named[HEAD], named[EMBEDDING]):
        del named[HEAD]
    _check(config, named)
    return named


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) if a.dtype == b.dtype else torch.equal(a.float(), b.float())


def _check(c: ModelConfig, named: Mapping[str, torch.Tensor]) -> None:
    with torch.device("meta"):
        wanted = {name: p.shape for name, p in Transformer(c).named_parameters(remove_duplicate=False)}
    if c.tie_word_embeddings and HEAD not in named:
        del wanted[HEAD]
    elif HEAD in wanted and HEAD not in named:
        raise ValueError(
            f"config.json says that the head is not the embedding (tie_word_embeddings is false), and there is no {HEAD}: "
            "get the whole checkpoint, or write tie_word_embeddings: true if it was trained so"
        )
    for names, what in ((named.keys() - wanted.keys(), "have no place"), (wanted.keys() - named.keys(), "are missing")):
        if names:
            some = ", ".join(sorted(f"{name:.80}" for name in names)[:4]) + (", ..." if len(names) > 4 else "")
            raise ValueError(f"{len(names)} tensors {what} ({some}): weights and config.json do not belong together")
    for name, tensor in named.items():
        if tensor.shape != wanted[name]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, config.json says {list(wanted[name])}")
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, not floats: a quantized checkpoint; export the "
                "model that it was made from"
            )


def _placed(config: ModelConfig, named: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, tuple[Source, ...]]]:
    """GGUF name and sources of every tensor; the experts of a layer become one."""
    layer_tensors = form_of(config).layer_tensors()
    experts: dict[str, list[Source]] = {}
    for name, tensor in named.items():
        if name in TENSORS:
            yield TENSORS[name], ((name, tensor),)
            continue
        layer, whole_name = name.split(".", 3)[2:]
        inner, _, suffix = whole_name.rpartition(".")
        if whole_name in DELTA_TENSORS:
            yield f"blk.{layer}.{DELTA_TENSORS[whole_name]}", ((name, tensor),)
        elif inner.startswith("mlp.experts."):
            gguf = f"blk.{layer}.{EXPERT_TENSORS[inner.split('.')[-1]]}.{suffix}"
            experts.setdefault(gguf, []).append((name, tensor))
        else:
            yield f"blk.{layer}.{layer_tensors[inner]}.{suffix}", ((name, tensor),)
    for gguf, sources in experts.items():
        yield gguf, tuple(sorted(sources, key=lambda pair: int(pair[0].split(".experts.")[1].split(".")[0])))


def _rope_tensors(c: ModelConfig) -> Iterator[tuple[str, Source]]:
    """Divisors of the rotary frequencies, where a rule goes over as those."""
    s = c.rope_scaling
    if s is not None and s.rope_type == "longrope":
        for name, factors in (("long", s.long_factor), ("short", s.short_factor)):
            yield f"rope_factors_{name}.weight", (f"{name}_factor", torch.tensor(factors))
    if rope_as_divisors(c):
        plain, _ = inverse_frequencies(c.model_copy(update={"rope_scaling": None}), c.max_position_embeddings)
        scaled, _ = inverse_frequencies(c, c.max_position_embeddings)
        yield "rope_freqs.weight", ("freqs", (plain / scaled).float())
