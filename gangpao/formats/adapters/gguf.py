"""llama.cpp's adapters: a GGUF file of general.type "adapter" with the pairs NAME.lora_a and NAME.lora_b.

Such a file knows one number for the scale of all parts (adapter.lora.alpha, divided by each part's rank), so what another alpha
asks for is multiplied into B: rsLoRA and patterns come out as they are. Rows of q and k lie as the architecture's files have them,
and the pair of an embedding is turned round. What llama.cpp would read wrongly, or not at all, is refused with what to do instead:
DoRA, whole tensors, and a part on the embedding or the head of a model that ties them.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gangpao.formats import gguf_write
from gangpao.formats.adapters.adapter import EMBEDDING, HEAD, Adapter, Part
from gangpao.formats.architectures import LAYER_TENSORS, TENSORS, by_gguf_name
from gangpao.formats.gguf import GGUF, ModelFileError, TensorInfo
from gangpao.formats.row_order import pairs_apart, pairs_side_by_side

Floats = npt.NDArray[np.float32]

_OUTSIDE = {hf.removesuffix(".weight"): name.removesuffix(".weight") for hf, name in TENSORS.items()}
_OUTSIDE_BACK = {name: hf for hf, name in _OUTSIDE.items()}
_LAYER_BACK = {name: hf for hf, name in LAYER_TENSORS.items()}
_HEADS = {"self_attn.q_proj": 0, "self_attn.k_proj": 1}  # which number of heads orders the rows
_SHA256 = "gangpao.base_sha256"
_MERGE = "`gangpao merge` writes a whole model instead"


@dataclass(frozen=True, slots=True)
class Form:
    """What an adapter's file must fit: general.architecture, heads of queries and of keys, whether the head is the embedding."""

    architecture: str
    heads: int
    kv_heads: int
    tied: bool

    @classmethod
    def of(cls, gguf: GGUF) -> Form:
        """That of a model's file."""
        name = gguf.get_str("general.architecture")
        heads = gguf.get_int(f"{name}.attention.head_count")
        kv_heads = gguf.get_int(f"{name}.attention.head_count_kv", heads)
        return cls(name, heads, kv_heads, "output.weight" not in gguf.tensors)

    @property
    def interleaved(self) -> bool:
        """Whether q and k lie in pairs (2i, 2i+1). Raises ValueError for an architecture that we do not know."""
        row = by_gguf_name().get(self.architecture)
        if row is None or row.gguf is None:
            raise ValueError(
                f"architecture {self.architecture!r:.40} is not one we know; there are {', '.join(by_gguf_name())}"
            )
        return row.gguf.interleaved


def hf_name(name: str) -> str | None:
    """Hugging Face's name of a tensor of a GGUF file; None for one that has none there, or several (experts)."""
    module, _, leaf = name.rpartition(".")
    if module in _OUTSIDE_BACK:
        return f"{_OUTSIDE_BACK[module]}.{leaf}"
    head, _, rest = module.partition(".")
    layer, _, inner = rest.partition(".")
    if head != "blk" or not layer.isdecimal() or inner not in _LAYER_BACK:
        return None
    return f"model.layers.{int(layer)}.{_LAYER_BACK[inner]}.{leaf}"


def gguf_name(name: str) -> str | None:
    """The inverse: "model.layers.0.self_attn.q_proj.weight" -> "blk.0.attn_q.weight"."""
    module, _, leaf = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{leaf}"
    pieces = module.split(".", 3)
    if (
        len(pieces) != 4
        or pieces[:2] != ["model", "layers"]
        or not pieces[2].isdecimal()
        or pieces[3] not in LAYER_TENSORS
    ):
        return None
    return f"blk.{int(pieces[2])}.{LAYER_TENSORS[pieces[3]]}.{leaf}"


