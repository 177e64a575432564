"""The step of a compression that trains a model for its file; start reading here.

    load floats -> every matrix gets its arithmetic -> distil/training.teach -> out/model.gguf, and out/float beside it

Before the first step the student is the teacher rounded to nearest, so the first held-out line of the run says what plain rounding
loses and the last one what is left of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from gangpao.compress.distil.output import write_floats
from gangpao.compress.distil.training import PROJECTIONS, own_weights, teach
from gangpao.compress.qat.arithmetic import PLAIN, Bytes, arithmetic_of
from gangpao.compress.qat.config import QatConfig
from gangpao.compress.qat.layers import Effective, Rounded, RoundedEmbedding, RoundedLinear
from gangpao.compress.qat.rotate import rotated
from gangpao.compress.qat.scales import Scaled
from gangpao.compress.qat.types import types_of
from gangpao.compress.quantize.mixtures import MIXTURES, ModelShape, named
from gangpao.compress.quantize.source import open_source
from gangpao.compress.quantize.write import write_source
from gangpao.compress.step import StepResult
from gangpao.deploy.header import form_of
from gangpao.formats.adapters.gguf import Form, gguf_name, heads_of, hf_name
from gangpao.formats.architectures import by_gguf_name
from gangpao.formats.gguf import GGUF
from gangpao.formats.imatrix import Importance, read_imatrix
from gangpao.formats.row_order import pairs_apart, pairs_side_by_side
from gangpao.model.layers import Linear
from gangpao.model.transformer import Transformer
from gangpao.tune.base.load import Base

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def run_step(config: QatConfig, source: Path, original: Path, out: Path, *, stream: TextIO | None = None) -> StepResult:
    """Train `source` with the weights of its file, towards the teacher (`original` unless another one is named).

    `out/model.gguf` holds the weights that the last step computed with, to the last bit; `out/float` (a folder, or a .gguf file
    where neither model is one) the floats behind them. Called again it goes on where it was stopped, with the same bits.
    """
    taught = teach(config, source, original, out, lambda student: round_model(student, config), stream)
    student, models = taught.student, [source, original, *([Path(config.teacher)] if config.teacher else [])]
    path = write_floats(floats_of(student.model), student.model.config, out / "float", models)
    matrices = matrices_of(student.model)
    target = out / "model.gguf"
    _write(matrices, path, target, MIXTURES[named(config.to)].file_type)
    kinds: dict[str, int] = {}
    for matrix in matrices.values():
        kinds[matrix.kind] = kinds.get(matrix.kind, 0) + 1
    facts = {"types": kinds, "trained": config.train, "activations": config.activations, "bytes": target.stat().st_size}
    return StepResult(target, taught.facts | facts)


# --- a model whose matrices are rounded


def round_model(student: Base, config: QatConfig) -> None:
    """Put layers that compute with rounded weights in place of all matrices. Raises ValueError for a model with experts or latent
    attention (no file of blocks is written of it here), and as types_of does."""
    model = student.model
    if not student.config.plain:
        raise ValueError(
            f"{student.path}: models with experts, latent attention or Gated DeltaNet are not trained for a file yet"
        )
    if config.rotate and student.path.is_file():
        raise ValueError(f"{student.path}: rotate needs a Hugging Face folder, whose file can get a head of its own")
    if config.rotate:
        rotated(model, config.seed)
    tied = bool(model.config.tie_word_embeddings)
    places = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, Linear)}
    shapes = {_gguf(f"{EMBEDDING}.weight"): tuple(model.model.embed_tokens.weight.shape)}
    shapes |= {_gguf(n): tuple(m.weight.shape) for n, m in places.items() if not (tied and n == f"{HEAD}.weight")}
    c = model.config
    shape = ModelShape(
        form_of(c).name, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads, experts=0, shapes=shapes
    )
    importance = read_imatrix(config.importance) if config.importance else None
    types = types_of(shape, config.to, config.types, importance=importance is not None)
    kept = _blocks_of(student.path, types) if config.train == "scales" else {}

    def matrix(name: str, weight: Tensor) -> Effective:
        kind = types[_gguf(name)]
        assert isinstance(weight, nn.Parameter)
        rounded = Rounded(weight, arithmetic_of(kind, config.ternary, _columns(importance, _gguf(name), weight)))
        if config.train == "weights" or kind in PLAIN:
            weight.requires_grad_(config.train == "weights")
            return rounded
        return Scaled(kept[name] if name in kept else rounded.encode(), kind, weight.shape[1])

    table = matrix(f"{EMBEDDING}.weight", model.model.embed_tokens.weight)
    for name, linear in places.items():
        is_head = name == f"{HEAD}.weight"
        made = table if is_head and tied else matrix(name, linear.weight)
        bias = linear.bias if isinstance(linear.bias, nn.Parameter) else None
        parent, _, leaf = name.removesuffix(".weight").rpartition(".")
        new = RoundedLinear(made, bias, activations=config.activations)
        setattr(model.get_submodule(parent), leaf, new)
    model.model.embed_tokens = RoundedEmbedding(table)


def _columns(importance: Importance | None, name: str, weight: Tensor) -> npt.NDArray[np.float32] | None:
    """How much each column of a matrix matters; None where it is not known."""
    found = importance.of(name) if importance is not None else None
    if found is None:
        return None
    if found.size != weight.shape[1]:
        raise ValueError(
            f"importance: {name} has {found.size} columns there and {weight.shape[1]} here; make one with this model"
        )
    return found.reshape(-1)


def _gguf(name: str) -> str:
    found = gguf_name(name)
    assert found is not None, name
    return found


def _blocks_of(path: Path, types: Mapping[str, str]) -> dict[str, Bytes]:
    """Blocks that the source holds already in the types that were asked for, in Hugging Face's order of rows: integers that
    somebody chose are kept."""
    if path.is_dir():
        return {}
    out = {}
    with GGUF.open(path) as gguf:
        form = Form.of(gguf)
        for name, kind in types.items():
            hf = _hf(name)
            if gguf.info(name).type == kind:
                raw = np.array(gguf.raw(name))
                heads = heads_of(hf.removesuffix(".weight"), form)
                out[hf] = np.ascontiguousarray(_turned(raw, heads, apart=True))
    return out


def _hf(name: str) -> str:
    found = hf_name(name)
    assert found is not None, name
    return found


def _turned(raw: Bytes, heads: int, *, apart: bool) -> Bytes:
    """Rows of blocks in the other order of q and k; as they are without heads."""
    if not heads:
        return raw
    turn = pairs_apart if apart else pairs_side_by_side
    out: Bytes = turn(raw, heads)  # type: ignore[arg-type, assignment]
    return out


def matrices_of(model: Transformer) -> dict[str, Effective]:
    """All rounded matrices, by Hugging Face's names; a tied head is the embedding."""
    out: dict[str, Effective] = {}
    for name, module in model.named_modules():
        if isinstance(module, RoundedLinear | RoundedEmbedding) and module.stored not in out.values():
            out[f"{name}.weight"] = module.stored
    return out


