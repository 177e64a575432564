"""A model from floats (a Hugging Face folder, or a GGUF file that is to be floats), frozen, in the storage that was asked for.

Tensors go by one after the other, so what is in memory is the model as it will be stored and one tensor more.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.model.layers import Linear, replace_linears
from gangpao.model.transformer import Transformer
from gangpao.tune.base import nf4
from gangpao.tune.base.quantized import QuantizedLinear

Source = Iterator[tuple[str, Tensor]]

DTYPES: dict[str, torch.dtype | None] = {
    "auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "nf4": None
}  # fmt: skip


def model_of(config: ModelConfig, source: Source, storage: str, device: str, where: str) -> Transformer:
    """The model of tensors under Hugging Face's names, with frozen parameters. storage: a key of DTYPES; nf4 is for the matrices
    inside the layers, and the rest stays as it is (as in QLoRA).

    Raises ValueError naming the tensors when something is missing, left over, of another shape or no number.
    """
    with torch.device("meta"):
        model = Transformer(config)
    if storage == "nf4":
        source = _through_nf4(model, source, device, where)
    weights.fill(model, source, dtype=DTYPES[storage], device=device, where=where)
    if empty := [n for n, m in model.named_modules() if isinstance(m, QuantizedLinear) and m.tiles is _NOTHING]:
        raise ValueError(f"{where}: {len(empty)} tensors are missing ({empty[0]}.weight): get the whole checkpoint")
    return model.requires_grad_(False)


def _through_nf4(model: Transformer, source: Source, device: str, where: str) -> Source:
    """Puts layers in place of those that can be NF4, and the matrices into them as they come by; the rest goes on."""

    def empty(name: str, linear: Linear) -> nn.Module | None:
        if not name.startswith("model.layers.") or not nf4.fits(linear.in_features):
            return None
        out = QuantizedLinear(_NOTHING, linear.bias)
        out.in_features, out.out_features = linear.in_features, linear.out_features
        return out

    wanted = {f"{name}.weight": model.get_submodule(name) for name in replace_linears(model, empty)}

    def rest() -> Source:
        for foreign, tensor in source:
            name = weights.hf_name(foreign)
            layer = wanted.get(name)
            if not isinstance(layer, QuantizedLinear):
                yield foreign, tensor
                continue
            if tuple(tensor.shape) != (shape := (layer.out_features, layer.in_features)):
                raise ValueError(f"{where}: {name} has shape {list(tensor.shape)}, config.json says {list(shape)}")
            try:
                layer.tiles = nf4.quantize(tensor.to(device))
            except ValueError as error:
                raise ValueError(f"{where}: {name}: {error}") from error

    return rest()


class _Nothing:
    """Where the matrix of a layer will be."""

    rows = cols = 0

    def read(self, begin: int, end: int, like: Tensor) -> Tensor:
        raise AssertionError("the layer was not filled")

    def take(self, ids: Tensor) -> Tensor:
        raise AssertionError("the layer was not filled")


_NOTHING = _Nothing()
