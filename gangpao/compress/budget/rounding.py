"""A matrix as it comes back from a type of a file: the error that a budget weighs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gangpao import kernels

Floats = npt.NDArray[np.float32]


def rounded(weight: Tensor, kind: str, importance: Floats | None = None) -> Tensor:
    """Rows [R, C] through a type and back, a new float32 [R, C]. The order of rows changes nothing: each is rounded by itself."""
    values = np.ascontiguousarray(weight.detach().numpy(), dtype=np.float32)
    parallel, (rows, cols) = torch.get_num_threads() > 1, values.shape
    out = np.empty_like(values)
    raw = kernels.quantize_rows(values, kind, importance, parallel)
    kernels.dequantize(raw, kind, rows, cols, out, 0, rows, None, parallel)
    return torch.from_numpy(out)