def floats_of(model: Transformer) -> dict[str, Tensor]:
    """The floats behind the rounded weights; where only scales were trained, the weights themselves."""
    matrices = matrices_of(model)
    scaled = {name: m.effective().detach() for name, m in matrices.items() if isinstance(m, Scaled)}
    of_scales = {name.removesuffix("weight") + part for name in scaled for part in ("gain", "gain_min")}
    plain = {n: p for n, p in own_weights(model).items() if n not in of_scales and not n.startswith(PROJECTIONS)}
    return {**plain, **scaled}


def _write(matrices: Mapping[str, Effective], source: Path, target: Path, file_type: int) -> None:
    """The file with the blocks of every matrix, whose rows of q and k lie as the architecture's files have them."""
    by_name = {_gguf(name): (name, matrix) for name, matrix in matrices.items()}
    types = {there: matrix.kind for there, (_, matrix) in by_name.items()}
    made: dict[str, Bytes] = {}
    with open_source(source) as opened:
        heads = {"q_proj": opened.shape.heads, "k_proj": opened.shape.kv_heads}
        turned = by_gguf_name()[opened.architecture].gguf
        interleaved = turned is not None and turned.interleaved

        def encode(tensor: str, first: int, rows: npt.NDArray[np.float32], kind: str) -> Bytes:
            if tensor not in made:
                made.clear()
                name, matrix = by_name[tensor]
                of = heads.get(name.split(".")[-2], 0) if interleaved else 0
                made[tensor] = _turned(matrix.encode(), of, apart=False)
            return made[tensor][first : first + len(rows)]

        write_source(opened, target, types, encode=encode, fields={"general.file_type": np.uint32(file_type)})