def shapes_of(gguf: GGUF) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's tensors under Hugging Face's names, for Adapter.check_base."""
    return {hf: info.shape for name, info in gguf.tensors.items() if (hf := hf_name(name))}


def heads_of(name: str, form: Form) -> int:
    """In how many heads the rows of a module (Hugging Face's name) lie in pairs in the file; 0 where they lie as they are."""
    at = _HEADS.get(name.split(".", 3)[-1])
    return 0 if at is None or not form.interleaved else (form.heads, form.kv_heads)[at]


# --- reading


def read_gguf(path: str | os.PathLike[str], form: Form | None = None) -> Adapter:
    """An adapter's file. form: of the base, which an interleaved architecture needs for q and k, and which is compared.

    Raises ValueError naming file and tensor for what is damaged, belongs to another base or is not computed here.
    """
    with GGUF.open(path) as gguf:
        return _read(gguf, form)


def _read(gguf: GGUF, base: Form | None) -> Adapter:
    path = gguf.path
    kind = gguf.get_str("general.type", "model")
    if kind != "adapter" or gguf.get_str("adapter.type", "") != "lora":
        raise ModelFileError(f"{path}: no adapter: general.type is {kind!r:.40}; a model is given with -m")
    if "adapter.alora.invocation_tokens" in gguf.metadata:
        raise ModelFileError(f"{path}: an adapter that begins to work at certain tokens (aLoRA) is not computed here")
    form = base or _own_form(gguf)
    if form and gguf.get_str("general.architecture") != form.architecture:
        own = gguf.get_str("general.architecture")
        raise ValueError(
            f"{path}: an adapter of another base: it is for {own:.40}, and the base is {form.architecture}"
        )
    alpha = gguf.get_float("adapter.lora.alpha", 0.0)
    if not math.isfinite(alpha):
        raise ModelFileError(f"{path}: adapter.lora.alpha is {alpha}, not a number to scale with")
    parts: dict[str, Part] = {}
    whole: dict[str, Floats] = {}
    for name in gguf.tensors:
        stem, _, leaf = name.rpartition(".")
        if leaf == "lora_b" and f"{stem}.lora_a" in gguf.tensors:
            continue
        hf = hf_name(stem if leaf.startswith("lora_") else name)
        if hf is None:
            raise ValueError(
                f"{path}: {name:.100} has no place in a model that we compute (experts, another architecture)"
            )
        if leaf == "lora_a":
            parts[hf.removesuffix(".weight")] = _part(gguf, stem, hf.removesuffix(".weight"), alpha, form)
        elif name.endswith(
            "_norm.weight"
        ):  # llama.cpp's converter writes these, and llama.cpp passes over them in silence
            whole[hf] = _values(gguf, name)
        else:
            raise ValueError(f"{path}: {name:.100} is no pair of lora_a and lora_b; the file is incomplete")
    if not parts:
        raise ValueError(f"{path}: there is no adapter in it")
    ranks = Counter(part.rank for part in parts.values())
    name = gguf.get_str("general.base_model.0.name", "")
    return Adapter(parts, name, gguf.get_str(_SHA256, ""), alpha, ranks.most_common(1)[0][0], whole=whole)


def _own_form(gguf: GGUF) -> Form | None:
    """What a file says itself of the base's heads: ours do, llama.cpp's do not."""
    name = gguf.get_str("general.architecture")
    heads = gguf.get_int(f"{name}.attention.head_count", 0)
    kv_heads = gguf.get_int(f"{name}.attention.head_count_kv", heads)
    return Form(name, heads, kv_heads, False) if heads > 0 and kv_heads > 0 else None


def _part(gguf: GGUF, stem: str, name: str, alpha: float, form: Form | None) -> Part:
    if f"{stem}.lora_b" not in gguf.tensors:
        raise ValueError(f"{gguf.path}: {stem:.100} has a lora_a only; the file is incomplete, get it again")
    a, b = _values(gguf, f"{stem}.lora_a"), _values(gguf, f"{stem}.lora_b")
    if name == EMBEDDING and a.ndim == b.ndim == 2:
        a, b = np.ascontiguousarray(b.T), a
    try:
        part = Part(a, b, 1.0)
    except ValueError as error:
        raise ValueError(f"{gguf.path}: {stem:.100}: {error}") from error
    return Part(a, _halves(gguf, name, b, form), alpha / part.rank if alpha else 1.0)


def _halves(gguf: GGUF, name: str, b: Floats, form: Form | None) -> Floats:
    if name.split(".", 3)[-1] not in _HEADS:
        return b
    if form is None:
        if not Form(gguf.get_str("general.architecture"), 1, 1, False).interleaved:
            return b
        raise ValueError(
            f"{gguf.path}: the order of {name:.100} depends on the heads of its base; give the base with it"
        )
    heads = heads_of(name, form)
    if heads and len(b) % (2 * heads):
        raise ValueError(
            f"an adapter of another base: {gguf.path} has {len(b)} rows in {name:.100}, the base {heads} heads"
        )
    return np.ascontiguousarray(pairs_apart(b, heads)) if heads else b


def _values(gguf: GGUF, name: str) -> Floats:
    values = np.array(gguf.array(name))
    if not np.isfinite(values).all():
        raise ValueError(f"{gguf.path}: {name:.100} holds a value that is no finite number: its training diverged")
    return values


# --- writing


def write_gguf(path: str | os.PathLike[str], adapter: Adapter, form: Form, *, name: str = "") -> None:
    """Write an adapter for llama.cpp, in F32. form: of the base that it is for. name: general.name, else the file's.

    Not atomic: call it inside atomic.new_file. Raises ValueError for what this form cannot say.
    """
    path = Path(path)
    _check_sayable(adapter, form)
    alphas = Counter(np.float32(part.scale * part.rank).item() for part in adapter.parts.values())
    alpha = next((value for value, _ in alphas.most_common() if value), 1.0)
    tensors: dict[str, Floats] = {}
    for module, part in adapter.parts.items():
        stem = gguf_name(f"{module}.weight")
        factor = np.float32(part.scale * part.rank / alpha)
        b = part.b if np.float32(part.scale * part.rank) == np.float32(alpha) else part.b * factor
        if heads := heads_of(module, form):
            b = pairs_side_by_side(b, heads)
        a, b = (b, part.a.T) if module == EMBEDDING else (part.a, b)
        tensors |= {f"{stem}.lora_a": a, f"{stem}.lora_b": b}
    _write(path, _fields(adapter, form, alpha, name or path.stem), tensors)


def _fields(adapter: Adapter, form: Form, alpha: float, name: str) -> dict[str, Any]:
    out: dict[str, Any] = {
        "general.architecture": form.architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.name": name,
        "adapter.lora.alpha": float(alpha),
        f"{form.architecture}.attention.head_count": form.heads,  # the order of q and k, for readers without the base
        f"{form.architecture}.attention.head_count_kv": form.kv_heads,
    }
    if adapter.base:
        out |= {"general.base_model.count": 1, "general.base_model.0.name": adapter.base}
    return out | ({_SHA256: adapter.base_sha256} if adapter.base_sha256 else {})


def _check_sayable(adapter: Adapter, form: Form) -> None:
    """Raises ValueError for an adapter that a GGUF file cannot hold, or that llama.cpp reads as another one."""
    for name, part in adapter.parts.items():
        if part.magnitude is not None:
            raise ValueError(f"{name} has a magnitude (DoRA), which a GGUF adapter cannot say; {_MERGE}")
        if form.tied and name in (EMBEDDING, HEAD):
            raise ValueError(
                f"{name} is adapted, and the base uses one tensor as embedding and head: llama.cpp refuses such an adapter or "
                f"takes it for both; {_MERGE}, with a head of its own"
            )
        if gguf_name(f"{name}.weight") is None:
            raise ValueError(f"{name:.100} has no name in a GGUF file of {form.architecture}; {_MERGE}")
        heads = heads_of(name, form)
        if heads and len(part.b) % (2 * heads):
            raise ValueError(
                f"an adapter of another base: {len(part.b)} rows in {name}, and the base has {heads} heads there"
            )
    if adapter.whole:
        first = next(iter(adapter.whole))
        raise ValueError(f"{first:.100} is trained as a whole, which a GGUF adapter cannot say; {_MERGE}")
    if not adapter.parts:
        raise ValueError("an adapter without parts")


def _write(path: Path, fields: Mapping[str, object], tensors: Mapping[str, Floats]) -> None:
    infos = [TensorInfo(name, tuple(values.shape), "F32", 0, values.nbytes) for name, values in tensors.items()]
    with path.open("wb") as file:
        file.write(gguf_write.header(infos, gguf_write.metadata(fields), len(fields)))
        for values in tensors.values():
            file.write(np.ascontiguousarray(values, dtype="<f4").tobytes())
            file.write(bytes(gguf_write.padding(values.nbytes)))
