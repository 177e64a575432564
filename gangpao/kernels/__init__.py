"""Native kernels, chosen once for the machine they run on, with a numpy reference each.

The best instruction set that the CPU and the operating system offer is taken when the extension is loaded: AMX tiles,
AVX-512 with VNNI, AVX2; on ARM NEON with i8mm, with dotprod, without either; else portable C++. All of them give the same
bits (`reference.py` says which), so the choice is a matter of speed alone. `GANGPAO_ISA` in the environment forces one by
name.
"""

from __future__ import annotations

import importlib.util
import os

if importlib.util.find_spec("gangpao.kernels._native") is None:
    raise ImportError(
        f"the compiled kernels are not in {os.path.dirname(__file__)}: this is a checkout, not the installed gangpao. "
        "Run .venv/bin/gangpao (make chat builds it), python with -P, or PYTHONSAFEPATH=1 before torchrun"
    )

from gangpao.kernels import _native
from gangpao.kernels._native import (
    PAGE,
    Activation,
    AdapterRuns,
    Arena,
    Array,
    AttentionSpec,
    Cache,
    Candidates,
    DeltaSpec,
    Linear,
    LowRank,
    LowRankTable,
    Matrix,
    PageMeans,
    Rows,
    SparseRule,
    StateRows,
    States,
    add_normed,
    attend,
    attend_all,
    attend_sparse,
    attention_spec,
    available_isas,
    count_time,
    counted_time,
    delta_net,
    delta_spec,
    dequantize,
    exp_totals,
    geglu,
    gelu,
    isa_name,
    layernorm,
    linear,
    linear_largest,
    multiply_add_peak,
    num_threads,
    pack,
    packed_bytes,
    quantize,
    quantize_rows,
    read_bandwidth,
    rmsnorm,
    rmsnorm_back_bf16,
    rmsnorm_bf16,
    rope_append,
    set_isa,
    set_num_threads,
    sigmoid_gate,
    swiglu,
    swiglu_back_bf16,
    swiglu_bf16,
    turn_back_bf16,
    turn_bf16,
    weight_types,
)

__all__ = [
    "PAGE",
    "Activation",
    "AdapterRuns",
    "Arena",
    "Array",
    "AttentionSpec",
    "Cache",
    "Candidates",
    "DeltaSpec",
    "Linear",
    "LowRank",
    "LowRankTable",
    "Matrix",
    "PageMeans",
    "Rows",
    "SparseRule",
    "StateRows",
    "States",
    "add_normed",
    "attend",
    "attend_all",
    "attend_sparse",
    "attention_spec",
    "available_isas",
    "count_time",
    "counted_time",
    "delta_net",
    "delta_spec",
    "dequantize",
    "describe",
    "exp_totals",
    "geglu",
    "gelu",
    "isa_name",
    "layernorm",
    "linear",
    "linear_largest",
    "multiply_add_peak",
    "num_threads",
    "pack",
    "packed_bytes",
    "quantize",
    "quantize_rows",
    "read_bandwidth",
    "rmsnorm",
    "rmsnorm_back_bf16",
    "rmsnorm_bf16",
    "rope_append",
    "set_isa",
    "set_num_threads",
    "sigmoid_gate",
    "swiglu",
    "swiglu_back_bf16",
    "swiglu_bf16",
    "turn_back_bf16",
    "turn_bf16",
    "weight_types",
]

_WHY = {
    "amx": "the CPU has AMX int8 tiles and AVX-512 VNNI, and the system lets us use them",
    "avx512": "the CPU has AVX-512 with VNNI",
    "avx2": "the CPU has AVX2, FMA and F16C but no AVX-512 VNNI",
    "i8mm": "the CPU has NEON with products of 8-bit matrices (i8mm)",
    "dotprod": "the CPU has NEON with products of four bytes (dotprod), but no i8mm",
    "neon": "the CPU has NEON, but neither dotprod nor i8mm",
    "portable": "the CPU has none of the instruction sets we have kernels for",
}


def describe() -> str:
    """Which kernels run and why, in one line."""
    name = isa_name()
    if os.environ.get("GANGPAO_ISA"):
        return f"{name} kernels, because GANGPAO_ISA says so (available: {', '.join(available_isas())})"
    return f"{name} kernels: {_WHY[name]}"


def _choose() -> None:
    wanted = os.environ.get("GANGPAO_ISA")
    if not wanted:
        return
    if wanted not in available_isas():
        raise ValueError(
            f"GANGPAO_ISA={wanted}: not available on this machine; choose one of {', '.join(available_isas())} or unset it"
        )
    _native.set_isa(wanted)


_choose()
