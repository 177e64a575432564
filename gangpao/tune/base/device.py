"""In which floats a device computes: bf16 where it has such arithmetic, else float32, whatever weights are stored in.

A GTX 1080 Ti multiplies fp16 at 1/64 of its float32 speed and has no bf16 at all; Volta and Turing have fast fp16 products,
whose narrow range would need a scaled loss. So those compute in float32 from small storage. A processor has bf16 products where
it says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from gangpao.machine import cpu_flags

_BF16_CAPABILITY = (8, 0)  # CUDA: Ampere, the first with bf16
_BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})  # of x86 (two), of ARM


@dataclass(frozen=True, slots=True)
class Device:
    """What is known of a device. kind: torch's name of it; capability: of a CUDA card; flags: of a processor."""

    kind: str
    capability: tuple[int, int] | None = None
    flags: frozenset[str] = field(default_factory=frozenset)


def describe(device: str) -> Device:
    """A device of this machine, by torch's name."""
    kind = torch.device(device).type
    if kind == "cuda":
        return Device(kind, capability=torch.cuda.get_device_capability(device))
    return Device(kind, flags=cpu_flags() if kind == "cpu" else frozenset())


def compute_dtype(device: Device) -> torch.dtype:
    """The dtype of activations and products."""
    if device.kind == "cuda":
        fast = device.capability is not None and device.capability >= _BF16_CAPABILITY
    else:
        fast = device.kind == "cpu" and bool(device.flags & _BF16_FLAGS)
    return torch.bfloat16 if fast else torch.float32
