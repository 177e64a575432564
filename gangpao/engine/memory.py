"""Is there memory for this model? Estimated from the header alone, before a byte of weights is touched.

need = packed weights + a full KV cache + work space + what Python, numpy and a tokenizer take. What the operating
system can drop at will (pages of the mapped file) does not count. A refusal names need, have and ways out.

What it gives up: the cache is counted full although its pages arrive one by one, so a load may be refused that would
have gone well for the first thousand tokens.
"""

import math
from dataclasses import dataclass

import numpy as np

from gangpao import catalog, kernels, machine
from gangpao.engine.cache import PAGE, KVType, bytes_needed, page_bytes
from gangpao.engine.config import ModelConfig
from gangpao.engine.transformer import CHUNK
from gangpao.formats.gguf import GGUF
from gangpao.options import option

WIDEST_DEFAULT = 8192
NARROWEST_DEFAULT = 1024
# Measured, anonymous pages: Python with numpy, typer, pydantic and our modules 28 MB and some slack; the GGUF header and
# the tokenizer together 745 bytes (Qwen2.5, 151,936 entries) to 780 bytes (SmolLM2, 49,152) a vocabulary entry.
PROCESS_BYTES = 32_000_000
VOCAB_ENTRY_BYTES = 770


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is loaded: what decides how much memory it takes, and with how many threads it computes."""

    threads: int | None = option(None, "Threads to compute with; the physical cores if not given.", 1, 1024)
    context: int | None = option(None, "Most tokens of prompt and answer; by memory if not given.", 16, 1_048_576)
    kv: KVType = option("f16", "KV cache type; int8 takes about half the memory.")


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes a loaded model takes, by what takes them."""

    weights: int
    cache: int
    work: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.work


def estimate(
    gguf: GGUF, config: ModelConfig, context: int, kv_dtype: KVType, *, float32: bool = False, adapters: int = 0
) -> Need:
    """Peak memory of the model with a full cache of `context` positions. adapters: bytes of those beside it."""
    untied = "output.weight" in gguf.tensors
    weights = adapters
    for name, info in gguf.tensors.items():
        if untied and name == "token_embd.weight":
            continue  # stays in the file; rows are read as they are needed
        weights += (
            kernels.packed_bytes("F32" if float32 else info.type, *info.shape) if len(info.shape) == 2 else info.nbytes
        )
    return Need(weights, bytes_needed(config, context, kv_dtype), work_bytes(config))


def pool_tokens(config: ModelConfig, context: int, kv_dtype: KVType, batch: int) -> int:
    """Positions for `batch` sequences at once: all their contexts, or what half of the free memory holds, at least one."""
    fits = machine.available_memory() // 2 // page_bytes(config, kv_dtype) * PAGE
    return max(context, min(batch * context, fits))


def work_bytes(c: ModelConfig) -> int:
    """Activations of one prefill chunk, logits, and the process itself."""
    q_rows, kv_rows = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    # Float rows of every buffer, the float copies that some weight types need beside the int8 ones, one embedding.
    floats = 4 * c.hidden_size + 4 * q_rows + 2 * kv_rows + 3 * c.intermediate_size
    int8 = c.hidden_size + q_rows + c.intermediate_size
    logits = 4 * c.vocab_size * np.dtype(np.float32).itemsize
    return CHUNK * (4 * floats + int8) + logits + PROCESS_BYTES + VOCAB_ENTRY_BYTES * c.vocab_size


def plan_memory(
    gguf: GGUF, config: ModelConfig, context: int | None, kv_dtype: KVType, *, float32: bool = False, adapters: int = 0
) -> int:
    """The context to load with. A given one is taken or refused; else the widest default that fits. adapters: their bytes.

    Raises ValueError naming need, have and ways out, or the model's own limit.
    """
    limit = config.max_position_embeddings
    if context is not None and context > limit:
        raise ValueError(f"{gguf.path}: --context {context} is more than the {limit} positions this model knows")
    have = machine.available_memory()
    wanted = context or min(WIDEST_DEFAULT, limit)
    while (
        context is None
        and wanted > NARROWEST_DEFAULT
        and estimate(gguf, config, wanted, kv_dtype, float32=float32, adapters=adapters).total > have
    ):
        wanted = max(NARROWEST_DEFAULT, wanted // 2)
    need = estimate(gguf, config, wanted, kv_dtype, float32=float32, adapters=adapters)
    if need.total > have:
        raise ValueError(_refusal(gguf, config, need, have, wanted, kv_dtype))
    return wanted


def _refusal(gguf: GGUF, config: ModelConfig, need: Need, have: int, context: int, kv_dtype: KVType) -> str:
    ways = []
    fixed = need.weights + need.work
    if have > fixed:
        room = int((have - fixed) * context / need.cache)
        if room >= 64:
            ways.append(f"a context of {2 ** int(math.log2(room))} (--context)")
    if kv_dtype == "f16":
        int8 = bytes_needed(config, context, "int8")
        enough = "" if fixed + int8 <= have else ", which is not enough alone"
        ways.append(f"an int8 KV cache, which saves {_mb(need.cache - int8)} (--kv int8{enough})")
    ways.append(_smaller(need, have))
    return (
        f"{gguf.path}: not enough memory: it needs {_mb(need.total)} ({_mb(need.weights)} weights, {_mb(need.cache)} "
        f"KV cache for {context} tokens, {_mb(need.work)} work space) and {_mb(have)} are available. "
        f"Ways out: {'; '.join(ways)}; or close other programs"
    )


def _smaller(need: Need, have: int) -> str:
    """The largest catalog model that fits and is smaller than this one, by name."""
    name = catalog.largest_fitting(have)
    if name is None or catalog.memory_needed(catalog.entry(name)) >= need.total:
        return "a smaller or more strongly quantized model (`gangpao list`)"
    return f"a smaller model: {name}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
