"""Random GGUF blocks of every type with small, finite scales."""

import numpy as np

# type: (weights, bytes) of a block, and where its f16 numbers sit
SHAPES = {
    "Q4_0": (32, 18, [0]),
    "Q4_1": (32, 20, [0, 2]),
    "Q5_0": (32, 22, [0]),
    "Q5_1": (32, 24, [0, 2]),
    "Q8_0": (32, 34, [0]),
    "Q2_K": (256, 84, [80, 82]),
    "Q3_K": (256, 110, [108]),
    "Q4_K": (256, 144, [0, 2]),
    "Q5_K": (256, 176, [0, 2]),
    "Q6_K": (256, 210, [208]),
    "IQ4_NL": (32, 18, [0]),
    "IQ4_XS": (256, 136, [0]),
    "TQ1_0": (256, 54, [52]),
    "TQ2_0": (256, 66, [64]),
}


def random_rows(rng: np.random.Generator, kind: str, rows: int, cols: int, largest: float = 0.02) -> np.ndarray:
    """uint8 [rows, row_bytes], its f16 numbers up to `largest`; any bits are a valid block but TQ2_0's 3, which is left out."""
    weights, size, floats = SHAPES[kind]
    raw = rng.integers(0, 256, (rows, cols // weights, size), dtype=np.uint8)
    for at in floats:
        numbers = rng.uniform(-largest, largest, (rows, cols // weights)).astype(np.float16)
        raw[..., at : at + 2] = numbers[..., None].view(np.uint8)
    if kind == "TQ2_0":
        q = rng.integers(0, 3, (rows, cols // weights, 64, 4))
        raw[..., :64] = q[..., 0] | q[..., 1] << 2 | q[..., 2] << 4 | q[..., 3] << 6
    return raw.reshape(rows, -1)
