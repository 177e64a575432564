"""Adapters at work: what each adds to the linear layers of a loaded model, and which of them a sequence is computed with.

    Adapters.add    Part by part of an adapter (formats/adapters) -> A and B packed beside the layer that they belong to
    Adapters.mix    names and scales -> Mix, which a KVCache carries: its keys and values were computed with that, and all that
                    is computed behind them will be

The base stays as it is and is computed once for all rows of a step; rows whose sequence has adapters get B (A x) on top
(kernels.linear), from the floats of x. A and B are int8, with a factor for each rank and each 16 outputs: reading them is what
an adapter costs, and a rounding of about 1 % of an addition is less than what int8 does to the input of the base's own layers.
An engine of float32 has them in float32. Rows are in the order of Hugging Face, which is that of the engine, too.

What it gives up: DoRA and adapters of the embedding are not computed here (merge them); an adapter stays as long as its model.
"""

from gangpao.engine.adapters.base import bytes_of, check, module_shapes, read
from gangpao.engine.adapters.loaded import Adapters, LayerTables, quantize

__all__ = ["Adapters", "LayerTables", "bytes_of", "check", "module_shapes", "quantize", "read"]
